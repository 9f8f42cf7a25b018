"""The fine-tuned model as ONNX in several precisions and, where it can be built, as a TensorRT engine; the bundle."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.embedding.tensorrt_backend import TensorRTBackend, TensorRTUnavailable
from embed_pipeline.enumerations import RECIPROCAL_RANKS
from embed_pipeline.evaluation.gates import forgetting_failures, release_failures
from embed_pipeline.evaluation.query_sets import sampled_set
from embed_pipeline.orchestration.executors import GPU_STEP
from embed_pipeline.orchestration.io_managers import name_by_content, stage_folder
from embed_pipeline.orchestration.outputs import explained, stored
from embed_pipeline.orchestration.presentation import OWNERS, figures, shown_table
from embed_pipeline.orchestration.resources import newest_metadata
from embed_pipeline.release.bundle import (
    BASE_FOLDER,
    ENGINE_FOLDER,
    EXPORT_FOLDERS,
    Lineage,
    check_bundle_model,
    write_bundle,
)
from embed_pipeline.release.existing_index import keeps_passages
from embed_pipeline.release.manifest import Hybrid, ReleaseError
from embed_pipeline.release.parity import Parity, measure_parity, read_parity, write_parity
from embed_pipeline.release.precision import (
    engine_failures,
    measured_precisions,
    precision_failures,
    write_within_bounds,
)
from embed_pipeline.release.tensorrt import UNAVAILABLE_FILE, build_engine
from embed_pipeline.settings import Settings
from embed_pipeline.text.passages import batch_of_passages, passages_by_id
from embed_pipeline.training.record import declared_dimensions, read_record

logger = logging.getLogger(__name__)

GROUP = "5_export"
_HYBRIDS: dict[Literal["tuned", "base"], str] = {"tuned": "hybrid_tuned", "base": "hybrid_base"}


@dg.asset(
    description="The model as one ONNX graph, pooling and normalisation included, measured against the original.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"onnx"},
    io_manager_key="models",
)
def onnx_model(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    base_model: pl.DataFrame,
    finetuned_model: Path,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
) -> dg.Output[Any]:
    """Export, then measure vectors and rankings against the original on the evaluation corpus."""
    settings = settings.with_base(base_model["model"].item())
    staged = stage_folder(settings.paths.store / "models", "onnx_model")
    with explained():
        export_onnx(finetuned_model, staged, settings.release, settings.embedding)
        parity = _measured(finetuned_model, OnnxBackend(staged), staged, corpus, qa_dataset, settings)
    return stored(context, name_by_content(staged), settings, metadata=_shown(parity))


@dg.asset(
    description="The export in other precisions, int8 for processors and fp16 for GPUs, each measured as well.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"onnx"},
    io_manager_key="models",
)
def onnx_precisions(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    finetuned_model: Path,
    onnx_model: Path,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
) -> dg.Output[Any]:
    """Convert the export to each of ``release.precisions``; the release takes those within their bounds."""
    staged = stage_folder(settings.paths.store / "models", "onnx_precisions")
    rows = []
    with explained():
        for precision in settings.release.precisions:
            parity, failures = write_within_bounds(
                onnx_model,
                staged / EXPORT_FOLDERS[precision],
                precision,
                lambda folder: _measured(finetuned_model, OnnxBackend(folder), folder, corpus, qa_dataset, settings),
                settings,
            )
            for failure in failures:
                logger.warning("not released: %s", failure)
            rows.append([precision, f"{parity.min_cosine:.5f}", f"{parity.ndcg_delta:+.4f}", "; ".join(failures)])
    shown = shown_table(["precision", "min cosine", "change of nDCG@10", "not released because"], rows)
    return stored(context, name_by_content(staged), settings, metadata={"precisions": shown})


@dg.asset(
    description="The base model as ONNX: the endpoint serves it next to the tuned one, for comparison.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"onnx"},
    io_manager_key="models",
    # It reads nothing of it, but whoever makes everything after a training anew gets this too.
    deps=["finetuned_model"],
)
def base_onnx_model(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], base_model: pl.DataFrame
) -> dg.Output[Any]:
    """Export the base model, or record that ``release.base_export`` is off."""
    settings = settings.with_base(base_model["model"].item())
    staged = stage_folder(settings.paths.store / "models", "base_onnx_model")
    with explained():
        if settings.release.base_export:
            export_onnx(settings.embedding.model, staged, settings.release, settings.embedding)
        else:
            (staged / UNAVAILABLE_FILE).write_text("release.base_export is off\n", encoding="utf-8")
    return stored(context, name_by_content(staged), settings)


@dg.asset(
    description="The model as a TensorRT engine for this machine's GPU; where none can be built, the plain reason.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"tensorrt"},
    io_manager_key="models",
    op_tags=GPU_STEP,
    pool="gpu",
)
def tensorrt_engine(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    finetuned_model: Path,
    onnx_model: Path,
    corpus: pl.DataFrame,
    qa_dataset: pl.DataFrame,
) -> dg.Output[Any]:
    """Build the engine and measure it like the other exports, or record why this machine cannot."""
    staged = stage_folder(settings.paths.store / "models", "tensorrt_engine")
    shown: dict[str, Any] = {}
    with explained():
        try:
            build_engine(onnx_model, staged)
        except TensorRTUnavailable as unavailable:
            status = f"not built: {unavailable}"
            (staged / UNAVAILABLE_FILE).write_text(f"{unavailable}\n", encoding="utf-8")
        else:
            parity = _measured(finetuned_model, TensorRTBackend(staged), staged, corpus, qa_dataset, settings)
            status = "; ".join(engine_failures(parity, settings)) or "built"
            shown = _shown(parity)
    context.log.info(status)
    return stored(context, name_by_content(staged), settings, metadata={"status": status, **shown})


@dg.asset(
    description="The release bundle: model, ONNX, engine, manifest with hashes, figures and lineage, and model card.",
    group_name=GROUP,
    owners=OWNERS,
    kinds={"onnx", "mlflow"},
    io_manager_key="bundles",
)
def release(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    base_model: pl.DataFrame,
    finetuned_model: Path,
    onnx_model: Path,
    onnx_precisions: Path,
    base_onnx_model: Path,
    tensorrt_engine: Path,
    retrieval_evaluation: pl.DataFrame,
    fusion_weights: pl.DataFrame,
) -> dg.Output[Any]:
    """Bundle what passed the gates; a model that is not better, or an export that differs, is refused."""
    parity = read_parity(onnx_model)
    version = newest_metadata(context.instance, "finetuned_model", "mlflow_version") or "0"
    staged = stage_folder(settings.paths.store, "release")
    with explained():
        failures = [
            *release_failures(retrieval_evaluation, settings.gates),
            *forgetting_failures(read_record(finetuned_model), settings.forgetting),
            *parity.failures(settings.gates),
        ]
        if failures:
            raise ReleaseError(f"not released: {'; '.join(failures)}")
        made_from = {"finetuned_model": finetuned_model.name, "onnx_model": onnx_model.name}
        beside = {**_released(onnx_precisions, settings), BASE_FOLDER: base_onnx_model, ENGINE_FOLDER: tensorrt_engine}
        beside = {name: folder for name, folder in beside.items() if not (folder / UNAVAILABLE_FILE).exists()}
        if ENGINE_FOLDER in beside and engine_failures(read_parity(tensorrt_engine), settings):
            del beside[ENGINE_FOLDER]
        contents = [made_from, sorted((name, folder.parent.name, folder.name) for name, folder in beside.items())]
        digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
        lineage = Lineage(
            version=f"v{version}-{digest[:8]}",
            created_from=made_from,
            metrics=_headline(retrieval_evaluation),
            passage_vectors=_passage_vectors(finetuned_model, settings.with_base(base_model["model"].item())),
            hybrid=_hybrids(fusion_weights),
            parity={name: value for name, value in parity.as_dict().items() if name != "worst"},
            mlflow={"model": settings.tracking.registered_model, "version": version},
            matryoshka_dimensions=declared_dimensions(finetuned_model),
            passage_context=settings.embedding.context,
        )
        manifest = write_bundle(staged, model=finetuned_model, onnx_folder=onnx_model, lineage=lineage, beside=beside)
        check_bundle_model(staged, finetuned_model, trusted=settings.embedding.trust_remote_code)
    named = staged.rename(staged.with_name(manifest.version))
    facts = figures({"version": manifest.version, "files": sorted(manifest.files), "metrics": manifest.metrics})
    return stored(context, named, settings, metadata=facts)


def _measured(
    original: Path, export: Backend, folder: Path, corpus: pl.DataFrame, qa: pl.DataFrame, settings: Settings
) -> Parity:
    """Parity of an export on the evaluation corpus, which is also written into its folder."""
    asked = sampled_set(qa)
    passages = passages_by_id(corpus, settings.embedding.context)
    parity = measure_parity(
        original,
        export,
        passages,
        asked.queries,
        asked.qrels,
        embedding=settings.embedding,
        vectors=settings.paths.store / "vectors",
        batches=batch_of_passages(passages.values(), corpus["batch"]),
    )
    write_parity(parity, folder)
    return parity


def _released(onnx_precisions: Path, settings: Settings) -> dict[str, Path]:
    """The exports in other precisions that keep to their bounds, by their folder in the bundle."""
    return {
        EXPORT_FOLDERS[precision]: onnx_precisions / EXPORT_FOLDERS[precision]
        for precision, parity in measured_precisions(onnx_precisions).items()
        if not precision_failures(precision, parity, settings)
    }


def _headline(metrics: pl.DataFrame) -> dict[str, Any]:
    """Query set to system to its nDCG@10 and Recall@10."""
    rows = metrics.filter((pl.col("slice") == "all") & (pl.col("k") == 10) & pl.col("metric").is_in(["nDCG", "Recall"]))  # noqa: PLR2004 - the headline figures are at 10
    table: dict[str, Any] = {}
    for row in rows.to_dicts():
        table.setdefault(row["query_set"], {}).setdefault(row["system"], {})[f"{row['metric']}@10"] = row["value"]
    return table


def _passage_vectors(model: Path, settings: Settings) -> Literal["own", "base"]:
    """Whose vectors passages have; where only queries were tuned it is proven that they are the base's."""
    if settings.training.sides == "both":
        return "own"
    base, tuned = (Encoder.load(name, settings.embedding) for name in (settings.embedding.model, model))
    if not keeps_passages(base, tuned):
        raise ReleaseError("not released: training.sides is query, but passages have other vectors than the base's")
    return "base"


def _hybrids(weights: pl.DataFrame) -> dict[Literal["tuned", "base"], Hybrid]:
    """The fusion of BM25 with each model that was chosen on the dev questions."""
    dev = weights.filter(query_set="dev")
    found: dict[Literal["tuned", "base"], Hybrid] = {}
    for model, system in _HYBRIDS.items():
        of_model = dev.filter(system=system)
        for row in of_model.filter("chosen").to_dicts():
            by_ranks = of_model.filter(fusion=RECIPROCAL_RANKS)["ndcg_10"].item()
            found[model] = Hybrid(
                dense_weight=row["dense_weight"], ndcg_10=row["ndcg_10"], reciprocal_ranks_ndcg_10=by_ranks
            )
    return found


def _shown(parity: Parity) -> dict[str, Any]:
    numbers = {name: value for name, value in parity.as_dict().items() if isinstance(value, int | float)}
    worst = [[text.kind, text.id, f"{text.cosine:.7f}", text.text] for text in parity.worst]
    return {**numbers, "worst_texts": shown_table(["kind", "id", "cosine", "text"], worst)}
