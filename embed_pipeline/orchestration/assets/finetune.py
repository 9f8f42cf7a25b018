"""Training examples to the fine-tuned model, tracked and registered in MLflow."""

import shutil
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.evaluation.plots import training_curves
from embed_pipeline.evaluation.query_sets import generated_set
from embed_pipeline.orchestration.executors import GPU_STEP
from embed_pipeline.orchestration.io_managers import name_by_content, stage_folder
from embed_pipeline.orchestration.outputs import explained, stored
from embed_pipeline.orchestration.presentation import OWNERS, curves, figures, picture
from embed_pipeline.orchestration.resources import MLflow
from embed_pipeline.settings import Settings
from embed_pipeline.tables import content_hash
from embed_pipeline.text.passages import passages_by_id
from embed_pipeline.training.record import TrainingResult
from embed_pipeline.training.train import finetune, train_in_processes, work_folder

GROUP = "3_finetune"


class FinetuneConfig(dg.Config):
    """How to fine-tune."""

    anew: bool = False
    """Train again, even where the weights of the same training are still there."""


@dg.asset(
    description="The fine-tuned sentence-transformers model, with the weights that did best on the dev questions.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"pytorch", "mlflow"},
    io_manager_key="models",
    op_tags=GPU_STEP,
    pool="gpu",
)
def finetuned_model(
    context: dg.AssetExecutionContext,
    config: FinetuneConfig,
    settings: dg.ResourceParam[Settings],
    mlflow: MLflow,
    base_model: pl.DataFrame,
    training_examples: pl.DataFrame,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
) -> dg.Output[Any]:
    """Fine-tune the base model and register the result as the candidate."""
    settings = settings.with_base(base_model["model"].item())
    if config.anew:
        shutil.rmtree(work_folder(settings), ignore_errors=True)
    staged = stage_folder(settings.paths.store / "models", "finetuned_model")
    inputs = {"training_examples": training_examples, "corpus": corpus, "dataset_split": dataset_split}
    versions = {f"data.{name}": content_hash(frame) for name, frame in inputs.items()}
    tags = {"dagster.asset": "finetuned_model", **dagster_links(context.run_id, settings), **versions}
    with explained():
        mlflow.tracker().fail_abandoned(partial(_is_over, context.instance))
    with explained(), mlflow.tracker().run(f"finetune {context.run_id[:8]}", tags) as run:
        run.log_parameters(settings.flat())
        if settings.training.processes > 1 and settings.training.contrastive:
            train_in_processes(settings)
        passages = passages_by_id(corpus, settings.embedding.context)
        result = finetune(
            training_examples,
            passages,
            generated_set(qa_dataset, dataset_split, "dev"),
            (list(passages), list(passages.values())),
            settings,
            output=staged,
            work=work_folder(settings),
            documents=corpus["document_id"].to_list(),
        )
        drawn = training_curves(result.loss_curve, result.dev_curve, result.best_step)
        run.log_curves({"loss": result.loss_curve, "dev_ndcg_10": result.dev_curve})
        run.log_metrics(_figures(result, ("final_loss", "examples_per_second", "seconds", *_QUALITY)))
        run.set_tags({"hardware": result.device, "precision": result.precision, "weights": result.weights})
        run.log_artifact(drawn, "training.png")
        folder = name_by_content(staged)
        name = settings.tracking.registered_model
        version = mlflow.tracker().register_model(
            name, run.run_id, folder, tags={**tags, "weights": folder.name}, metrics=_figures(result, _QUALITY)
        )
        mlflow.tracker().set_alias(name, "candidate", version)
        run.set_tags({"model_version": version})
    links: dict[str, Any] = {"mlflow_run_id": run.run_id, "mlflow_version": version}
    pages = {"mlflow_run": run.run_url, "mlflow_model": mlflow.tracker().version_url(name, version)}
    links |= {label: dg.MetadataValue.url(page) for label, page in pages.items() if page}
    progress = curves({"loss": result.loss_curve, "dev nDCG@10": result.dev_curve})
    metadata = {**_facts(result), **links, "progress": progress, "curves": picture(drawn, "loss and dev nDCG@10")}
    return stored(context, folder, settings, metadata=figures(metadata))


def _is_over(instance: dg.DagsterInstance, run_id: str) -> bool:
    run = instance.get_run_by_id(run_id)
    return run is None or run.is_finished


_OF_STEPS = ("batch_size", "epochs", "learning_rate", "small_data", "steps", "best_step", "examples_per_second")
_QUALITY = ("dev_ndcg_10", "general_before", "general_after", "tuned_share")


def dagster_links(run_id: str, settings: Settings) -> dict[str, str]:
    """Tags that lead from MLflow to a Dagster run: its id and, where the UI's address is set, its page."""
    address = settings.tracking.dagster_url
    page = {"dagster.run_url": f"{address.rstrip('/')}/runs/{run_id}"} if address else {}
    return {"dagster.run_id": run_id, **page}


def _figures(result: TrainingResult, names: tuple[str, ...]) -> dict[str, float]:
    """Those of the named figures that were measured."""
    return {name: float(value) for name in names if (value := getattr(result, name)) is not None}


def _facts(result: TrainingResult) -> dict[str, Any]:
    """The numbers and texts of a result, its curves are drawn instead; of the training only where there was one."""
    absent = () if result.steps else _OF_STEPS
    facts = {name: value for name, value in vars(result).items() if isinstance(value, int | float | str)}
    return {name: value for name, value in facts.items() if name not in absent}
