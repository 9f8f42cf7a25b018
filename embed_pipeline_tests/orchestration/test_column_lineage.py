"""Column lineage names tables and columns that exist, along edges that the graph has."""

from __future__ import annotations

import dagster as dg
import pytest

from embed_pipeline import tables
from embed_pipeline.definitions import defs
from embed_pipeline.orchestration.column_lineage import SOURCES, column_lineage

GRAPH = defs.resolve_asset_graph()


@pytest.mark.parametrize("table", SOURCES)
def test_columns_come_from_where_the_graph_says(table):
    parents = {key.to_user_string() for key in GRAPH.get(dg.AssetKey(table)).parent_keys}
    for source, columns in SOURCES[table].items():
        assert source in parents
        assert columns.keys() <= set(tables.TABLES[table].schema.names())
        assert set(columns.values()) <= set(tables.TABLES[source].schema.names())


def test_every_table_that_is_made_from_tables_says_so():
    made = {
        name
        for name in tables.TABLES
        if any(key.to_user_string() in tables.TABLES for key in GRAPH.get(dg.AssetKey(name)).parent_keys)
    }
    assert made - SOURCES.keys() == {"retrieval_evaluation", "champion_comparison", "deployment"}, (
        "figures over all rows"
    )


def test_the_metadata_is_what_the_ui_reads():
    lineage = column_lineage("corpus")["dagster/column_lineage"]
    [dep] = lineage.deps_by_column["title"]
    assert (dep.asset_key.to_user_string(), dep.column_name) == ("documents", "title")
    assert column_lineage("deployment") == {}
