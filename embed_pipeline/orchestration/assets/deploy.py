"""The release against the one that is served, then behind an endpoint and verified through it."""

from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline import tables
from embed_pipeline.evaluation.gates import compare_with_champion, promotion_failures
from embed_pipeline.evaluation.query_sets import generated_set, known_sets
from embed_pipeline.orchestration.executors import GPU_STEP
from embed_pipeline.orchestration.outputs import explained, stored
from embed_pipeline.orchestration.presentation import described
from embed_pipeline.orchestration.promotion import promote_release, record_refusal
from embed_pipeline.orchestration.resources import MLflow
from embed_pipeline.release.manifest import ReleaseError, read_manifest
from embed_pipeline.release.releases import current_bundle, current_version
from embed_pipeline.serving.deployment import deploy, deployment_failures
from embed_pipeline.settings import Settings

GROUP = "6_deploy"


class DeploymentConfig(dg.Config):
    """How to deploy."""

    keep: bool = False
    """Leave the endpoint running after it is verified."""


@dg.asset(
    **described("champion_comparison", GROUP, {"pytorch", "mlflow"}),
    op_tags=GPU_STEP,
    pool="gpu",
)
def champion_comparison(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    mlflow: MLflow,
    release: Path,
    corpus: pl.DataFrame,
    left_out_documents: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
) -> dg.Output[Any]:
    """Measure the new release against the one that is served now; where it may not take its place, record why."""
    candidate, served = read_manifest(release), current_version(settings.paths)
    frame = tables.CHAMPION_COMPARISON.empty()
    if served is not None and served != candidate.version:
        with explained():
            folders = settings.evaluation.query_sets
            sets = known_sets(qa_dataset, dataset_split, corpus, left_out_documents, folders)
            bundle = current_bundle(settings.paths)
            frame = compare_with_champion(
                (served, bundle / "model"),
                (candidate.version, release / "model"),
                corpus,
                sets,
                settings,
                champion_context=read_manifest(bundle).model.passage_context,
            )
    reasons = promotion_failures(frame, settings.gates)
    if reasons:
        record_refusal(context, mlflow.tracker(), candidate, served, reasons)
    facts = {"champion": served or "nothing is served yet", "candidate": candidate.version}
    return stored(context, frame, settings, metadata=facts)


@dg.asset(
    **described("deployment", GROUP, {"openai", "mlflow"}),
    deps=["champion_comparison"],
)
def deployment(
    context: dg.AssetExecutionContext,
    config: DeploymentConfig,
    settings: dg.ResourceParam[Settings],
    mlflow: MLflow,
    release: Path,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
) -> dg.Output[Any]:
    """Start the endpoint, compare what it serves with the model, then make the release the one that is served."""
    manifest = read_manifest(release)
    questions = list(generated_set(qa_dataset, dataset_split, "test").queries.values())
    with explained():
        frame = deploy(release, corpus, questions, settings, keep=config.keep)
        failures = deployment_failures(frame, settings)
        if failures:
            raise ReleaseError(f"not deployed, the release served before stays: {'; '.join(failures)}")
        promote_release(context, mlflow.tracker(), settings, manifest)
    return stored(context, frame, settings, metadata=frame.row(0, named=True))
