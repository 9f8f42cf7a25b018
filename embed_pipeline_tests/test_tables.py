"""Tables are validated, and equal content has an equal hash."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.tables import TableError, content_hash, validate


def row(**changes):
    return {
        "segment_id": "s1",
        "document_id": "d1",
        "batch": "b",
        "position": 0,
        "heading_path": "",
        "text": "words",
        "token_count": 1,
        "unknown_tokens": 0,
        "repeated": 0,
        "withheld": "",
        **changes,
    }


def test_a_frame_that_fits_comes_back_in_stored_order():
    frame = tables.SEGMENTS.frame([row()])
    shuffled = frame.select(reversed(frame.columns))
    assert validate(shuffled, tables.SEGMENTS).columns == [c.name for c in tables.SEGMENTS.columns]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.drop("text"), "missing columns \\['text'\\]"),
        (lambda f: f.with_columns(extra=1), "unknown columns \\['extra'\\]"),
        (lambda f: f.with_columns(position=pl.lit("0")), "column position is String, expected Int64"),
        (lambda f: f.with_columns(text=pl.lit(None, dtype=pl.String)), "column text has 1 nulls"),
        (lambda f: pl.concat([f, f]), "key \\('segment_id',\\) repeats, first \\('s1',\\)"),
    ],
)
def test_what_does_not_fit_is_named(change, says):
    with pytest.raises(TableError, match=f"table segments: .*{says}"):
        validate(change(tables.SEGMENTS.frame([row()])), tables.SEGMENTS)


def test_a_value_that_is_not_finite_is_refused():
    values = {"query_set": "generated", "slice": "all", "system": "base", "metric": "nDCG", "k": 10, "queries": 1}
    figures = {"value": float("nan"), "difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}
    with pytest.raises(TableError, match="column value has values that are not finite"):
        tables.RETRIEVAL_EVALUATION.frame([{**values, **figures}])


ARTIFACT = {"document_id": "d1", "batch": "b", "kind": "concept", "text": "pump", "segment_ids": [], "extractor": "x"}
PAIR = {"question": "?", "answer": "!", "query_type": "contextual", "reasoning_type": "factual", "complexity": 1}
PAIR |= {"qa_id": "q1", "batch": "b", "hop_count": 1, "hops": [], "segment_ids": [], "document_ids": []}
PAIR |= {"style": "question", "generator": "g", "prompt_version": "v"}


@pytest.mark.parametrize(
    ("table", "values", "says"),
    [
        (tables.DOCUMENT_ARTIFACTS, {**ARTIFACT, "kind": "mood"}, r"kind has 'mood', expected one of \['concept', .*"),
        (tables.QA_PAIRS, {**PAIR, "style": "rhyme"}, r"style has 'rhyme', expected one of \['question', .*"),
        (tables.QA_PAIRS, {**PAIR, "query_type": "labelled"}, "query_type has 'labelled', expected one of "),
        (tables.QA_PAIRS, {**PAIR, "query_type": None}, "query_type has 1 nulls"),
        (tables.QA_PAIRS, {**PAIR, "complexity": 6}, "complexity has 6, expected 1 to 5"),
        (tables.QA_PAIRS, {**PAIR, "hop_count": 0}, "hop_count has 0, expected 1 to inf"),
    ],
)
def test_a_value_that_the_column_may_not_have_is_named(table, values, says):
    with pytest.raises(TableError, match=f"table {table.name}: column {says}"):
        table.frame([values])


def test_a_pair_that_nobody_generated_or_judged_has_nulls():
    unsaid = {column.name: None for column in tables.QA_DATASET.columns if column.nullable}
    known = {name: PAIR[name] for name in ("qa_id", "question", "hop_count", "hops", "segment_ids", "document_ids")}
    frame = tables.QA_DATASET.frame([{**unsaid, **known, "origin": "labelled"}])
    assert {"overall", "round_trip_rank", "batch", "side", "query_type", "generator"} <= unsaid.keys()
    with pytest.raises(TableError, match="column overall has 0.5, expected 1 to 10"):
        validate(frame.with_columns(overall=pl.lit(0.5)), tables.QA_DATASET)


def test_descriptions_show_the_values_that_a_column_may_have():
    listed = [column for table in tables.TABLES.values() for column in table.columns if column.values]
    assert len(listed) > 10
    for column in listed:
        assert all(value in column.description for value in column.values), column


def test_a_tables_form_is_what_validation_asks_of_it():
    table = tables.QA_PAIRS
    style = next(column for column in table.columns if column.name == "style")

    def with_style(column: tables.Column) -> tables.Table:
        return replace(table, columns=tuple(column if c is style else c for c in table.columns))

    assert with_style(replace(style, description="Otherwise said.")).form == table.form
    others = [replace(style, nullable=True), replace(style, values=()), replace(style, name="manner")]
    assert len({table.form, *(with_style(other).form for other in others)}) == 4


def test_a_row_that_lacks_a_column_is_refused():
    lacking = row()
    del lacking["text"]
    with pytest.raises(TableError, match="text"):
        tables.SEGMENTS.frame([lacking])


def test_the_hash_is_of_content_and_order():
    frame = tables.SEGMENTS.frame([row(), row(segment_id="s2")])
    rechunked = pl.concat([frame[:1], frame[1:]], rechunk=False)
    assert content_hash(frame) == content_hash(rechunked)
    assert content_hash(frame) != content_hash(frame.reverse())
    assert content_hash(frame) != content_hash(frame.with_columns(position=pl.lit(1, dtype=pl.Int64)))


def test_every_table_says_what_its_columns_mean():
    for name, table in tables.TABLES.items():
        assert name == table.name
        assert table.description.endswith((".", "`."))
        assert all(column.description for column in table.columns)
        assert set(table.key) <= set(table.schema.names())
