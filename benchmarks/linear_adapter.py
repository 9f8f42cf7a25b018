"""What the linear adapter gives a base model from documents alone: no question, no label, no language model.

    python benchmarks/linear_adapter.py --beir DIR [DIR ...]
    python benchmarks/linear_adapter.py --beir DIR [DIR ...] --own    a sentence's own passage is ranked as well

For each BEIR folder the map is fitted to its corpus, and the set's queries are scored under the base and under shares
of the map, on both sides and on the query side alone, each with and without BM25. Differences are to the base, and with
BM25 to BM25 and the base, with paired bootstrap intervals. The teacher was tuned on Cranfield's queries, all of
them; every other query is scored alone as well, to see whether the gain is that of a few. Everything is added to
``benchmarks/results/linear_adapter.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.search import BM25, hybrid_scores, top_indices
from embed_pipeline.evaluation.query_sets import Passages, QuerySet, labelled_set
from embed_pipeline.evaluation.ranking import score_rankings
from embed_pipeline.evaluation.significance import bootstrap_intervals
from embed_pipeline.settings import Settings
from embed_pipeline.tables import CORPUS
from embed_pipeline.training import linear_adapter
from embed_pipeline.training.linear_adapter import Floats, Teaching, fit_adapter

RESULTS = Path(__file__).parent / "results" / "linear_adapter.json"
CUTOFF = 10
MEASURES = ("nDCG", "Recall")
SHARES = (0.25, 0.5, 0.75, 1.0)
# Who is mapped: both sides, or the query by the map and its transpose, which gives the same inner products before they
# are normalised. The results also hold ``query, fitted``, a map that was fitted for the query alone; it did worse, and
# the product has it no more.
SIDES = ("both", "query, folded")
HYBRID = "with BM25"


def main() -> None:
    """Fit and score every set, and add what was found to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, nargs="+", required=True, help="BEIR folders with corpora of their own")
    parser.add_argument("--own", action="store_true", help="rank a sentence's own passage too; the product does not")
    parser.add_argument("--vectors", type=Path, help="keep vectors in this folder for the next time")
    options = parser.parse_args()
    if options.own:
        find = linear_adapter.sentence_queries
        nothing = np.zeros(0, np.int64)
        linear_adapter.sentence_queries = lambda *given: ((asked := find(*given)[0]), [nothing for _ in asked])
    kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for folder in options.beir:
        queries = labelled_set(folder.resolve(), CORPUS.frame([]))
        if queries is None or queries.corpus is None:
            parser.error(f"{folder} has no corpus and judgements of its own")
        name = f"{queries.name}, own passage ranked" if options.own else queries.name
        kept[name] = measure(queries, queries.corpus, Settings(), options.vectors)
        print(name, json.dumps(kept[name], indent=1))
    kept["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


def measure(asked: QuerySet, corpus: Passages, settings: Settings, store: Path | None) -> dict[str, Any]:
    """Figures of the base and of every share of the map; vectors come from ``store`` where it has them."""
    encoder = Encoder.load(settings.embedding.model, settings.embedding, store)
    passages = encoder.encode(corpus.texts, "passage", label="encode passages")
    queries = encoder.encode([asked.queries[query] for query in asked.ids], "query")
    weight = settings.training.teacher_dense_weight
    started = time.monotonic()
    generator = np.random.default_rng(settings.seed)
    teaching = Teaching.of(encoder, corpus.texts, corpus.ids, dense_weight=weight, generator=generator)
    matrix = fit_adapter(teaching, generator=generator)
    seconds = round(time.monotonic() - started)
    bm25 = BM25(corpus.texts)
    lexical = np.stack([bm25.scores(asked.queries[query]) for query in asked.ids])
    base = score(asked, corpus.ids, queries @ passages.T)
    hybrid = score(asked, corpus.ids, fused(queries @ passages.T, lexical, weight))
    figures: dict[str, Any] = {"passages": len(passages), "queries": len(queries), "seconds_with_encoding": seconds}
    for name, scores in (("base", base), (f"base {HYBRID}", hybrid), ("BM25", score(asked, corpus.ids, lexical))):
        figures[name] = {f"{each}@{CUTOFF}": round(float(scores[:, at].mean()), 4) for at, each in enumerate(MEASURES)}
    for sides in SIDES:
        for share in SHARES:
            cosines = similarities(queries, passages, share * matrix, sides)
            scores = score(asked, corpus.ids, cosines)
            with_bm25 = score(asked, corpus.ids, fused(cosines, lexical, weight))
            figures[f"{sides}, share {share}"] = {
                **compared(scores, base, settings),
                "odd queries": compared(scores[1::2], base[1::2], settings),
                f"{HYBRID}, less base {HYBRID}": compared(with_bm25, hybrid, settings),
            }
    return figures


def similarities(queries: Floats, passages: Floats, matrix: Floats, sides: str) -> Floats:
    """Cosines, float32 (queries, passages), after the map on these sides."""
    if sides == "both":
        return mapped(queries, matrix) @ mapped(passages, matrix).T
    return mapped(queries, matrix + matrix.T + matrix @ matrix.T) @ passages.T


def fused(cosines: Floats, lexical: Floats, weight: float) -> Floats:
    """The hybrid of two score matrices, row by row."""
    return np.stack([hybrid_scores(*rows, weight) for rows in zip(cosines, lexical, strict=True)])


def compared(scores: np.ndarray, base: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Each measure's mean, and its difference to the base with an interval."""
    difference = scores - base
    low, high = bootstrap_intervals(difference, settings.evaluation.bootstrap_samples, settings.seed)
    return {
        f"{name}@{CUTOFF}": {
            "value": round(float(scores[:, place].mean()), 4),
            "difference": round(float(difference[:, place].mean()), 4),
            "low": round(float(low[place]), 4),
            "high": round(float(high[place]), 4),
        }
        for place, name in enumerate(MEASURES)
    }


def mapped(vectors: Floats, matrix: Floats) -> Floats:
    """Vectors of length 1 after the map is added to the identity."""
    moved = vectors + vectors @ matrix
    unit: Floats = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return unit


def score(asked: QuerySet, ids: Sequence[str], similarity: Floats) -> np.ndarray:
    """The measures of every query, float64 (queries, measures), ranked by ``similarity`` (queries, passages)."""
    rankings = {
        query: [ids[place] for place in top_indices(row, CUTOFF)]
        for query, row in zip(asked.ids, similarity, strict=True)
    }
    scores = score_rankings(rankings, asked.qrels, (CUTOFF,))
    return np.stack([scores.column(name, CUTOFF) for name in MEASURES], axis=1)


if __name__ == "__main__":
    main()
