"""The fine-tuned model against its base, BM25 and its hybrids, on generated and on people's questions."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.embedding.models import base_model_name
from embed_pipeline.enumerations import ALL_RECALL
from embed_pipeline.evaluation.adoption import LABELS
from embed_pipeline.evaluation.gates import forgetting_failures, headline, release_failures
from embed_pipeline.evaluation.plots import fusion_curves, headline_bars, recall_curves
from embed_pipeline.evaluation.query_sets import (
    generated_set,
    known_sets,
    modification_times,
    with_document_slices,
)
from embed_pipeline.evaluation.report import SUMMARY_COLUMNS, headline_rows, write_report
from embed_pipeline.evaluation.retrieval import Comparison, compare
from embed_pipeline.orchestration.assets.finetune import dagster_links
from embed_pipeline.orchestration.executors import GPU_STEP
from embed_pipeline.orchestration.io_managers import ParquetIOManager
from embed_pipeline.orchestration.outputs import explained, stored
from embed_pipeline.orchestration.partitions import all_batches
from embed_pipeline.orchestration.presentation import bars, curves, described, figures, picture, shown_list, shown_table
from embed_pipeline.orchestration.resources import MLflow, newest_metadata
from embed_pipeline.settings import Settings
from embed_pipeline.storage import BatchTables
from embed_pipeline.tracking import TrackedRun
from embed_pipeline.training.record import read_record

GROUP = "4_eval"


@dg.multi_asset(
    outs={
        name: dg.AssetOut(**described(name, GROUP, {"pytorch", "mlflow"}))
        for name in ("retrieval_evaluation", "question_results", "fusion_weights")
    },
    ins={"documents": all_batches()},
    op_tags=GPU_STEP,
    pool="gpu",
)
def retrieval_evaluation(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    mlflow: MLflow,
    tables: dg.ResourceParam[ParquetIOManager],
    base_model: pl.DataFrame,
    finetuned_model: Path,
    corpus: pl.DataFrame,
    left_out_documents: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
    documents: BatchTables,
) -> Iterator[dg.Output[Any]]:
    """Compare, write the report, and add the figures to the training's MLflow run."""
    settings = settings.with_base(base_model["model"].item())
    times = modification_times(documents)
    with explained():
        folders = settings.evaluation.query_sets
        known = known_sets(qa_dataset, dataset_split, corpus, left_out_documents, folders)
        sets = [with_document_slices(query_set, corpus, times) for query_set in known]
        vectors = settings.paths.store / "vectors"
        dev = generated_set(qa_dataset, dataset_split, "dev")
        models = settings.embedding.model, finetuned_model
        comparison = compare(*models, corpus, sets, settings, dev=dev, vectors=vectors)
        record = read_record(finetuned_model)
    gate = release_failures(comparison.metrics, settings.gates) + forgetting_failures(record, settings.forgetting)
    run_id = newest_metadata(context.instance, "finetuned_model", "mlflow_run_id")
    facts = {**_training_facts(record), "Dagster run": context.run_id, "MLflow run": run_id or "none"}
    # Shown without depending on it: what it says of time differs from one measurement to the next.
    candidates = tables.read_previous("base_comparison")
    page, text = _report(comparison, settings, facts, gate, candidates)
    if run_id:
        with mlflow.tracker().run("", {}, run_id=run_id) as run:
            _track(run, comparison, (page, text), dagster_links(context.run_id, settings))
    version = newest_metadata(context.instance, "finetuned_model", "mlflow_version")
    if version:
        mlflow.tracker().record_gate(settings.tracking.registered_model, version, gate)
    shown = {"gate": "; ".join(gate) or "passed", "report": dg.MetadataValue.path(str(page)), **_shown(comparison)}
    yield stored(context, comparison.metrics, settings, asset="retrieval_evaluation", metadata=shown)
    yield stored(context, comparison.questions, settings, asset="question_results")
    fused = comparison.fusions["query_set"].unique(maintain_order=True)
    pictures = {name: picture(fusion_curves(comparison.fusions, name), name) for name in fused}
    drawn = figures({f"nDCG@10 {name}": curves(_by_weight(comparison.fusions, name)) for name in fused})
    yield stored(context, comparison.fusions, settings, asset="fusion_weights", metadata={**pictures, **drawn})


def _track(run: TrackedRun, comparison: Comparison, reports: tuple[Path, Path], links: dict[str, str]) -> None:
    """Add figures, reports and the way back to Dagster to the training's run."""
    run.log_metrics(_headline_figures(comparison))
    for report in reports:
        run.log_artifact(report)
    run.log_artifact(headline_bars(comparison.metrics), "headline.png")
    run.set_tags({name.replace("dagster.", "dagster.evaluation_"): link for name, link in links.items()})


def _shown(comparison: Comparison) -> dict[str, Any]:
    """Tables, verdicts and pictures for the asset's page."""
    metadata: dict[str, Any] = {
        "comparison": shown_table(SUMMARY_COLUMNS, headline_rows(comparison.metrics)),
        "deploy": shown_list(comparison.advice),
        "headline": picture(headline_bars(comparison.metrics), "nDCG@10"),
        **{f"verdict_{name}": verdict.sentence for name, verdict in comparison.verdicts.items()},
        **{f"recall_{name}": picture(recall_curves(comparison.metrics, name), name) for name in comparison.verdicts},
    }
    metadata |= {f"nDCG@10 {name}": bars(values) for name, values in _by_system(comparison.metrics).items()}
    if comparison.warnings:
        metadata["cautions"] = shown_list(comparison.warnings)
    return metadata


def _by_system(metrics: pl.DataFrame) -> dict[str, dict[str, float]]:
    """nDCG@10 of each system on each query set."""
    found: dict[str, dict[str, float]] = {}
    for (name, system), row in headline(metrics).items():
        found.setdefault(name, {})[LABELS[system]] = row["value"]
    return found


def _by_weight(fusions: pl.DataFrame, query_set: str) -> dict[str, list[tuple[float, float]]]:
    """nDCG@10 at each dense weight, of BM25 with each model."""
    rows = fusions.filter(query_set=query_set).drop_nulls("dense_weight").sort("dense_weight")
    each = rows.group_by("system", maintain_order=True)
    return {LABELS[str(name)]: list(part.select("dense_weight", "ndcg_10").iter_rows()) for (name,), part in each}


def _report(
    comparison: Comparison,
    settings: Settings,
    facts: dict[str, str],
    gate: list[str],
    candidates: pl.DataFrame | None,
) -> tuple[Path, Path]:
    context = {
        "base model": base_model_name(settings.embedding),
        **facts,
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    }
    return write_report(comparison, settings.paths.store / "reports", context, gate, candidates)


def _training_facts(record: dict[str, Any]) -> dict[str, str]:
    if not record:
        return {}
    before, after = record["general_before"], record["general_after"]
    known = "not measured" if before is None else f"nDCG@10 {before:.3f} under the base, {after:.3f} under the tuned"
    return {"trained on": f"{record['examples']} examples, {record['steps']} steps", "general questions": known}


def _headline_figures(comparison: Comparison) -> dict[str, float]:
    rows = comparison.metrics.filter(
        (pl.col("slice") == "all") & pl.col("metric").is_in(["nDCG", "Recall", ALL_RECALL, "MAP", "MRR"])
    )
    return {f"{row['query_set']}.{row['system']}.{row['metric']}@{row['k']}": row["value"] for row in rows.to_dicts()}
