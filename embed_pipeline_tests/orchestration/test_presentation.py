"""Column lineage names tables and columns that exist, along edges that the graph has."""

from __future__ import annotations

import dagster as dg
import pytest

from embed_pipeline.definitions import defs
from embed_pipeline.orchestration.presentation import column_lineage
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
