"""The fine-tuned model against its base, BM25 and the hybrid, on generated and on people's questions."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.embedding.models import base_model_name
from embed_pipeline.evaluation.plots import headline_bars, recall_curves
from embed_pipeline.evaluation.query_sets import generated_set, labelled_set
from embed_pipeline.evaluation.report import write_report
from embed_pipeline.evaluation.retrieval import Comparison, compare
from embed_pipeline.evaluation.summary import COLUMNS, headline_rows
from embed_pipeline.orchestration.executors import gpu_step
from embed_pipeline.orchestration.failures import explained
from embed_pipeline.orchestration.outputs import stored
from embed_pipeline.orchestration.presentation import described, markdown_table, picture
from embed_pipeline.orchestration.resources import MLflow, newest_metadata
from embed_pipeline.settings import Settings, load_settings

GROUP = "4_eval"
_VERSION = load_settings().digest("evaluation", "embedding")


@dg.multi_asset(
    outs={
        name: dg.AssetOut(**described(name, GROUP, {"pytorch", "mlflow"}), code_version=_VERSION)
        for name in ("retrieval_evaluation", "question_results")
    },
    op_tags=gpu_step(),
    pool="gpu",
)
def retrieval_evaluation(
    context: dg.AssetExecutionContext,
    mlflow: MLflow,
    finetuned_model: Path,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
) -> Iterator[dg.Output[Any]]:
    """Compare, write the report, and add the figures to the training's MLflow run."""
    settings = load_settings()
    with explained():
        own = [labelled_set(folder, corpus) for folder in settings.evaluation.labelled]
        sets = [generated_set(qa_dataset, dataset_split, "test"), *(found for found in own if found is not None)]
        vectors = settings.paths.store / "vectors"
        comparison = compare(settings.embedding.model, finetuned_model, corpus, sets, settings, vectors)
    run_id = newest_metadata(context.instance, "finetuned_model", "mlflow_run_id")
    page, text = _report(comparison, settings, {"Dagster run": context.run_id, "MLflow run": run_id or "none"})
    if run_id:
        with mlflow.tracker().run("", {}, run_id=run_id) as run:
            run.log_metrics(_headline_figures(comparison))
            run.log_artifact(page)
            run.log_artifact(text)
            run.set_tags({"dagster.evaluation_run_id": context.run_id})
    metadata: dict[str, Any] = {
        "report": dg.MetadataValue.path(str(page)),
        "comparison": markdown_table(COLUMNS, headline_rows(comparison.metrics)),
        "headline": picture(headline_bars(comparison.metrics), "nDCG@10"),
        **{f"verdict_{name}": verdict.sentence for name, verdict in comparison.verdicts.items()},
        **{f"recall_{name}": picture(recall_curves(comparison.metrics, name), name) for name in comparison.verdicts},
    }
    if comparison.warnings:
        metadata["cautions"] = dg.MetadataValue.md("\n".join(f"- {caution}" for caution in comparison.warnings))
    yield stored(context, comparison.metrics, settings, asset="retrieval_evaluation", metadata=metadata)
    yield stored(context, comparison.questions, settings, asset="question_results")


def _report(comparison: Comparison, settings: Settings, runs: dict[str, str]) -> tuple[Path, Path]:
    facts = {
        "base model": base_model_name(settings.embedding),
        **runs,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    return write_report(comparison, settings.paths.store / "reports", facts)


def _headline_figures(comparison: Comparison) -> dict[str, float]:
    rows = comparison.metrics.filter(
        (pl.col("slice") == "all") & pl.col("metric").is_in(["nDCG", "Recall", "MAP", "MRR"])
    )
    return {f"{row['query_set']}.{row['system']}.{row['metric']}@{row['k']}": row["value"] for row in rows.to_dicts()}
