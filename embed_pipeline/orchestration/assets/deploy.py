"""The release behind an endpoint, verified through it."""

from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.evaluation.query_sets import generated_set
from embed_pipeline.orchestration.failures import explained
from embed_pipeline.orchestration.outputs import stored
from embed_pipeline.orchestration.presentation import described
from embed_pipeline.orchestration.resources import MLflow
from embed_pipeline.release.current import promote
from embed_pipeline.release.manifest import read_manifest
from embed_pipeline.release.onnx_export import ReleaseError
from embed_pipeline.serving.deployment import deploy, deployment_failures
from embed_pipeline.settings import load_settings

GROUP = "6_deploy"


class DeploymentConfig(dg.Config):
    """How to deploy."""

    keep: bool = False
    """Leave the endpoint running after it is verified."""


@dg.asset(
    **described("deployment", GROUP, {"openai", "mlflow"}),
    code_version=load_settings().digest("serving", "release"),
)
def deployment(
    context: dg.AssetExecutionContext,
    config: DeploymentConfig,
    mlflow: MLflow,
    release: Path,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
) -> dg.Output[Any]:
    """Start the endpoint, compare what it serves with the model, then make the release the one that is served."""
    settings = load_settings()
    manifest = read_manifest(release)
    questions = list(generated_set(qa_dataset, dataset_split, "test").queries.values())
    with explained():
        frame = deploy(release, corpus, questions, settings, keep=config.keep)
        failures = deployment_failures(frame, settings)
        if failures:
            raise ReleaseError(f"not deployed, the release served before stays: {'; '.join(failures)}")
        promote(settings.paths.store, manifest.version)
        mlflow.tracker().set_alias(manifest.mlflow["model"], "champion", manifest.mlflow["version"])
    return stored(context, frame, settings, metadata=frame.row(0, named=True))
