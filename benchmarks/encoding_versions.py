"""One version of the product, encoding in a process of its own: what ``encoding.py --before`` times in turns.

    python benchmarks/encoding_versions.py encode TEXTS.json [BACKEND]      seconds a turn
    python benchmarks/encoding_versions.py evaluate STORE [BACKEND]         seconds a turn, and nDCG@10

The version is the one on ``PYTHONPATH``; without ``BACKEND`` it may be one that had no choice of them. A line of JSON
says that all is loaded; then each line of input is answered by one. ``STORE`` holds a finished run: its corpus, test
questions and tuned model are evaluated as ``embed-pipeline eval`` does, with no vectors kept from before.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.retrieval import compare
from embed_pipeline.settings import Embedding, Paths, Settings

Work = Callable[[], dict[str, Any]]
WARMING = 16


def main() -> None:
    """Load, say so, and answer each line."""
    what, place, *backend = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        embedding = Embedding.model_validate({"device": "cpu"} | ({"backend": backend[0]} if backend else {}))
        settings = Settings(paths=Paths(store=Path(folder)), embedding=embedding)
        started = time.perf_counter()
        work = (encoding if what == "encode" else evaluation)(Path(place), settings)
        say({"seconds": time.perf_counter() - started})
        for _ in sys.stdin:
            started = time.perf_counter()
            found = work()
            say({"seconds": time.perf_counter() - started} | found)


def say(found: dict[str, Any]) -> None:
    """A line of JSON."""
    print(json.dumps(found), flush=True)


def encoding(path: Path, settings: Settings) -> Work:
    """Encodes the texts of a JSON file; what is chosen, exported and proven for them happens before."""
    texts = json.loads(path.read_text(encoding="utf-8"))
    if "backend" in settings.embedding.model_fields_set:
        from embed_pipeline.embedding.proven import choose_backend

        encoder = choose_backend(["packaged"], texts, settings).open("packaged")
    else:
        encoder = Encoder.load("packaged", settings.embedding)
    encoder.encode(texts[:WARMING], "passage")

    def work() -> dict[str, Any]:
        encoder.encode(texts, "passage")
        return {}

    return work


def evaluation(store: Path, settings: Settings) -> Work:
    """Evaluates the base and the tuned model of a finished run on its test questions."""
    table = store / "tables"
    corpus, pairs = pl.read_parquet(table / "corpus.parquet"), pl.read_parquet(table / "qa_dataset.parquet")
    sides = pl.read_parquet(table / "dataset_split.parquet").filter(split="test")
    asked = pairs.join(sides.select("qa_id"), on="qa_id").sort("qa_id")
    queries = dict(asked.select("qa_id", "question").iter_rows())
    qrels = {qa_id: dict.fromkeys(ids, 1) for qa_id, ids in asked.select("qa_id", "segment_ids").iter_rows()}
    query_set = QuerySet("test", queries, qrels)
    models = store / "models" / "finetuned_model"
    tuned = models / (models / "latest").read_text(encoding="utf-8").strip()

    def work() -> dict[str, Any]:
        metrics = compare("packaged", tuned, corpus, [query_set], settings).metrics
        chosen = metrics.filter((pl.col("metric") == "nDCG") & (pl.col("k") == 10) & (pl.col("slice") == "all"))  # noqa: PLR2004 - the headline figure is at 10
        return {
            "ndcg_at_10": {system: round(value, 6) for system, value in chosen.select("system", "value").iter_rows()}
        }

    return work


if __name__ == "__main__":
    main()
