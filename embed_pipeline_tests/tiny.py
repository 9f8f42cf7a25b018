"""A tiny random-weight sentence-transformers model, made on the spot: real code paths, no download."""

from __future__ import annotations

import string
from pathlib import Path


def write_tiny_model(folder: Path, *, dimensions: int = 32, max_tokens: int = 64, seed: int = 0) -> Path:
    """Write a two-layer random BERT with mean pooling and normalisation to ``folder`` and return it."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(seed)
    bert = folder.parent / f"{folder.name}-bert"
    bert.mkdir(parents=True)
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = "the a of to in and is what how does python statement function class value object".split()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *words]
    (bert / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(vocab=str(bert / "vocab.txt"), do_lower_case=True).save_pretrained(bert)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=dimensions,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(bert)
    transformer = models.Transformer(str(bert), max_seq_length=max_tokens)
    pooling = models.Pooling(dimensions, pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling, models.Normalize()], device="cpu").save(str(folder))
    return folder
