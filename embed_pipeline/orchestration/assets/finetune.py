"""Training examples to the fine-tuned model, tracked and registered in MLflow."""

from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.evaluation.plots import training_curves
from embed_pipeline.evaluation.query_sets import generated_set
from embed_pipeline.orchestration.executors import gpu_step
from embed_pipeline.orchestration.failures import explained
from embed_pipeline.orchestration.io_managers import name_by_content, stage_folder
from embed_pipeline.orchestration.outputs import stored
from embed_pipeline.orchestration.presentation import OWNERS, picture
from embed_pipeline.orchestration.resources import MLflow
from embed_pipeline.settings import load_settings
from embed_pipeline.training.train import TrainingResult, finetune

GROUP = "3_finetune"
_SETTINGS = load_settings()


@dg.asset(
    description="The fine-tuned sentence-transformers model, with the weights that did best on the dev questions.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "mlflow"},
    io_manager_key="models",
    code_version=_SETTINGS.digest("training", "embedding", "tracking"),
    op_tags=gpu_step(),
    pool="gpu",
)
def finetuned_model(
    context: dg.AssetExecutionContext,
    mlflow: MLflow,
    training_examples: pl.DataFrame,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
) -> dg.Output[Any]:
    """Fine-tune the base model and register the result as the candidate."""
    settings = load_settings()
    models = settings.paths.store / "models"
    staged = stage_folder(models, "finetuned_model")
    dev = generated_set(qa_dataset, dataset_split, "dev")
    texts = dict(corpus.select("segment_id", "text").iter_rows())
    tags = {"dagster.run_id": context.run_id, "dagster.asset": "finetuned_model"}
    with explained(), mlflow.tracker().run(f"finetune {context.run_id[:8]}", tags) as run:
        run.log_parameters(settings.flat())
        result = finetune(
            training_examples,
            texts,
            dev if len(dev) else None,
            (corpus["segment_id"].to_list(), corpus["text"].to_list()),
            settings,
            output=staged,
            work=models / "finetuned_model" / ".work",
        )
        curves = training_curves(result.loss_curve, result.dev_curve, result.best_step)
        run.log_curves({"loss": result.loss_curve, "dev_ndcg_10": result.dev_curve})
        run.log_metrics({"final_loss": result.final_loss, "examples_per_second": result.examples_per_second})
        run.log_artifact(curves, "training.png")
        folder = name_by_content(staged)
        name = settings.tracking.registered_model
        version = mlflow.tracker().register_model(
            name, run.run_id, folder, tags={**tags, "weights": folder.name}, metrics=_dev_figures(result)
        )
        mlflow.tracker().set_alias(name, "candidate", version)
    links: dict[str, Any] = {"mlflow_run_id": run.run_id, "mlflow_version": version}
    if run.run_url:
        links["mlflow_run"] = dg.MetadataValue.url(run.run_url)
    metadata = {**_facts(result), **links, "curves": picture(curves, "loss and dev nDCG@10")}
    return stored(context, folder, settings, metadata=metadata)


def _dev_figures(result: TrainingResult) -> dict[str, float]:
    return {"dev_ndcg_10": max(value for _, value in result.dev_curve)} if result.dev_curve else {}


def _facts(result: TrainingResult) -> dict[str, Any]:
    """The numbers and texts of a result; its curves are drawn instead."""
    return {name: value for name, value in vars(result).items() if isinstance(value, int | float | str)}
