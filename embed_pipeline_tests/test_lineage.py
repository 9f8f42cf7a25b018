from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.lineage import LineageError, Model, ReadTable, format_trace, stored_tables, trace
from embed_pipeline.reviews import review_row
from embed_pipeline.storage import StorageError
from embed_pipeline_tests.synthesis import material


def _document(key: str, batch: str = "b1", **changes: Any) -> dict[str, Any]:
    row = {"document_id": key, "path": f"{key}.md", "title": f"Title {key}", "text": "x", "bytes": 1, "batch": batch,
           "blocks": []}  # fmt: skip
    return {**row, "modified_at": datetime(2026, 1, 1, tzinfo=UTC), "deleted": False, **changes}


def _default(column: tables.Column) -> Any:
    if column.nullable or column.values:
        return None if column.nullable else column.values[0]
    return [] if isinstance(column.dtype, pl.List) else (0 if column.dtype.is_numeric() else "")


def _filled(table: tables.Table, **known: Any) -> pl.DataFrame:
    return table.frame([{column.name: known.get(column.name, _default(column)) for column in table.columns}])


def reading(frames: dict[str, pl.DataFrame]) -> ReadTable:
    return lambda name: frames[name].lazy() if name in frames else None


PAIRS = material.pairs(
    material.pair_row("abcd01", "Does a red lamp add to the fee?", "s2", "s5"),
    material.pair_row("abcd02", "What does a red lamp mean?", "s2"),
)
MINED = {
    "positive_segment_ids": ["s2", "s5"], "positive_similarities": [0.8, 0.7],
    "negative_segment_ids": ["s3", "gone"], "negative_similarities": [0.6, 0.5],
}  # fmt: skip
DECISION = {"qa_id": "abcd01", "batch": "b1", "question": "?", "accepted": True, "reason": "accepted", "detail": ""}
DECISION |= {"overall": 9.0, "round_trip_rank": 2, "duplicate_of": None}
FRAMES = {
    "documents": tables.DOCUMENTS.frame([_document("d1"), _document("d2"), _document("d9")]),
    "segments": material.segments(),
    "qa_pairs": PAIRS,
    "qa_scores": tables.QA_SCORES.frame([material.score_row("abcd01", clarity_justification="names both subjects")]),
    "qa_decisions": tables.QA_DECISIONS.frame([DECISION]),
    "corpus": material.corpus(),
    "dataset_split": _filled(tables.DATASET_SPLIT, qa_id="abcd01", split="train"),
    "hard_negatives": _filled(tables.HARD_NEGATIVES, qa_id="abcd01", **MINED),
    "training_examples": _filled(tables.TRAINING_EXAMPLES, qa_id="abcd01", example_id="e1"),
}


def _models() -> list[Model]:
    version = tables.content_hash(FRAMES["training_examples"])
    return [Model("tuned", "1", {"training_examples": "older"}), Model("tuned", "2", {"training_examples": version})]


def test_the_chain_is_whole() -> None:
    found = trace("abcd01", reading(FRAMES), _models())
    assert [row["path"] for row in found.documents] == ["d1.md", "d2.md"]
    assert [row["segment_id"] for row in found.segments] == ["s2", "s5"]
    assert found.scores is not None
    assert found.split is not None
    assert found.positive_similarities == {"s2": 0.8, "s5": 0.7}
    assert [(n.segment_id, n.path, n.similarity) for n in found.negatives] == [
        ("s3", "d1.md", 0.6),
        ("gone", "no longer in the corpus", 0.5),
    ]
    assert found.examples == ["e1"]
    assert [model.version for model in found.models] == ["2"]


def test_the_text_shows_every_link() -> None:
    text = format_trace(trace("abcd01", reading(FRAMES), _models()))
    for part in (
        "d1.md  version d1, batch b1: Title d1",
        "A red lamp on the pump means that its filter is blocked.",
        "1. on s2: A red lamp",
        "2. on s5: A late payment",
        "Q: Does a red lamp add to the fee?",
        "clarity 9: names both subjects",
        "rank of its sources: base 1, BM25 1",
        "DECISION  accepted",
        "SPLIT  train",
        "0.600  s3  d1.md",
        "TRAINED ON  1 examples; models: tuned version 2",
    ):
        assert part in text, part


def test_a_label_shows_its_set_and_the_passages_that_it_brings_along() -> None:
    unsaid = {column.name: None for column in tables.QA_DATASET.columns if column.nullable}
    label = unsaid | {"qa_id": "beef01", "origin": "labelled", "label_set": "people", "side": "test", "hop_count": 1}
    label |= {"question": "What costs a late payment?", "segment_ids": ["s2", "p1"], "document_ids": ["d1", "dp"]}
    label |= {"hops": [{"hop_number": 1, "segment_ids": ["s2", "p1"], "summary": ""}]}
    passage = {"segment_id": "p1", "document_id": "dp", "path": "labels/people/p1", "title": "", "position": 0}
    passage |= {"heading_path": "", "text": "A fee of two percent.", "token_count": 5}
    passage |= {"batch": None, "label_set": "people"}
    frames = FRAMES | {
        "qa_dataset": tables.QA_DATASET.frame([label]),
        "corpus": pl.concat([FRAMES["corpus"], tables.CORPUS.frame([passage])]),
    }
    text = format_trace(trace("beef", reading(frames)))
    for part in (
        "d1.md  version d1, batch b1: Title d1",
        "labels/people/p1  version dp, label set people: ",
        "A fee of two percent.",
        "QUESTION  beef01  (labelled, label set people, side test given)",
        "SCORES  none: only generated pairs are judged",
    ):
        assert part in text, part
    assert "A: " not in text
    assert "None" not in text


def test_what_is_not_there_yet_is_said() -> None:
    only = {name: FRAMES[name] for name in ("documents", "segments", "qa_pairs")}
    found = trace("abcd02", reading(only))
    assert (found.scores, found.decision, found.split, found.negatives, found.examples) == (None, None, None, [], [])
    text = format_trace(found)
    assert "SCORES  none" in text
    assert "SPLIT  none: not in the dataset" in text


def test_each_document_and_segment_stands_once_in_the_pairs_own_batch() -> None:
    copies = FRAMES | {
        "documents": tables.validate(
            pl.concat([_frame(_document("d1", "b0", path="copy.md")), FRAMES["documents"]]).unique("path"),
            tables.DOCUMENTS,
        ),
        "segments": pl.concat([FRAMES["segments"].with_columns(batch=pl.lit("b0")), FRAMES["segments"]]),
    }
    found = trace("abcd01", reading(copies))
    assert [row["path"] for row in found.documents] == ["d1.md", "d2.md"]
    assert [row["batch"] for row in found.segments] == ["b1", "b1"]


def _frame(row: dict[str, Any]) -> pl.DataFrame:
    return tables.DOCUMENTS.frame([row])


def test_the_beginning_of_an_id_is_enough_where_it_is_unique() -> None:
    assert trace("abcd02", reading(FRAMES)).pair["qa_id"] == "abcd02"
    with pytest.raises(LineageError, match=r"2 pairs have an id that starts with 'abcd': abcd01, abcd02"):
        trace("abcd", reading(FRAMES))
    with pytest.raises(LineageError, match="0 pairs have an id that starts with 'zzzz'"):
        trace("zzzz", reading(FRAMES))
    with pytest.raises(LineageError, match="at least its first 4 letters"):
        trace("ab", reading(FRAMES))
    with pytest.raises(LineageError, match="embed-pipeline sdg"):
        trace("abcd01", reading({}))


def test_tables_are_read_from_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    (folder / "qa_pairs").mkdir(parents=True)
    PAIRS.head(1).write_parquet(folder / "qa_pairs" / "b1.parquet")
    PAIRS.tail(1).write_parquet(folder / "qa_pairs" / "b2.parquet")
    FRAMES["corpus"].write_parquet(folder / "corpus.parquet")
    read = stored_tables(tmp_path)
    pairs, corpus = read("qa_pairs"), read("corpus")
    assert pairs is not None
    assert corpus is not None
    assert (pairs.collect().height, corpus.collect().height) == (2, 5)
    assert read("segments") is None
    FRAMES["corpus"].drop("path").write_parquet(folder / "corpus.parquet")
    with pytest.raises(StorageError, match="stored by another version .*missing columns.*embed-pipeline sdg"):
        read("corpus")
    (folder / "corpus.parquet").write_bytes(b"words")
    with pytest.raises(StorageError, match="is damaged"):
        read("corpus")


def test_what_people_said_is_told_in_order() -> None:
    said = [
        review_row("abcd01", "reject", "Eva", comment="two questions in one"),
        review_row("abcd01", "withdraw", "Ivo"),
    ]
    frames = FRAMES | {"qa_reviews": tables.QA_REVIEWS.frame(said[::-1])}
    lines = format_trace(trace("abcd01", reading(frames))).splitlines()
    assert [line.partition("UTC ")[2] for line in lines[lines.index("REVIEWS") + 1 :][:2]] == [
        "Eva: reject two questions in one",
        "Ivo: withdraw",
    ]


def test_what_a_document_says_is_shown_and_not_acted_upon() -> None:
    escape, bell = "\x1b", "\x07"
    hostile = f"{escape}]0;title{bell}[red]x[/red]\nTRAINED ON  all models\r{escape}[2J"
    frames = {
        **FRAMES,
        "documents": tables.DOCUMENTS.frame([_document("d1", title=hostile, path=f"{hostile}.md"), _document("d2")]),
        "segments": material.segments().with_columns(text=pl.lit(hostile), heading_path=pl.lit(hostile)),
        "qa_pairs": PAIRS.with_columns(question=pl.lit(hostile), answer=pl.lit(hostile)),
    }
    shown = format_trace(trace("abcd01", reading(frames), _models()))
    assert not set(shown) & {escape, bell, "\r"}
    assert "[red]x[/red]" in shown
    assert [line for line in shown.splitlines() if line.startswith("TRAINED ON")] == [shown.splitlines()[-1]]
