"""A small training task that the training tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.settings import Settings
from embed_pipeline.tables import TRAINING_EXAMPLES

TOPICS = [
    "value",
    "object",
    "class",
    "function",
    "statement",
    "python",
    "number",
    "letter",
    "string",
    "list",
    "tuple",
    "module",
]


def passages() -> dict[str, str]:
    """Twenty-four short texts, two for each topic."""
    return {f"s{i:02}": f"the {TOPICS[i % 12]} is {'a b c ' * (i % 5)}{TOPICS[(i * 5 + 1) % 12]}" for i in range(24)}


def examples() -> pl.DataFrame:
    """Sixteen examples: twelve questions, four of them with two positives."""
    rows: list[dict[str, object]] = []
    for i in range(16):
        topic = i % 12
        rows.append(
            {
                "example_id": f"e{i:02}",
                "qa_id": f"q{topic:02}",
                "origin": "generated",
                "question": f"what is the {TOPICS[topic]}",
                "positive_segment_id": f"s{i:02}",
                "negative_segment_ids": [f"s{(topic + 5) % 12:02}"] if topic != 3 else [],
                "positive_similarity": 0.5,
                "negative_similarities": [0.1] if topic != 3 else [],
            }
        )
    return TRAINING_EXAMPLES.frame(rows)


def dev() -> QuerySet:
    """Four questions answered by the texts that no example has."""
    return QuerySet(
        name="dev",
        queries={f"d{i}": f"how does a {TOPICS[i + 4]} work" for i in range(4)},
        qrels={f"d{i}": {f"s{i + 16}": 1} for i in range(4)},
    )


def corpus() -> tuple[list[str], list[str]]:
    """Ids and texts of all segments."""
    texts = passages()
    return list(texts), list(texts.values())


def settings(model: Path, share: float | str = "auto", **training: Any) -> Settings:
    """Two passes in batches of four, in fp32, the general check left out."""
    values = {
        "precision": "fp32",
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "evaluations_per_epoch": 2,
        **training,
    }
    return Settings.model_validate(
        {
            "embedding": {"model": str(model), "device": "cpu"},
            "training": values,
            "adapter": {"share": share},
            "forgetting": {"questions": 0},
        }
    )


def write_tiny_decoder(folder: Path) -> Path:
    """Write a two-layer random decoder that pads on the left and pools its last token."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

    torch.manual_seed(0)
    words = ["<pad>", "<unk>", "<end>", *TOPICS, *"the is what how does a b c work of".split()]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        padding_side="left",
        model_max_length=64,
    )
    plain = folder.parent / f"{folder.name}-plain"
    fast.save_pretrained(plain)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    Qwen2Model(config).save_pretrained(plain)
    return _pool(plain, folder, "lasttoken")


def write_tiny_roberta(folder: Path, encoder: Path) -> Path:
    """Write a two-layer random RoBERTa, whose positions begin after the padding's, with a tiny BERT's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    plain = folder.parent / f"{folder.name}-plain"
    tokenizer.save_pretrained(plain)
    config = RobertaConfig(
        vocab_size=AutoConfig.from_pretrained(encoder).vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=514,
        type_vocab_size=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    RobertaModel(config).save_pretrained(plain)
    return _pool(plain, folder, "mean")


def _pool(plain: Path, folder: Path, how: str) -> Path:
    """Write a plain transformer 32 wide with its pooling to ``folder`` and return it."""
    from sentence_transformers import SentenceTransformer, models

    modules = [models.Transformer(str(plain), max_seq_length=64), models.Pooling(32, pooling_mode=how)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def write_tiny_cross_encoder(folder: Path, encoder: Path) -> Path:
    """Write a cross-encoder of random weights over the tokenizer and shape of a tiny BERT."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    torch.manual_seed(1)
    config = AutoConfig.from_pretrained(encoder, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder
