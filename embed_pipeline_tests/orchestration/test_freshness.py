"""What is current stays current under settings that decide nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embed_pipeline.definitions import build_definitions
from embed_pipeline.orchestration.freshness import FINGERPRINT, fingerprint
from embed_pipeline.orchestration.jobs import STAGES
from embed_pipeline.orchestration.runs import StageRunner
from embed_pipeline.settings import Settings


def settings(store: Path, **groups: Any) -> Settings:
    return Settings.model_validate({"paths": {"store": store}, **groups})


def states(instance: dg.DagsterInstance, wanted: Settings) -> dict[str, str]:
    """Asset to its state, of those that are not per batch."""
    rows = StageRunner(build_definitions(wanted), instance, wanted).status()
    return {asset: state for _, asset, state, _ in rows if "batches" not in state}


def made(instance: dg.DagsterInstance, wanted: Settings) -> None:
    """Materialize everything over all batches under these settings, in name only."""
    definitions = build_definitions(wanted)
    for assets in (assets for stage in STAGES.values() for assets in stage if assets.partitions_def is None):
        for key in sorted(assets.keys, key=str):
            version = fingerprint(instance, definitions.resolve_assets_def(key), key, None)
            tags = {"dagster/data_version": key.to_user_string()}
            instance.report_runless_asset_event(
                dg.AssetMaterialization(key, metadata={FINGERPRINT: version}, tags=tags)
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({"llm": {"max_cost": 20}}, set()),
        ({"tracking": {"dagster_url": "http://host:3000"}}, set()),
        ({"embedding": {"device": "cpu"}, "training": {"processes": 2}}, set()),
        ({"gates": {"min_gain": 0.1, "min_segment_coverage": 0.5}}, set()),
        ({"adapter": {"share": 0.25}}, {"finetuned_model"}),
        ({"training": {"learning_rate": 1e-4}}, {"finetuned_model"}),
        ({"synthesis": {"min_overall": 8}}, {"qa_dataset", "qa_decisions"}),
        ({"release": {"max_int8_ndcg_delta": 0.01}}, {"onnx_precisions", "release"}),
    ],
)
def test_only_what_a_changed_setting_decides_is_stale(tmp_path: Path, changed: dict[str, Any], stale: set[str]) -> None:
    with dg.instance_for_test() as instance:
        made(instance, settings(tmp_path))
        assert set(states(instance, settings(tmp_path)).values()) == {"current"}
        found = states(instance, settings(tmp_path, **changed))
    assert {asset for asset, state in found.items() if state != "current"} == stale


def test_assets_of_the_set_link_to_their_page(tmp_path):
    def link(asset: str, **inspection: Any) -> str | None:
        definitions = build_definitions(settings(tmp_path, inspection=inspection))
        value = definitions.resolve_asset_graph().get(dg.AssetKey(asset)).metadata.get("inspect")
        return value.url if value else None

    assert link("qa_decisions") == "http://127.0.0.1:8010/?state=rejected"
    assert link("qa_decisions", url="https://qa.example/") == "https://qa.example/?state=rejected"
    assert link("qa_decisions", port="auto") is link("deployment") is None
