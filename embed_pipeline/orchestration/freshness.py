"""Is an asset made from what is there now: so that a command repeats nothing whose inputs and code are unchanged.

Every materialization records a fingerprint of the data versions that it was made from, of its table's form and of its
code version, which holds the settings and prompts that matter to it. Dagster's own staleness, which the UI shows, knows
no forms and stops looking at fan-ins of a hundred partitions and more.
"""

import hashlib
from collections.abc import Iterable

import dagster as dg

from embed_pipeline import tables
from embed_pipeline.orchestration.partitions import document_batches

FINGERPRINT = "made_from"
_PAGE = 1000


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
