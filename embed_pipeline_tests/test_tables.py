"""Tables are validated, and equal content has an equal hash."""

from __future__ import annotations

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
        "repeated": 0,
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
