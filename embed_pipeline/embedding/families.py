"""What differs between families of models, made alike: prompts, limits, end of text, routes, static embeddings.

A family is found by how the loaded model is built, never by its name.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embed_pipeline.settings import Embedding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

Kind = Literal["query", "passage"]
TASK = "task"
"""Feature by which a router chooses the route."""
TASKS: Mapping[Kind, str] = {"query": "query", "passage": "document"}
"""What sentence-transformers calls the two kinds of text."""

DIMENSIONS_KEY = "matryoshka_dimensions"
"""In a model's configuration: shorter lengths that its vectors may be cut to."""
STATIC_TOKENS = 8_192
"""Longest text of a static embedding, which has no limit of its own."""
_NO_LIMIT = 10**9
# Fewer are what a tokenizer is made of without a file.
_LEAST_VOCABULARY = 16
_ROLES: Mapping[Kind, frozenset[str]] = {
    "query": frozenset({"query", "queries", "question"}),
    "passage": frozenset({"document", "documents", "passage", "passages", "corpus", "doc"}),
}
_EXACT_NAMES: Mapping[Kind, tuple[str, ...]] = {"query": ("query",), "passage": ("document", "passage", "corpus")}
_RETRIEVAL = frozenset({"retrieval", "search"})
_NAME_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


class ModelError(ValueError):
    """A model is missing, cannot be read, or wants to run code of its own."""


def adapt(model: SentenceTransformer, embedding: Embedding) -> None:
    """Bring a model that sentence-transformers has loaded to the form that every stage expects, in place.

    Raises:
        ModelError: it cannot be brought there; the message says why.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    for module in model.modules():
        if isinstance(module, StaticEmbedding):
            module.register_forward_pre_hook(_flatten_rows)
    for folder, tokenizer in _tokenizers(model):
        _refuse_empty_vocabulary(tokenizer, folder)
        if tokenizer.pad_token_id is None:
            # sentence-transformers does not encode without one; the mask says which tokens count.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        _end_texts(tokenizer, folder)
    _check_tables(model)
    _cut_vectors(model)
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    model.similarity_fn_name = "cosine"
    _fill_prompts(model, embedding)
    if is_routed(model):
        lengths = {kind: embedding_dimensions(route_of(model, kind)) for kind in TASKS}
        if len(set(lengths.values())) > 1:
            message = f"queries and passages get vectors of different lengths: {lengths}"
            raise ModelError(message)


def _refuse_empty_vocabulary(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401 - as above
    """Raise where ``folder`` has no vocabulary: transformers makes up one without a word, and reads all texts alike.

    Raises:
        ModelError: naming the files that were looked for.
    """
    files = sorted(set(getattr(tokenizer, "vocab_files_names", {}).values()))
    if not files or not folder.is_dir() or any((folder / name).is_file() for name in files):
        return
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < _LEAST_VOCABULARY:
        message = f"the tokenizer in {folder} has no vocabulary: there is no {' or '.join(files)}"
        raise ModelError(message)


def _check_tables(model: SentenceTransformer) -> None:
    """Raise where a tokenizer gives ids that its model's table of embeddings has no row for.

    Raises:
        ModelError: with the largest id and the rows.
    """
    from sentence_transformers.base.modules import Transformer

    for module in (each for each in model.modules() if isinstance(each, Transformer)):
        fast = getattr(module.tokenizer, "backend_tokenizer", None)
        table = module.auto_model.get_input_embeddings()
        if fast is None or table is None:
            continue
        # Tokens that were added and are never read may lie beyond the table; padding is read.
        ids = fast.get_vocab(with_added_tokens=False).values()
        largest, rows = max((*ids, module.tokenizer.pad_token_id or 0)), table.weight.shape[0]
        if largest >= rows:
            message = (
                f"the tokenizer has ids up to {largest}, the model embeddings for {rows}: they do not fit together"
            )
            raise ModelError(message)


def _cut_vectors(model: SentenceTransformer) -> None:
    """Put the length that ``model`` cuts its vectors to into a module: older versions read it nowhere else."""
    import torch
    from sentence_transformers.base.modules import Dense

    length, whole = model.truncate_dim, embedding_dimensions(model)
    model.truncate_dim = None
    own = model.get_embedding_dimension()
    if length is None or not own or whole == own:
        return
    first = Dense(own, whole, bias=False, activation_function=torch.nn.Identity(), init_weight=torch.eye(whole, own))
    model.append(first.requires_grad_(requires_grad=False).to(model.device))


def is_routed(model: nn.Module) -> bool:
    """Whether queries and passages take different ways through ``model`` (sentence-transformers' Router)."""
    from sentence_transformers.base.modules import Router

    return any(isinstance(module, Router) for module in model.children())


def route_of(model: SentenceTransformer, kind: Kind) -> SentenceTransformer:
    """The model that texts of ``kind`` go through, without a router; it shares its weights with ``model``.

    Raises:
        ModelError: the router has no route for them.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    if not is_routed(model):
        return model
    modules: list[nn.Module] = []
    for module in model:
        if not isinstance(module, Router):
            modules.append(module)
            continue
        try:
            route = module._resolve_route(task=TASKS[kind], modality="text")  # noqa: SLF001 - no public way to ask
        except ValueError as error:
            message = f"the router has no route {TASKS[kind]!r}, only {sorted(module.sub_modules)}"
            raise ModelError(message) from error
        modules.extend(module.sub_modules[route])
    way = SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=model.prompts,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )
    return way.train(model.training)


def static_embedding(model: SentenceTransformer) -> StaticEmbedding | None:
    """The module of a model that reads texts by a table of vectors alone; None: it has a transformer."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return model[0] if isinstance(model[0], StaticEmbedding) else None


def reading_tokenizer(model: SentenceTransformer) -> Tokenizer:
    """A copy of the tokenizer as ``model`` reads with it, special tokens included.

    Raises:
        ModelError: the model has no tokenizer of the fast kind.
    """
    from tokenizers import Tokenizer

    own = model.tokenizer
    fast = own if isinstance(own, Tokenizer) else getattr(own, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        message = (
            f"the tokenizer {type(own).__name__} has no tokenizer.json form, without which the model can be neither "
            "exported nor served; choose a model that comes with that file"
        )
        raise ModelError(message)
    written = json.loads(fast.to_str())
    if static_embedding(model) is not None:
        # It never reads the special tokens.
        written["post_processor"] = None
    return Tokenizer.from_str(json.dumps(written))


def embedding_dimensions(model: SentenceTransformer) -> int:
    """Length of the vectors that ``model`` gives, after its own cut where it has one.

    Raises:
        ModelError: the model does not say.
    """
    dimensions = model.get_embedding_dimension()
    if not dimensions:
        message = "the model does not say how long its vectors are"
        raise ModelError(message)
    return min(int(dimensions), model.truncate_dim or int(dimensions))


def max_tokens_of(model: SentenceTransformer) -> int:
    """Longest text that ``model`` reads, in tokens with the special ones: its own limit, within its positions.

    Raises:
        ModelError: neither the model nor its tokenizer has a limit.
    """
    if (static := static_embedding(model)) is not None:
        cut = static.tokenizer.truncation
        return min(STATIC_TOKENS, int(cut["max_length"])) if cut else STATIC_TOKENS
    own = model.max_seq_length
    if not hasattr(model.tokenizer, "model_max_length"):
        reading_tokenizer(model)
    if own is not None and not isinstance(own, int | float):
        message = f"max_seq_length is {own!r}, expected a whole number"
        raise ModelError(message)
    limits = [own, model.tokenizer.model_max_length, _positions(model)]
    known = [int(limit) for limit in limits if limit and 0 < limit < _NO_LIMIT]
    known = known or [limit for limit in (_trained_positions(model),) if limit]
    if not known:
        message = "the model has no max_seq_length and its tokenizer no model_max_length; set one in the model's folder"
        raise ModelError(message)
    return min(known)


def first_position(encoder: nn.Module) -> int:
    """Number of a text's first position: after the padding index where the table of positions has one (RoBERTa)."""
    table = _position_table(encoder)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def features_of(model: SentenceTransformer, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, Tensor]:
    """What ``model`` takes, on its device, for padded token ids and their mask, int64 (n, longest)."""
    import torch

    device = model.device
    features = {"input_ids": torch.from_numpy(tokens).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    if has_types(model):
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    return features


def has_types(model: SentenceTransformer) -> bool:
    """Whether the model is told of each token which of two texts it belongs to."""
    return "token_type_ids" in getattr(model.tokenizer, "model_input_names", ())


def pad_token_of(model: SentenceTransformer) -> int:
    """Token that short rows are filled up with; where the tokenizer names none, the mask alone decides."""
    return int(getattr(model.tokenizer, "pad_token_id", None) or 0)


def padding_side_of(model: SentenceTransformer) -> Literal["left", "right"]:
    """Side on which short rows are filled up."""
    return "left" if getattr(model.tokenizer, "padding_side", "right") == "left" else "right"


def truncation_side_of(model: SentenceTransformer) -> Literal["left", "right"]:
    """Side on which a text that is too long is cut."""
    if (static := static_embedding(model)) is not None:
        cut = static.tokenizer.truncation
        return "left" if cut and cut["direction"] == "left" else "right"
    return "left" if getattr(model.tokenizer, "truncation_side", "right") == "left" else "right"


def _positions(model: SentenceTransformer) -> int | None:
    """Positions that the model has for a text; None: as many as one likes, as with distances alone (DeBERTa)."""
    encoder = getattr(model[0], "auto_model", None)
    by_distance = getattr(getattr(encoder, "config", None), "relative_attention", False)
    if encoder is not None and by_distance and _position_table(encoder) is None:
        return None
    return _trained_positions(model)


def _trained_positions(model: SentenceTransformer) -> int | None:
    """Positions that the model's configuration names, those before the first text's left out."""
    encoder = getattr(model[0], "auto_model", None)
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    if not positions or positions < 0 or encoder is None:
        return None
    return int(positions) - first_position(encoder)


def _position_table(encoder: nn.Module) -> nn.Module | None:
    from torch import nn

    tables = (getattr(module, "position_embeddings", None) for module in encoder.modules())
    return next((table for table in tables if isinstance(table, nn.Module)), None)


def _flatten_rows(_: nn.Module, inputs: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    """Padded rows as a static embedding takes them: end to end, with the place where each begins."""
    from torch.nn.functional import pad

    features = inputs[0]
    if "attention_mask" not in features:
        return inputs
    real = features["attention_mask"].bool()
    starts = pad(real.sum(dim=1).cumsum(0)[:-1], (1, 0))
    return ({**features, "input_ids": features["input_ids"][real], "offsets": starts}, *inputs[1:])


def _tokenizers(model: SentenceTransformer) -> list[tuple[Path, Any]]:
    """Every tokenizer of transformers in ``model``, and the folder that it was read from."""
    owners = [module for module in model.modules() if hasattr(type(module), "tokenizer") and module is not model]
    found = {id(owner.tokenizer): owner.tokenizer for owner in owners if hasattr(owner.tokenizer, "backend_tokenizer")}
    return [(Path(str(tokenizer.name_or_path)), tokenizer) for tokenizer in found.values()]


def _end_texts(tokenizer: Any, folder: Path) -> None:  # noqa: ANN401 - transformers' tokenizers share no public base
    """Have ``tokenizer`` end texts with its last token where its configuration asks for it.

    transformers 5 ignores ``add_eos_token`` where there is a ``tokenizer.json``, which often leaves the token out,
    and models that pool the last token were trained with it.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    last = tokenizer.eos_token_id
    if not config.get("add_eos_token") or last is None:
        return
    row = tokenizer("a")["input_ids"]
    if row[-1] == last:
        return
    begins = tokenizer.bos_token_id is not None and row[0] == tokenizer.bos_token_id
    tokenizer.add_bos_token = begins
    tokenizer.add_eos_token = True
    if tokenizer("a")["input_ids"] != [*row, last]:
        message = f"{path} asks for add_eos_token, which {type(tokenizer).__name__} does not do here"
        raise ModelError(message)


def _fill_prompts(model: SentenceTransformer, embedding: Embedding) -> None:
    prompts = {name: text for name, text in model.prompts.items() if text}
    chosen = {"query": embedding.query_prefix, "passage": embedding.passage_prefix}
    for kind in TASKS:
        if chosen[kind] == "auto":
            chosen[kind] = _prompt_of(kind, prompts)
    query, passage = chosen["query"], chosen["passage"]
    unread = {name: text for name, text in prompts.items() if text not in (query, passage)}
    if unread and not (query or passage):
        logger.warning(
            "of the model's prompts %s none is for queries or passages; texts are read without: name what belongs "
            "before them in embedding.query_prefix and embedding.passage_prefix",
            unread,
        )
    model.prompts = {**model.prompts, "query": query, "document": passage}
    leaves_prompt_out = any(getattr(module, "include_prompt", True) is False for module in model.modules())
    if leaves_prompt_out and (query or passage):
        message = (
            f"a model that pools without its prompt (include_prompt: false) is not supported: {query or passage!r}"
        )
        raise ModelError(message)


def _prompt_of(kind: Kind, prompts: Mapping[str, str]) -> str:
    """The model's own prompt for ``kind``: of that very name, else the one whose name says so."""
    for name in _EXACT_NAMES[kind]:
        if name in prompts:
            return prompts[name]
    parts = {name: {part.lower() for part in _NAME_PARTS.findall(name)} for name in prompts}
    named = [name for name in prompts if parts[name] & _ROLES[kind]]
    # A model for many tasks has several for queries.
    fitting = [name for name in named if parts[name] & _RETRIEVAL] or named
    found = {prompts[name] for name in fitting}
    if len(found) == 1:
        return found.pop()
    if found:
        logger.warning(
            "the model has several prompts for a %s, and none is used: %s; name one in embedding.%s_prefix",
            kind,
            {name: prompts[name] for name in fitting},
            kind,
        )
    return ""
