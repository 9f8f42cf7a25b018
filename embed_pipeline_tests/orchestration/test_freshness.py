"""What is current: inputs, code, and the form of the stored table."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import dagster as dg
import pytest

from embed_pipeline import tables
from embed_pipeline.orchestration.freshness import FINGERPRINT, fingerprint, is_current
from embed_pipeline.orchestration.jobs import STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_tables_name_the_command_that_makes_them(stage):
    made = [key.path[-1] for assets in STAGES[stage] for key in assets.keys if key.path[-1] in tables.TABLES]
    assert {tables.TABLES[name].stage for name in made} <= {stage}


def test_a_table_stored_in_another_form_is_not_current(monkeypatch):
    [examples] = [assets for assets in STAGES["prep"] if assets.key.to_user_string() == "training_examples"]
    with dg.DagsterInstance.ephemeral() as instance:
        recorded = {FINGERPRINT: fingerprint(instance, examples, examples.key, None)}
        instance.report_runless_asset_event(dg.AssetMaterialization(examples.key, metadata=recorded))
        assert is_current(instance, examples, None)
        table = tables.TRAINING_EXAMPLES
        other = replace(table, columns=(*table.columns, tables.Column("weight", table.columns[0].dtype, "Its weight.")))
        monkeypatch.setattr(tables, "TABLES", MappingProxyType({**tables.TABLES, table.name: other}))
        assert not is_current(instance, examples, None)
