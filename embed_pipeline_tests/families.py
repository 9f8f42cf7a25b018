"""Tiny random models in the configuration and folder layout of every family in use, as their authors published them.

The folders are in the form that sentence-transformers wrote before version 5: that is what hubs hold.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WIDTH, LAYERS, HEADS, INNER = 32, 1, 4, 64
UNLIMITED = int(1e30)
CLS, MEAN, LAST = "cls_token", "mean_tokens", "lasttoken"
_MODES = (CLS, MEAN, "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", LAST)
_SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
_BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_XLM_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_BERT_NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
_XLM_NAMES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_XLM_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_INSTRUCTION = "Instruct: find passages that answer the query\nQuery:"


@cache
def sample_texts() -> tuple[str, ...]:
    """Docstrings, from a word to some hundred: what tokenizers are made from and models are compared on."""
    found = [
        inspect.getdoc(part) or "" for part in (textwrap, textwrap.TextWrapper, json, json.dumps, json.loads, Path)
    ]
    whole = " ".join(found)
    words = whole.split()
    lengths = (1, 2, 5, 12, 40, 90, 200, 700)
    return (
        *(text for text in found if text),
        *(" ".join((words * 3)[:n]) for n in lengths),
        "MIXED Case ÄÖÜ 日本 \U0001f600",
    )


@cache
def _word_pieces(cls: str = "[CLS]", sep: str = "[SEP]", *specials: str, lower: bool = True) -> Tokenizer:
    names = list(specials) or _BERT_TOKENS
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(sample_texts(), trainer)
    return _templated(tokenizer, f"{cls} $A {sep}")


@cache
def _byte_pairs(specials: tuple[str, ...], template: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    return _templated(tokenizer, template)


@cache
def _unigrams(specials: tuple[str, ...], template: str, unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=list(specials), unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(sample_texts(), trainer)
    return _templated(tokenizer, template)


def _templated(tokenizer: Tokenizer, template: str) -> Tokenizer:
    names = [part for part in template.split() if part != "$A"]
    pairs = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


def _xlm() -> Tokenizer:
    return _unigrams(tuple(_XLM_TOKENS), "<s> $A </s>", "<unk>")


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _write_transformer(
    folder: Path, model: Any, tokenizer: Tokenizer, named: dict[str, Any], changed: dict[str, Any] | None = None
) -> Path:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2 if "embed" in name else 0.1)
    model.save_pretrained(folder)
    if changed:
        config = json.loads((folder / "config.json").read_text())
        _write_json(folder / "config.json", config | changed)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", named)
    return folder


def _write(
    folder: Path,
    model: Any,
    tokenizer: Tokenizer,
    named: dict[str, Any],
    *,
    pooling: str = MEAN,
    normalize: bool = True,
    read: dict[str, Any] | None = MappingProxyType({"max_seq_length": 512}),
    said: dict[str, Any] | None = None,
    dense: tuple[tuple[int, int, str], ...] = (),
    changed: dict[str, Any] | None = None,
) -> Path:
    _write_transformer(folder, model, tokenizer, named, changed)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in _MODES}
    _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, **modes, "include_prompt": True})
    for before, after, activation in dense:
        place = f"{len(modules)}_Dense"
        modules.append((place, "Dense"))
        options = {"in_features": before, "out_features": after, "bias": False, "activation_function": activation}
        _write_json(folder / place / "config.json", options)
        save_file({"linear.weight": torch.randn(after, before) / before**0.5}, folder / place / "model.safetensors")
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    rows = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", rows)
    if read is not None:
        _write_json(folder / "sentence_bert_config.json", {"do_lower_case": False, **read})
    _write_json(folder / "config_sentence_transformers.json", said or {})
    return folder


def _bert(tokenizer: Tokenizer | None = None, **options: Any) -> tf.BertModel:
    size = (tokenizer or _word_pieces()).get_vocab_size()
    return tf.BertModel(tf.BertConfig(vocab_size=size, **_SHAPE, **options))


def _bert_named(**options: Any) -> dict[str, Any]:
    return {
        "do_lower_case": True,
        "model_max_length": 512,
        "tokenizer_class": "BertTokenizer",
        **_BERT_NAMES,
        **options,
    }


def _xlm_named(kind: str = "XLMRobertaTokenizer", limit: int = 512) -> dict[str, Any]:
    return {"model_max_length": limit, "tokenizer_class": kind, **_XLM_NAMES}


def _kin(name: str, **options: Any) -> Callable[[Path], Path]:
    """A relative of RoBERTa, whose positions start after the padding token, without any limit in its folder."""

    def make(folder: Path) -> Path:
        values = {"vocab_size": _xlm().get_vocab_size(), "max_position_embeddings": 130, **_SHAPE, **_XLM_IDS}
        made = getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**{**values, **options}))
        return _write(folder, made, _xlm(), _xlm_named(limit=UNLIMITED), read=None)

    return make


def bert(folder: Path) -> Path:
    """CLS pooling and normalisation, as bge."""
    return _write(folder, _bert(), _word_pieces(), _bert_named(), pooling=CLS)


def plain_bert(folder: Path) -> Path:
    """transformers' files alone: sentence-transformers takes the mean."""
    return _write_transformer(folder, _bert(), _word_pieces(), _bert_named())


def multilingual_bert(folder: Path) -> Path:
    """BERT with the tokenizer of XLM-R, 128 tokens and no Normalize."""
    made = _bert(_xlm(), pad_token_id=0)
    return _write(folder, made, _xlm(), _xlm_named(), read={"max_seq_length": 128}, normalize=False)


def e5(folder: Path) -> Path:
    """XLM-R with prompts for queries and passages."""
    values = {"vocab_size": _xlm().get_vocab_size(), "max_position_embeddings": 514, "type_vocab_size": 1}
    made = tf.XLMRobertaModel(tf.XLMRobertaConfig(**values, **_SHAPE, **_XLM_IDS))
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "similarity_fn_name": "cosine"}
    return _write(folder, made, _xlm(), _xlm_named(), said=prompts)


def lower_roberta(folder: Path) -> Path:
    """RoBERTa read in lower case by sentence-transformers' own setting, as ance."""
    tokenizer = _byte_pairs(tuple(_XLM_TOKENS), "<s> $A </s>")
    values = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 514, "type_vocab_size": 1}
    made = tf.RobertaModel(tf.RobertaConfig(**values, **_SHAPE, **_XLM_IDS))
    read = {"max_seq_length": 512, "do_lower_case": True}
    return _write(folder, made, tokenizer, _xlm_named("RobertaTokenizer"), pooling=CLS, normalize=False, read=read)


def mpnet_dot(folder: Path) -> Path:
    """MPNet without Normalize, judged by the inner product by its authors."""
    tokenizer = _word_pieces("<s>", "</s>", "<s>", "<pad>", "</s>", "[UNK]", "<mask>")
    values = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 514}
    made = tf.MPNetModel(tf.MPNetConfig(**values, **_SHAPE, **_XLM_IDS))
    named = {**_xlm_named("MPNetTokenizer"), "unk_token": "[UNK]", "do_lower_case": True}
    return _write(folder, made, tokenizer, named, pooling=CLS, normalize=False, said={"similarity_fn_name": "dot"})


def distilbert(folder: Path) -> Path:
    """DistilBERT, CLS pooling."""
    values = {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER}
    made = tf.DistilBertModel(tf.DistilBertConfig(vocab_size=_word_pieces().get_vocab_size(), **values))
    return _write(folder, made, _word_pieces(), _bert_named(tokenizer_class="DistilBertTokenizer"), pooling=CLS)


def modernbert(folder: Path) -> Path:
    """ModernBERT with local attention, as gte; prompts as nomic's."""
    tokenizer = _byte_pairs(tuple(_BERT_TOKENS), "[CLS] $A [SEP]")
    config = tf.ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **{**_SHAPE, "num_hidden_layers": 2},
        max_position_embeddings=1024,
        local_attention=32,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    named = {**_BERT_NAMES, "model_max_length": 1024, "tokenizer_class": "PreTrainedTokenizerFast"}
    named["model_input_names"] = ["input_ids", "attention_mask"]
    prompts = {"prompts": {"query": "search_query: ", "document": "search_document: "}}
    read = {"max_seq_length": 1024}
    return _write(folder, tf.ModernBertModel(config), tokenizer, named, pooling=CLS, read=read, said=prompts)


def deberta(folder: Path) -> Path:
    """DeBERTa-v3, transformers' files alone, no limit of the tokenizer."""
    tokenizer = _unigrams(("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), "[CLS] $A [SEP]", "[UNK]")
    config = tf.DebertaV2Config(
        vocab_size=tokenizer.get_vocab_size(),
        **_SHAPE,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        max_relative_positions=-1,
        position_biased_input=False,
        type_vocab_size=0,
    )
    named = {**_BERT_NAMES, "model_max_length": UNLIMITED, "tokenizer_class": "DebertaV2Tokenizer"}
    return _write_transformer(folder, tf.DebertaV2Model(config), tokenizer, named)


def albert(folder: Path) -> Path:
    """ALBERT: one layer, applied repeatedly."""
    shape = {**_SHAPE, "num_hidden_layers": 2}
    made = tf.AlbertModel(tf.AlbertConfig(vocab_size=_word_pieces().get_vocab_size(), embedding_size=16, **shape))
    return _write(folder, made, _word_pieces(), _bert_named())


def electra(folder: Path) -> Path:
    """ELECTRA: embeddings narrower than its layers."""
    made = tf.ElectraModel(tf.ElectraConfig(vocab_size=_word_pieces().get_vocab_size(), embedding_size=16, **_SHAPE))
    return _write(folder, made, _word_pieces(), _bert_named())


def t5_dense(folder: Path) -> Path:
    """T5's encoder, a dense layer and Normalize, as gtr."""
    tokenizer = _unigrams(("<pad>", "</s>", "<unk>"), "$A </s>", "<unk>")
    values = {"d_model": WIDTH, "d_ff": INNER, "d_kv": 8, "num_layers": LAYERS, "num_heads": HEADS}
    made = tf.T5EncoderModel(tf.T5Config(vocab_size=tokenizer.get_vocab_size(), **values))
    named = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    named |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    dense = ((WIDTH, WIDTH, "torch.nn.modules.linear.Identity"),)
    return _write(folder, made, tokenizer, named, dense=dense)


def _qwen(folder: Path, **named: Any) -> Path:
    tokenizer = _byte_pairs(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "$A <|endoftext|>")
    config = tf.Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        **_SHAPE,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=2048,
        rope_theta=1_000_000,
        tie_word_embeddings=True,
    )
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 131_072}
    names |= {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": False, **named}
    prompts = {"prompts": {"query": _INSTRUCTION, "document": ""}, "similarity_fn_name": "cosine"}
    changed = {"architectures": ["Qwen3ForCausalLM"]}
    made = tf.Qwen3Model(config)
    return _write(folder, made, tokenizer, names, pooling=LAST, read=None, said=prompts, changed=changed)


def qwen3(folder: Path) -> Path:
    """A decoder that pools the last token, padded on the right."""
    return _qwen(folder)


def qwen3_left(folder: Path) -> Path:
    """The same, padded on the left."""
    return _qwen(folder, padding_side="left")


def mistral(folder: Path) -> Path:
    """A decoder without a padding token, whose tokenizer is asked for an end that its file leaves out."""
    tokenizer = _byte_pairs(("<unk>", "<s>", "</s>"), "<s> $A")
    config = tf.MistralConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **_SHAPE,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        sliding_window=None,
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": UNLIMITED}
    named |= {"add_bos_token": True, "add_eos_token": True, "tokenizer_class": "LlamaTokenizer", "legacy": True}
    prompts = {"prompts": {"web_search_query": _INSTRUCTION, "sts_query": "Instruct: similar\nQuery: "}}
    read = {"max_seq_length": 1024}
    return _write(folder, tf.MistralModel(config), tokenizer, named, pooling=LAST, read=read, said=prompts)


def gemma3(folder: Path) -> Path:
    """EmbeddingGemma: both directions, local attention, two dense layers, prompts by task."""
    tokenizer = _byte_pairs(("<pad>", "<eos>", "<bos>", "<unk>"), "<bos> $A <eos>")
    config = tf.Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        **{**_SHAPE, "num_hidden_layers": 2},
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        sliding_window=64,
        sliding_window_pattern=2,
        use_bidirectional_attention=True,
        query_pre_attn_scalar=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    named |= {"add_bos_token": True, "add_eos_token": True, "model_max_length": 1024}
    named["tokenizer_class"] = "GemmaTokenizer"
    prompts = {"Retrieval-query": "task: search result | query: ", "Retrieval-document": "title: none | text: "}
    identity = "torch.nn.modules.linear.Identity"
    dense = ((WIDTH, 4 * WIDTH, identity), (4 * WIDTH, WIDTH, identity))
    said = {"prompts": prompts, "similarity_fn_name": "cosine"}
    read = {"max_seq_length": 1024}
    return _write(folder, tf.Gemma3TextModel(config), tokenizer, named, dense=dense, read=read, said=said)


def nomic(folder: Path) -> Path:
    """An architecture that transformers took in, whose folder still names its author's code."""
    values = {"vocab_size": _word_pieces().get_vocab_size(), "max_position_embeddings": 1024}
    made = tf.NomicBertModel(tf.NomicBertConfig(**values, **_SHAPE))
    code = {"AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig"}
    named = _bert_named(model_max_length=1024)
    changed = {"auto_map": {**code, "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}}
    read = {"max_seq_length": 1024}
    return _write(folder, made, _word_pieces(), named, normalize=False, read=read, changed=changed)


def truncated(folder: Path) -> Path:
    """Vectors that sentence-transformers cuts to a shorter length, by the model's own setting."""
    return _write(folder, _bert(), _word_pieces(), _bert_named(), said={"truncate_dim": 16})


def static(folder: Path) -> Path:
    """A table of vectors, as potion; without special tokens, and without a limit."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = _word_pieces()
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), WIDTH)).astype(np.float32)
    copy = Tokenizer.from_str(tokenizer.to_str())
    return _save(SentenceTransformer(modules=[StaticEmbedding(copy, embedding_weights=table)]), folder)


def two_encoders(folder: Path) -> Path:
    """An encoder for queries and another for passages."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    first = _write_transformer(folder.with_name(f"{folder.name}-q"), _bert(), _word_pieces(), _bert_named())
    second = folder.with_name(f"{folder.name}-p")
    _write_transformer(second, _bert(_xlm(), pad_token_id=1), _xlm(), _xlm_named())
    ways = [[Transformer(str(part)), Pooling(WIDTH, "mean")] for part in (first, second)]
    ways[1][0].model.embeddings.word_embeddings.weight.data.neg_()
    return _save(SentenceTransformer(modules=[Router.for_query_document(*ways), Normalize()]), folder)


def two_heads(folder: Path) -> Path:
    """One encoder, and a dense layer for each kind of text; prompts as well."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Router
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    base = _write_transformer(folder.with_name(f"{folder.name}-base"), _bert(), _word_pieces(), _bert_named())
    torch.manual_seed(1)
    router = Router.for_query_document([Dense(WIDTH, WIDTH)], [Dense(WIDTH, WIDTH)])
    modules = [Transformer(str(base)), Pooling(WIDTH, "mean"), router, Normalize()]
    return _save(SentenceTransformer(modules=modules, prompts={"query": "ask: ", "document": ""}), folder)


def _save(model: Any, folder: Path) -> Path:
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


ROBERTA_KIN: dict[str, Callable[[Path], Path]] = {
    "data2vec": _kin("Data2VecText"),
    "xlm-r-xl": _kin("XLMRobertaXL"),
    "roberta-prelayernorm": _kin("RobertaPreLayerNorm"),
    "i-bert": _kin("IBert"),
    "camembert": _kin("Camembert"),
    "longformer": _kin("Longformer", attention_window=[16] * LAYERS),
}
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "BERT": bert,
    "BERT, transformers alone": plain_bert,
    "BERT, XLM-R's tokenizer": multilingual_bert,
    "XLM-R": e5,
    "RoBERTa, lower case": lower_roberta,
    "MPNet": mpnet_dot,
    "DistilBERT": distilbert,
    "ModernBERT": modernbert,
    "DeBERTa-v3": deberta,
    "ALBERT": albert,
    "ELECTRA": electra,
    "T5, dense": t5_dense,
    "Qwen3": qwen3,
    "Qwen3, padded left": qwen3_left,
    "Mistral": mistral,
    "EmbeddingGemma": gemma3,
    "nomic": nomic,
    "shorter vectors": truncated,
    "static embedding": static,
    "router of encoders": two_encoders,
    "router of dense layers": two_heads,
    **ROBERTA_KIN,
}
