"""What the query's encoder learns from the linear adapter's teacher, while every passage keeps the base's vector.

    python benchmarks/query_encoder.py --beir DIR [DIR ...]

``adapter.query_encoder_share`` by itself: no question, no label, no language model, and an index that is filled with
the base stays valid. The set's queries are scored under shares of the trained weights, alone and with half of the
folded linear map after them, each with and without BM25; differences are to the base, and with BM25 to BM25 and the
base, with paired bootstrap intervals. ``--shared`` trains one encoder for both sides likewise and encodes the passages
with it again. Everything is added to ``benchmarks/results/query_encoder.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from linear_adapter import compared, fused, score, similarities

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.search import BM25
from embed_pipeline.evaluation.query_sets import Passages, QuerySet, labelled_set
from embed_pipeline.settings import Settings
from embed_pipeline.tables import CORPUS
from embed_pipeline.training.linear_adapter import Floats, Teaching, fit_adapter
from embed_pipeline.training.prepared_model import split_sides
from embed_pipeline.training.query_encoder import follow_teacher
from embed_pipeline.training.weights import load_weights, mix_weights

RESULTS = Path(__file__).parent / "results" / "query_encoder.json"
SHARES = (0.25, 0.5, 0.75, 1.0)
MAP_SHARE = 0.5


def main() -> None:
    """Train and score on every set, and add what was found to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, nargs="+", required=True, help="BEIR folders with corpora of their own")
    parser.add_argument("--shared", action="store_true", help="one encoder for queries and passages")
    options = parser.parse_args()
    kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for folder in options.beir:
        queries = labelled_set(folder.resolve(), CORPUS.frame([]))
        if queries is None or queries.corpus is None:
            parser.error(f"{folder} has no corpus and judgements of its own")
        name = f"{queries.name}, one encoder" if options.shared else queries.name
        kept[name] = measure(queries, queries.corpus, Settings(), shared=options.shared)
        print(name, json.dumps(kept[name], indent=1))
        kept["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


def measure(asked: QuerySet, corpus: Passages, settings: Settings, *, shared: bool) -> dict[str, Any]:
    """Figures of the base, of the folded map and of every share of the trained encoder."""
    model = load_model(settings.embedding.model, settings.embedding, "cpu")
    model = (model if shared else split_sides(model)).eval()
    encoder = Encoder.of(model, settings.embedding)
    passages = encoder.encode(corpus.texts, "passage", label="Encoding passages")
    questions = [asked.queries[query] for query in asked.ids]
    weight, generator = settings.training.teacher_dense_weight, np.random.default_rng(settings.seed)
    teaching = Teaching.of(encoder, corpus.texts, corpus.ids, dense_weight=weight, generator=generator)
    matrix = MAP_SHARE * fit_adapter(teaching, generator=generator)
    bm25 = BM25(corpus.texts)
    lexical = np.stack([bm25.scores(question) for question in questions])
    cosines = encoder.encode(questions, "query") @ passages.T
    base, hybrid = (score(asked, corpus.ids, scores) for scores in (cosines, fused(cosines, lexical, weight)))
    figures: dict[str, Any] = {"passages": len(passages), "queries": len(questions)}

    def add(name: str, queries: Floats, *, with_map: bool) -> None:
        cosines = similarities(queries, passages, matrix, "query, folded") if with_map else queries @ passages.T
        figures[name] = {
            **compared(score(asked, corpus.ids, cosines), base, settings),
            "with BM25, less base with BM25": compared(
                score(asked, corpus.ids, fused(cosines, lexical, weight)), hybrid, settings
            ),
        }

    add("base", encoder.encode(questions, "query"), with_map=False)
    add("half of the map", encoder.encode(questions, "query"), with_map=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = time.monotonic()
    follow_teacher(model, teaching, generator)
    figures["seconds_of_training"] = round(time.monotonic() - started)
    after = {name: value.clone() for name, value in model.state_dict().items()}
    for share in SHARES:
        load_weights(model, mix_weights(before, after, share))
        encoder = Encoder.of(model, settings.embedding)
        queries = encoder.encode(questions, "query")
        passages = encoder.encode(corpus.texts, "passage") if shared else passages
        add(f"query encoder, share {share}", queries, with_map=False)
        add(f"query encoder, share {share}, half of the map", queries, with_map=True)
    return figures


if __name__ == "__main__":
    main()
