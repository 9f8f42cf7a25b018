"""A small store with pairs in every state, and an inspector over it on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import uvicorn
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.inspection.inspector import Neighbours, create_inspector
from embed_pipeline.lineage import Model, trained_on_path
from embed_pipeline.serving.connections import bind
from embed_pipeline.settings import Inspection, Paths, Settings
from embed_pipeline_tests.synthesis import material
from embed_pipeline_tests.synthesis.material import DOCUMENTS, TEXTS, pair_row, score_row

LAMP, FEE = "What does a red lamp on the pump mean?", "Does a blocked filter add to the fee of an invoice?"
TECHNICIAN = "Who changes the filter of the pump?"
UNSAID = {column.name: None for column in tables.QA_DATASET.columns if column.nullable}


def _default(column: tables.Column) -> Any:
    if column.nullable or column.values:
        return None if column.nullable else column.values[0]
    if column.dtype == pl.Boolean:
        return False
    return [] if isinstance(column.dtype, pl.List) else (0 if column.dtype.is_numeric() else "")


def filled(table: tables.Table, *rows: dict[str, Any]) -> pl.DataFrame:
    """Rows of which only some columns matter."""
    names = [(column.name, _default(column)) for column in table.columns]
    return table.frame([{name: row.get(name, default) for name, default in names} for row in rows])


def write_store(root: Path, texts: dict[str, str] = TEXTS, **pair: Any) -> UPath:
    """``q1`` accepted and mined, ``q2`` rejected, ``q3`` accepted and lost, ``q4`` unjudged, ``x...`` no valid pair.

    Args:
        root: where.
        texts: segment to its text.
        pair: columns that every generated pair has instead.
    """
    documents = [
        {"document_id": key, "path": f"{key}.md", "title": f"Title {key}", "text": "x", "bytes": 9, "batch": "b1"}
        | {"modified_at": datetime(2026, 1, 1, tzinfo=UTC), "deleted": False, "blocks": []}
        for key in sorted(set(DOCUMENTS.values()))
    ]
    pairs = [
        pair_row("q1aa", LAMP, "s2"),
        pair_row("q2aa", TECHNICIAN, "s3"),
        pair_row("q3aa", FEE, "s2", "s5"),
        pair_row("q4aa", "When does the pump stop?", "s1"),
    ]
    pairs = [{**row, **pair} for row in pairs]
    decided = {"accepted": True, "reason": "accepted", "overall": 9.0, "round_trip_rank": 2}
    no = {"accepted": False, "reason": "clarity", "detail": "4, bound 6", "overall": 6.0}
    mined = {"positive_segment_ids": ["s2"], "positive_similarities": [0.8], "ceiling": 0.76}
    mined |= {"negative_segment_ids": ["s3", "gone"], "negative_similarities": [0.7, 0.5]}
    result = {"query_set": "generated", "base_rank": 1, "tuned_rank": None, "base_first": "s5", "tuned_first": "s4"}
    result |= {"bm25_rank": 3, "bm25_ndcg_10": 0.5, "bm25_first": ""}
    label = UNSAID | {"qa_id": "label1", "origin": "labelled", "label_set": "people", "question": "What costs a fee?"}
    label |= {"hop_count": 1, "hops": [{"hop_number": 1, "segment_ids": ["s5"], "summary": ""}]}
    label |= {"segment_ids": ["s5"], "document_ids": ["d2"]}
    kept = [name for name in pairs[0] if name in tables.QA_DATASET.schema]
    accepted = [UNSAID | {name: row[name] for name in kept} | {"origin": "generated"} for row in (pairs[0], pairs[2])]
    vague = {"clarity": 4.0, "overall": 6.0, "clarity_justification": "vague"}
    frames = {
        "documents/b1": tables.DOCUMENTS.frame(documents),
        "segments/b1": material.segments(texts),
        "qa_pairs/b1": material.pairs(*pairs),
        "rejected_pairs/b1": filled(
            tables.REJECTED_PAIRS,
            *[{"batch": "b1", "segment_ids": ["s4"], "reason": "too_short", "detail": "form", "raw": "Why? 7"}] * 2,
        ),
        "qa_scores/b1": tables.QA_SCORES.frame([score_row("q1aa"), score_row("q2aa", **vague), score_row("q3aa")]),
        "qa_decisions": filled(
            tables.QA_DECISIONS,
            {"qa_id": "q1aa", **decided},
            {"qa_id": "q2aa", **decided, **no},
            {"qa_id": "q3aa", **decided},
        ),
        "corpus": material.corpus(texts),
        "qa_dataset": tables.QA_DATASET.frame([*accepted, label]),
        "dataset_split": filled(
            tables.DATASET_SPLIT, {"qa_id": "q1aa", "split": "train"}, {"qa_id": "q3aa", "split": "test"}
        ),
        "hard_negatives": filled(tables.HARD_NEGATIVES, {"qa_id": "q1aa", "question": LAMP, **mined}),
        "training_examples": filled(tables.TRAINING_EXAMPLES, {"example_id": "e1", "qa_id": "q1aa"}),
        "question_results": filled(
            tables.QUESTION_RESULTS,
            {"query_id": "q3aa", "question": FEE, **result, "outcome": "lost", "change": -0.4},
            {"query_id": "p1", "question": "pump <b>stops</b>", "query_set": "people", "outcome": "won", "change": 0.2},
            {"query_id": "p2", "question": "fee", "query_set": "people", "outcome": "lost", "change": -0.1},
        ),
    }
    for name, frame in frames.items():
        path = root / "tables" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(path)
    used = pl.DataFrame({"segment_id": ["s2", "s3"], "qa_id": ["q1aa", "q1aa"]})
    path = Path(str(trained_on_path(UPath(root), "v2")))
    path.parent.mkdir(exist_ok=True)
    used.write_parquet(path)
    return UPath(root)


MODELS = [Model("tuned", "1", {"training_examples": "older"}), Model("tuned", "2", {"training_examples": "v2"})]


@contextmanager
def inspected(store: UPath, *, told: list[str] | None = None, **inspection: Any) -> Iterator[str]:
    """The address of an inspector over a store while the block runs; ``told`` grows with each correction."""
    settings = Settings(
        paths=Paths(store=Path(str(store))),
        inspection=Inspection.model_validate({"port": "auto", "reviewer": "Eva", **inspection}),
    )

    def models() -> Sequence[Model]:
        return MODELS

    neighbours = Neighbours(models, lambda: (told if told is not None else []).append("reviewed"))
    listener = bind(settings.inspection)
    config = uvicorn.Config(create_inspector(settings, neighbours), lifespan="off", ws="none", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
