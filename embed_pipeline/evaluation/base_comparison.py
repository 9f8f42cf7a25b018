"""Candidates for the base model, measured untuned: what each finds, what it costs, and which is taken."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import polars as pl

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.proven import choose_backend, spread_by_length, time_in_turns
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.evaluation.query_sets import GENERATED, EvaluationError, Passages, QuerySet
from embed_pipeline.evaluation.ranking import rank_by_model, score_rankings
from embed_pipeline.evaluation.retrieval import encode_sets, searched_by, with_identical_texts
from embed_pipeline.evaluation.significance import bootstrap_intervals
from embed_pipeline.settings import Embedding, Settings
from embed_pipeline.tables import BASE_COMPARISON
from embed_pipeline.text.passages import batch_of_passages, passage_texts

logger = logging.getLogger(__name__)

COLUMNS = (
    "model",
    "questions",
    "nDCG@10 (95 % interval)",
    "Recall@10 (95 % interval)",
    "dimensions",
    "longest text",
    "passages cut",
    "MB",
    "GFLOP",
    "vectors a second here",
)
"""Heads of :func:`comparison_rows`."""
_DEPTH = 10
_COST_TOKENS = 128
_TIMED_PASSAGES, _ROUNDS = 64, 3
_FP32_BYTES = 4
_MOST_CUT = 0.01


def compare_bases(corpus: pl.DataFrame, sets: Sequence[QuerySet], settings: Settings) -> tuple[pl.DataFrame, str]:
    """Measure ``embedding.candidates``, and ``embedding.model`` where it is one, and choose the base.

    Args:
        corpus: table ``corpus``.
        sets: the generated test questions and people's own, with different names, none of them empty.
        settings: groups ``embedding`` and ``evaluation``, and the seed.

    Returns:
        Table ``base_comparison``, and why the base is the one that is marked in it.

    Raises:
        EvaluationError: the sets do not fit the corpus, or no candidate may be taken.
        ModelError: naming the candidate that cannot be loaded.
    """
    embedding = settings.embedding
    named = embedding.candidates if embedding.model == "auto" else (embedding.model, *embedding.candidates)
    candidates = tuple(dict.fromkeys(named))
    sources = searched_by(sets, corpus, embedding.context)
    texts = list(dict.fromkeys(text for passages, _ in sources for text in passages.texts))
    segments = passage_texts(corpus, embedding.context)
    chosen = choose_backend(candidates, texts, settings, batch_of_passages(segments, corpus["batch"]))
    rows: list[dict[str, Any]] = []
    for model in candidates:
        encoder = chosen.open(model, settings.paths.store / "vectors")
        costs = _costs(model, encoder, segments, embedding)
        encoded = encode_sets(model, encoder, sources, sets)
        for query_set, (passages, documents), vectors in zip(sets, sources, encoded, strict=True):
            rows.append({"model": model, **_figures(query_set, passages, documents, vectors, settings), **costs})
    base, reason = _choose(rows, embedding)
    logger.info("%s", reason)
    return BASE_COMPARISON.frame([{**row, "chosen": row["model"] == base} for row in rows]), reason


def _figures(
    query_set: QuerySet,
    passages: Passages,
    documents: Sequence[str],
    vectors: tuple[Any, Any],
    settings: Settings,
) -> dict[str, Any]:
    whole = with_identical_texts(query_set, passages)
    rankings = rank_by_model(whole, passages.ids, documents, *vectors, depth=_DEPTH)
    scores = score_rankings(rankings, whole.qrels, (_DEPTH,))
    values = np.stack([scores.column(metric, _DEPTH) for metric in ("nDCG", "Recall")], axis=1)
    lows, highs = bootstrap_intervals(values, settings.evaluation.bootstrap_samples, settings.seed)
    found: dict[str, Any] = {"query_set": query_set.name, "queries": len(query_set)}
    for name, column, low, high in zip(("ndcg_10", "recall_10"), values.T, lows, highs, strict=True):
        found |= {name: float(column.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def _costs(model: str, encoder: Encoder, texts: Sequence[str], embedding: Embedding) -> dict[str, Any]:
    """What a candidate costs, and how much it reads of ``texts``, the segments."""
    own = encoder.backend
    original = own if isinstance(own, TorchBackend) else TorchBackend.load(model, embedding)
    # Vectors that are kept would take no time.
    timed = Encoder(own, embedding.batch_tokens)
    longer = sum(tokens > encoder.passage_tokens for tokens in encoder.count_tokens(texts))
    sample = spread_by_length(texts, _TIMED_PASSAGES)
    (seconds,) = time_in_turns([partial(timed.encode, sample, "passage")], _ROUNDS)
    weights = {id(weight): weight.numel() for side in _sides(original) for weight in side.model.parameters()}
    return {
        "dimensions": encoder.dimensions,
        "max_tokens": encoder.max_tokens,
        "cut_segments": longer / len(texts),
        "megabytes": round(_FP32_BYTES * sum(weights.values()) / 1e6, 1),
        "gigaflops": _gigaflops(original),
        "vectors_per_second": round(len(sample) / seconds, 1),
    }


def _sides(backend: TorchBackend) -> list[TorchBackend]:
    queries = backend.query_side
    return [backend, queries] if isinstance(queries, TorchBackend) else [backend]


def _gigaflops(backend: TorchBackend) -> float:
    """Billions of operations of the matrix products for a passage of 128 tokens, which no machine's load changes."""
    from torch.utils.flop_counter import FlopCounterMode

    length = min(_COST_TOKENS, backend.max_tokens)
    row = np.full(length, backend.tokenize(["a"])[0][0], dtype=np.int32)
    with FlopCounterMode(display=False) as counter:
        backend.infer([row])
    return float(counter.get_total_flops()) / 1e9 * _COST_TOKENS / length


def _choose(rows: Sequence[Mapping[str, Any]], embedding: Embedding) -> tuple[str, str]:
    """The base, and why: the model that is set, else the best by people's questions or, without, the generated ones.

    The generated questions were measured with the first candidate before they were accepted, and so lean to it.
    """
    if embedding.model != "auto":
        return embedding.model, f"the base is {embedding.model}, as embedding.model says"
    barred = {row["model"]: reason for row in rows if (reason := _barred(row, embedding.max_gigaflops))}
    costs = {row["model"]: row["gigaflops"] for row in rows}
    within = [model for model in costs if model not in barred]
    if not within:
        message = f"no candidate may be taken: {'; '.join(barred.values())}"
        raise EvaluationError(message)
    own = {row["query_set"] for row in rows} - {GENERATED}
    sets = own or {GENERATED}
    mean = {
        model: fmean(row["ndcg_10"] for row in rows if row["model"] == model and row["query_set"] in sets)
        for model in within
    }
    # Of equals the cheaper, then the one named first.
    base = min(within, key=lambda model: (-mean[model], costs[model]))
    measured = "people's questions" if own else "the generated test questions"
    best = f"the base is {base}: nDCG@10 {mean[base]:.4f} on {measured} is the best of {len(within)} candidates"
    return base, "; ".join([best, *barred.values()])


def _barred(row: Mapping[str, Any], bound: float) -> str:
    """Why a candidate may not be taken, in words; empty: it may."""
    if row["gigaflops"] > bound:
        return f"{row['model']} needs {row['gigaflops']:.3g} GFLOP, more than embedding.max_gigaflops = {bound:g}"
    if row["cut_segments"] > _MOST_CUT:
        return (
            f"{row['model']} reads {row['max_tokens']} tokens and would cut {row['cut_segments']:.0%} of the segments: "
            "name it first, or set corpus.segment_tokens lower"
        )
    return ""


def _shown(model: str) -> str:
    """A candidate as reports show it: of a folder its name, not where it lies on this machine."""
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def comparison_rows(frame: pl.DataFrame) -> list[list[str]]:
    """The table as text, under :data:`COLUMNS`; the base that is trained is marked.

    Args:
        frame: table ``base_comparison``.
    """
    return [
        [
            f"{_shown(row['model'])} (chosen)" if row["chosen"] else _shown(row["model"]),
            f"{row['query_set']} ({row['queries']})",
            *(f"{row[n]:.4f} ({row[f'{n}_low']:.4f} to {row[f'{n}_high']:.4f})" for n in ("ndcg_10", "recall_10")),
            str(row["dimensions"]),
            str(row["max_tokens"]),
            f"{row['cut_segments']:.1%}",
            f"{row['megabytes']:.0f}",
            f"{row['gigaflops']:.1f}",
            f"{row['vectors_per_second']:.0f}",
        ]
        for row in frame.to_dicts()
    ]
