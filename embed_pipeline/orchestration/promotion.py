"""The history of the champion: every promotion, refusal and rollback, as events of one asset and in MLflow."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from embed_pipeline.orchestration.presentation import OWNERS
from embed_pipeline.release.manifest import BundleError, Manifest, read_manifest
from embed_pipeline.release.releases import current_version, has_release, promote, release_folder
from embed_pipeline.serving.process import confirm_release
from embed_pipeline.serving.serving_errors import ServingError
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


def record_promotion(
    context: dg.AssetExecutionContext, tracker: Tracker, manifest: Manifest, before: str | None
) -> None:
    """Record that a release took the place of the one ``before`` (None: it is the first)."""
    name, version = manifest.mlflow["model"], manifest.mlflow["version"]
    tracker.set_alias(name, CHAMPION, version)
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
    """Serve an earlier release again, record it, and return its version.

    Args:
        instance: where the history is.
        tracker: where the alias is.
        settings: ``paths`` says where the releases are.
        version: which; None: the one that was promoted before the present one.

    Raises:
        BundleError: there is no such release, or no earlier one.
    """
    now = current_version(settings.paths)
    target = version or _earlier(instance, settings, now)
    manifest = read_manifest(release_folder(settings.paths, target))
    promote(settings.paths, target)
    name, model_version = manifest.mlflow["model"], manifest.mlflow["version"]
    tracker.set_alias(name, CHAMPION, model_version)
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


def put_in_service(version: str, before: str | None, settings: Settings) -> None:
    """Make ``version`` the one that is served; where the running endpoint does not take it up, the one before again.

    Raises:
        ServingError: it did not.
    """
    promote(settings.paths, version)
    try:
        confirm_release(version, settings)
    except ServingError:
        if before is not None:
            promote(settings.paths, before)
        raise
