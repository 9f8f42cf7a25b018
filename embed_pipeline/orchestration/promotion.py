"""The history of the champion: every promotion, refusal and rollback, as events of one asset and in MLflow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from embed_pipeline.orchestration.presentation import OWNERS
from embed_pipeline.orchestration.store_lock import locked_store
from embed_pipeline.release.manifest import BundleError, Manifest, verify_bundle
from embed_pipeline.release.releases import current_version, has_release, promote, release_folder
from embed_pipeline.serving.process import confirm_release
from embed_pipeline.settings import Settings
from embed_pipeline.tracking import Tracker

CHAMPION = "champion"
_PROMOTED = "promoted"
_PAGE = 200

champion = dg.AssetSpec(
    CHAMPION,
    description="The release that is served. Its history holds every promotion, refusal and rollback, with the reason.",
    group_name="6_deploy",
    owners=OWNERS,
    kinds={"onnx", "mlflow"},
    deps=["deployment"],
)


def promote_release(
    context: dg.AssetExecutionContext, tracker: Tracker, settings: Settings, manifest: Manifest
) -> None:
    """Serve a release that passed every gate, and record that it took the place of the one before.

    Raises:
        ServingError, TrackingError, BundleError, StorageError: it was not possible; the release before stays.
    """
    before = current_version(settings.paths)
    name, version = manifest.mlflow["model"], manifest.mlflow["version"]
    with _in_service(tracker, settings, manifest, before):
        tracker.set_version_tags(name, version, {"decision": f"promoted {_now()}"})
        context.log_event(_event(_PROMOTED, manifest.version, before, "it passed every gate", context.run_id))


def record_refusal(
    context: dg.AssetExecutionContext, tracker: Tracker, manifest: Manifest, served: str | None, reasons: list[str]
) -> None:
    """Record that a release did not take the place of the one ``served``, and why."""
    why = "; ".join(reasons)
    tracker.set_version_tags(
        manifest.mlflow["model"], manifest.mlflow["version"], {"decision": f"refused {_now()}: {why}"}
    )
    metadata = _metadata("refused", served, None, why, context.run_id)
    context.log_event(dg.AssetObservation(CHAMPION, metadata={**metadata, "refused_version": manifest.version}))


def roll_back(instance: dg.DagsterInstance, tracker: Tracker, settings: Settings, version: str | None = None) -> str:
    """Serve an earlier release again, record it, and return its version: all of it, or nothing.

    Args:
        instance: where the history is.
        tracker: where the alias is.
        settings: ``paths`` says where the releases are.
        version: which; None: the one that was promoted before the present one.

    Raises:
        BundleError: there is no such release, or no earlier one, or its files are not those released.
        TrackingError: MLflow does not know its version, or the version never passed the gate.
        ServingError: the endpoint that was left running does not serve it.
        StoreBusyError: another command is at work on the store.
    """
    with locked_store(instance, settings.paths.store):
        now = current_version(settings.paths)
        target = version or _earlier(instance, settings, now)
        manifest = verify_bundle(release_folder(settings.paths, target))
        name, model_version = manifest.mlflow["model"], manifest.mlflow["version"]
        with _in_service(tracker, settings, manifest, now):
            tracker.set_version_tags(name, model_version, {"decision": f"rolled back to {_now()}"})
            instance.report_runless_asset_event(_event("rolled back", target, now, "a person asked for it", ""))
    return target


def _earlier(instance: dg.DagsterInstance, settings: Settings, now: str | None) -> str:
    """The newest version promoted before the present one whose bundle is still there; rollbacks do not count."""
    records = instance.fetch_materializations(dg.AssetKey(CHAMPION), limit=_PAGE).records
    events = [record.asset_materialization for record in records if record.asset_materialization]
    versions = [_text(event, "version") for event in events if _text(event, "decision") == _PROMOTED]
    later = versions.index(now) + 1 if now in versions else 0
    for version in versions[later:]:
        if version and version != now and has_release(settings.paths, version):
            return version
    message = f"no release before {now} is kept in {settings.paths.root / 'release'}; name one of its folders"
    raise BundleError(message)


def _event(decision: str, version: str, before: str | None, why: str, run_id: str) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        CHAMPION,
        metadata=_metadata(decision, version, before, why, run_id),
        tags={"dagster/data_version": version},
    )


def _metadata(decision: str, version: str | None, before: str | None, why: str, run_id: str) -> Mapping[str, Any]:
    known = {"decision": decision, "version": version, "before": before, "reason": why, "run": run_id}
    return {name: value for name, value in known.items() if value}


def _text(event: dg.AssetMaterialization, name: str) -> str:
    value = event.metadata.get(name)
    return str(value.value) if value is not None else ""


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@contextmanager
def _in_service(tracker: Tracker, settings: Settings, manifest: Manifest, before: str | None) -> Iterator[None]:
    """Have a release served and its version be the champion, where the block ends well too; else all is as ``before``.

    The alias comes first: MLflow may refuse it, for a version that it does not know or that never passed the gate.
    """
    with tracker.moved_alias(manifest.mlflow["model"], CHAMPION, manifest.mlflow["version"]):
        try:
            promote(settings.paths, manifest.version)
            confirm_release(manifest.version, settings)
            yield
        except BaseException:
            if before is not None:
                promote(settings.paths, before)
            raise
