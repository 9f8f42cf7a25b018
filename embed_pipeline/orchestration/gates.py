"""Which blocking checks failed when they ran last: what a later run must not go on from."""

from collections.abc import Collection

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph


def failed_gates(instance: dg.DagsterInstance, graph: AssetGraph, keys: Collection[dg.AssetKey]) -> list[str]:
    """The blocking checks of ``keys`` that failed when they ran last, a sentence each, in order of their names."""
    found = []
    for check in sorted(graph.asset_check_keys, key=str):
        if check.asset_key in keys and graph.get_check_spec(check).blocking:
            record = instance.get_latest_asset_check_evaluation_record(check)
            event = record.event.dagster_event if record and record.event else None
            evaluation = event.event_specific_data if event else None
            if isinstance(evaluation, dg.AssetCheckEvaluation) and not evaluation.passed:
                found.append(failed_check(check.name, check.asset_key, evaluation.description))
    return found


def failed_check(name: str, asset: dg.AssetKey, description: str | None) -> str:
    """A failed check in words."""
    where = asset.to_user_string()
    return f"check {name} of {where} failed: {description or 'see the check in the Dagster UI'}"
