"""Column lineage along the graph's edges; plots that the UI shows without a click; samples that can be read."""

from __future__ import annotations

import re
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import dagster as dg
import polars as pl
import pytest

from embed_pipeline.definitions import defs
from embed_pipeline.orchestration.presentation import bars, column_lineage, counts, curves, histograms, readable_sample
from embed_pipeline.tables import TABLES

GRAPH = defs.resolve_asset_graph()


def lineage(table: str) -> dict[str, set[str]]:
    """Each column of the table to what it comes from, as the UI shows it."""
    metadata = column_lineage(dg.AssetKey(table), GRAPH.get(dg.AssetKey(table)).parent_keys)
    shown = metadata.get("dagster/column_lineage", dg.TableColumnLineage({}))
    return {
        column: {f"{dep.asset_key.to_user_string()}.{dep.column_name}" for dep in deps}
        for column, deps in shown.deps_by_column.items()
    }


@pytest.mark.parametrize("table", TABLES)
def test_columns_come_from_where_the_graph_says(table):
    parents = {key.to_user_string() for key in GRAPH.get(dg.AssetKey(table)).parent_keys}
    assert TABLES[table].sources.keys() <= set(TABLES[table].schema.names())
    for sources in lineage(table).values():
        for source, column in (place.split(".") for place in sources):
            assert source in parents
            assert column in TABLES[source].schema


def test_a_column_comes_from_those_of_its_name_or_from_those_that_the_table_names():
    pairs = lineage("qa_pairs")
    assert pairs["question"] == {"segments.text", "document_artifacts.text"}
    assert pairs["batch"] == {"documents.batch", "segments.batch", "document_artifacts.batch"}
    assert "qa_id" not in pairs
    assert lineage("training_examples")["negative_segment_ids"] == {"hard_negatives.negative_segment_ids"}
    assert lineage("corpus")["title"] == {"documents.title"}
    assert lineage("rejected_judgements").keys() == {"segment_ids", "batch"}


def test_what_is_made_of_whole_tables_or_is_no_table_has_no_lineage():
    figures = {"base_comparison", "base_model", "retrieval_evaluation", "fusion_weights", "champion_comparison"}
    first = {"documents", "rejected_documents", "boilerplate", "qa_reviews"}
    assert {table for table in TABLES if not lineage(table)} == figures | first | {"deployment"}
    assert column_lineage(dg.AssetKey("finetuned_model"), [dg.AssetKey("training_examples")]) == {}


SHOWN_AT_ONCE = 1000
"""Length of Markdown from which on the installed UI hides it behind [Show Markdown]."""
SCORES = [1 + 9 * (step * 37 % 100) / 100 for step in range(500)]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (counts(pl.Series("hops", [1, 1, 3, None])), ["1 2", "3 1"]),
        (bars({"a long <name> & more" * 2: 0.5, "tuned": -1.0} | {str(n): 1000 * n for n in range(10)}), None),
        (histograms(dict.fromkeys(("relevance", "accuracy", "context support", "clarity"), SCORES), 1, 10), None),
        (histograms({"similarity": [0.5, 0.9]}, 0.4, 1, mark=0.95), ["similarity 0.4-1"]),
        (curves({"loss": [(n, 9 / (n + 1)) for n in range(999)], "dev": [(7, 0.5)], "none": []}),
         ["loss 0.00901-9", "dev 0.5-0.5"]),
    ],
)  # fmt: skip
def test_a_plot_is_short_enough_to_be_shown_without_a_click(value, texts):
    assert len(value.value) < SHOWN_AT_ONCE
    drawn = ET.fromstring(unquote(re.fullmatch(r"!\[plot\]\(<data:image/svg\+xml,(.+)>\)", value.value)[1]))
    found = [part.text for part in drawn if part.tag.endswith("text")]
    assert found == texts or texts is None
    assert "nan" not in value.value


def test_what_there_is_none_of_is_not_drawn_and_many_bars_are_a_table():
    assert bars({}) is counts(pl.Series("x", [], pl.String)) is histograms({"x": []}, 0, 1) is curves({"x": []}) is None
    many = bars({str(n): n for n in range(13)})
    assert [record.data["value"] for record in many.records] == [str(n) for n in range(13)]


def test_a_sample_has_the_columns_that_can_be_read():
    frame = pl.DataFrame({"batch": ["b"] * 30, "text": [f"t{n}" for n in range(30)], "ids": [["s"]] * 30})
    sample = readable_sample(frame, 1)
    assert [(len(sample.records), column.name) for column in sample.schema.columns] == [(10, "text")]
    assert [column.name for column in readable_sample(frame[:1], 1).schema.columns] == ["batch", "text"]
