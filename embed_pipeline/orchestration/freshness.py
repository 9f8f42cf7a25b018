"""Is an asset made from what is there now: code versions, fingerprints, and blocking checks that failed."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from types import MappingProxyType

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from embed_pipeline import tables
from embed_pipeline.llm.prompts import (
    ARTIFACT_PROMPTS,
    COMPLETION_PROMPTS,
    JUDGE_PROMPTS,
    STRUCTURED_PROMPTS,
    prompt_version,
)
from embed_pipeline.methods import made_by
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.pair_sources import labels_version

FINGERPRINT = "made_from"
_PAGE = 1000
_PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "document_artifacts": ARTIFACT_PROMPTS,
        "qa_pairs": (*COMPLETION_PROMPTS, *STRUCTURED_PROMPTS),
        "qa_scores": JUDGE_PROMPTS,
    }
)
# Steps that read the files of training_data.label_sets.
_LABELLED = ("corpus", "qa_dataset", "hard_negatives")
_KEPT_FRESH = ("corpus", "deployment")


def fingerprint(instance: dg.DagsterInstance, assets: dg.AssetsDefinition, key: dg.AssetKey, batch: str | None) -> str:
    """Hash of the asset's code version, its table's form and the newest data version of everything that it reads.

    Args:
        instance: where materializations are recorded.
        assets: the definition of the asset.
        key: the asset.
        batch: its partition; None for an unpartitioned one, which reads all batches of its partitioned inputs.
    """
    table = tables.TABLES.get(key.path[-1])
    parts = [str(assets.code_versions_by_key.get(key)), table.form if table else ""]
    for dependency in sorted(assets.asset_deps[key], key=str):
        versions = data_versions(instance, dependency)
        wanted = [batch] if batch is not None and batch in versions else sorted(versions, key=str)
        parts += [f"{dependency.to_user_string()} {part} {versions[part]}" for part in wanted]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def is_current(instance: dg.DagsterInstance, assets: dg.AssetsDefinition, batch: str | None) -> bool:
    """True where every asset of the definition was made from what is there now."""
    return all(
        _recorded(instance, key, batch) == fingerprint(instance, assets, key, batch)
        for key in sorted(assets.keys, key=str)
    )


def data_versions(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str | None, str]:
    """Newest data version of every partition; of an unpartitioned asset under None.

    A batch that is no partition any more is left out.
    """
    batches = set(instance.get_dynamic_partitions(str(document_batches.name)))
    versions: dict[str | None, str] = {}
    for record in _materializations(instance, key):
        part = record.partition_key
        version = (
            (record.asset_materialization.tags or {}).get("dagster/data_version")
            if record.asset_materialization
            else None
        )
        if part not in versions and version and (part is None or part in batches):
            versions[part] = version
    return versions


def _materializations(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterable[dg.EventLogRecord]:
    cursor = None
    while True:
        page = instance.fetch_materializations(key, limit=_PAGE, cursor=cursor)
        yield from page.records
        if not page.has_more:
            return
        cursor = page.cursor


def _recorded(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str | None) -> str | None:
    records = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[batch]) if batch is not None else key
    page = instance.fetch_materializations(records, limit=1)
    event = page.records[0].asset_materialization if page.records else None
    value = event.metadata.get(FINGERPRINT) if event else None
    return str(value.value) if value is not None else None


def code_version(step: str, settings: Settings) -> str:
    """What a step is made by, with the prompts and label files in play."""
    parts = [made_by(step, settings)]
    if step in _PROMPTS:
        parts.append(prompt_version(*_PROMPTS[step]))
    if step in _LABELLED:
        parts.append(labels_version(settings))
    return "-".join(parts)


def with_settings(assets: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """``assets``, one step, with its code version, and a freshness policy where the UI warns of what is old."""
    version = code_version(assets.op.name, settings)
    days = settings.orchestration.fresh_days
    fresh = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=2 * days), warn_window=timedelta(days=days))
    return assets.map_asset_specs(
        lambda spec: spec.replace_attributes(
            code_version=version, freshness_policy=fresh if spec.key.to_user_string() in _KEPT_FRESH else None
        )
    )


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
