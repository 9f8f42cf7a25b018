"""Whether an asset is current (code versions, fingerprints, failed blocking checks), and what settings say of it."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
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
from embed_pipeline.synthesis.example_queries import ExampleQueries
from embed_pipeline.training_data.pair_sources import labels_version

FINGERPRINT = "made_from"
"""Metadata of a materialization: the hash of what it was made from."""
DATA_VERSION = "dagster/data_version"
"""Dagster's tag of a materialization: the version of its content."""
INPUT_DATA_VERSION = "dagster/input_data_version/"
"""Dagster's tags of a materialization: this, then an input's name, hold the version of the input that it read."""
_PAGE_EVENTS = 1000
_PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "document_artifacts": ARTIFACT_PROMPTS,
        "qa_pairs": (*COMPLETION_PROMPTS, *STRUCTURED_PROMPTS),
        "qa_scores": JUDGE_PROMPTS,
    }
)
# Steps that read the files of training_data.label_sets.
_LABELLED = ("corpus", "qa_dataset", "hard_negatives")
_PAGES: Mapping[str, str] = MappingProxyType(
    {
        "documents": "/documents",
        "segments": "/segments",
        "corpus": "/segments",
        "qa_pairs": "/?origin=generated",
        "rejected_pairs": "/?state=invalid",
        "qa_scores": "/?origin=generated&sort=overall",
        "qa_dataset": "/?state=accepted",
        "qa_decisions": "/?state=rejected",
        "dataset_split": "/?split=train&split=dev&split=test",
        "hard_negatives": "/?split=train",
        "training_examples": "/?split=train",
        "retrieval_evaluation": "/evaluation",
        "question_results": "/evaluation?outcome=lost",
    }
)
"""Asset to the inspection page of what it holds."""
_WARNED_WHEN_OLD = ("corpus", "deployment")


def fingerprint(
    instance: dg.DagsterInstance,
    assets: dg.AssetsDefinition,
    key: dg.AssetKey,
    batch: str | None,
    read: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Hash of the asset's code version, its table's form and the newest data version of everything that it reads.

    Args:
        instance: where materializations are recorded.
        assets: the definition of the asset.
        key: the asset.
        batch: its partition; None for an unpartitioned one, which reads all batches of its partitioned inputs.
        read: input to the version of it that the step read, where that need not be the newest.
    """
    table = tables.TABLES.get(key.path[-1])
    parts = [str(assets.code_versions_by_key.get(key)), table.form if table else ""]
    for dependency in sorted(assets.asset_deps[key], key=str):
        name = dependency.path[-1]
        versions: Mapping[str | None, str] = {None: read[name]} if name in read else data_versions(instance, dependency)
        wanted = [batch] if batch is not None and batch in versions else sorted(versions, key=str)
        parts += [f"{dependency.to_user_string()} {part} {versions[part]}" for part in wanted]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def is_current(instance: dg.DagsterInstance, assets: dg.AssetsDefinition, batch: str | None) -> bool:
    """True where every asset of the definition was made from its present inputs by its present code version."""
    return all(
        _recorded(instance, key, batch) == fingerprint(instance, assets, key, batch)
        for key in sorted(assets.keys, key=str)
    )


def data_versions(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str | None, str]:
    """Newest data version of every partition, or of an unpartitioned asset under None.

    Batches that are no longer partitions are left out.
    """
    batches = set(instance.get_dynamic_partitions(str(document_batches.name)))
    versions: dict[str | None, str] = {}
    for event in materializations(instance, key):
        part, version = event.partition, (event.tags or {}).get(DATA_VERSION)
        if part not in versions and version and (part is None or part in batches):
            versions[part] = version
    return versions


def materializations(instance: dg.DagsterInstance, key: dg.AssetKey) -> Iterator[dg.AssetMaterialization]:
    """Every materialization of an asset, newest first."""
    yield from (event for _, event in materializations_by_run(instance, key))


def materializations_by_run(
    instance: dg.DagsterInstance, key: dg.AssetKey
) -> Iterator[tuple[str, dg.AssetMaterialization]]:
    """Every materialization of an asset, newest first, each with the id of its run, which is blank outside of runs."""
    cursor = None
    while True:
        page = instance.fetch_materializations(key, limit=_PAGE_EVENTS, cursor=cursor)
        yield from ((each.run_id, each.asset_materialization) for each in page.records if each.asset_materialization)
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
    """A step's code version: its method and settings, and the prompts and files of people's that it reads.

    Raises:
        ExampleQueriesError: ``synthesis.example_queries`` cannot be read.
    """
    parts = [made_by(step, settings)]
    if step in _PROMPTS:
        parts.append(prompt_version(*_PROMPTS[step]))
    if step in _LABELLED:
        parts.append(labels_version(settings))
    if step == "qa_pairs" and (examples := ExampleQueries.of(settings)):
        parts.append(examples.version)
    if step == "base_comparison" and settings.embedding.candidates:
        # Without candidates, what they would be measured by decides nothing.
        parts.append(settings.digest("retrieval_evaluation"))
    return "-".join(parts)


def with_settings(assets: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """``assets`` (one step) with its code version, and a freshness policy where the UI is to warn of old data."""
    version = code_version(assets.op.name, settings)
    days = settings.orchestration.fresh_days
    fresh = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=2 * days), warn_window=timedelta(days=days))
    return assets.map_asset_specs(
        lambda spec: spec.replace_attributes(
            code_version=version,
            freshness_policy=fresh if spec.key.to_user_string() in _WARNED_WHEN_OLD else None,
            metadata={**spec.metadata, **_inspected(spec.key.to_user_string(), settings)},
        )
    )


def _inspected(asset: str, settings: Settings) -> dict[str, dg.UrlMetadataValue]:
    """Where the inspection page shows what the asset holds."""
    address = settings.inspection.address
    return {"inspect": dg.MetadataValue.url(address + _PAGES[asset])} if address and asset in _PAGES else {}


def failed_gates(instance: dg.DagsterInstance, graph: AssetGraph, keys: Collection[dg.AssetKey]) -> list[str]:
    """The blocking checks of ``keys`` that failed in their last run, a sentence each, in order of their names."""
    found = []
    for check in sorted(graph.asset_check_keys, key=str):
        if check.asset_key in keys and graph.get_check_spec(check).blocking:
            record = instance.get_latest_asset_check_evaluation_record(check)
            event = record.event.dagster_event if record and record.event else None
            evaluation = event.event_specific_data if event else None
            if isinstance(evaluation, dg.AssetCheckEvaluation) and not evaluation.passed:
                found.append(failed_check(evaluation))
    return found


def failed_check(evaluation: dg.AssetCheckEvaluation) -> str:
    """A failed check in words."""
    failures = evaluation.metadata.get("failures")
    listed = failures.value if isinstance(failures, dg.JsonMetadataValue) else None
    said = "; ".join(map(str, listed)) if isinstance(listed, list) else evaluation.description
    where = evaluation.asset_key.to_user_string()
    return f"check {evaluation.check_name} of {where} failed: {said or 'see the check in the Dagster UI'}"
