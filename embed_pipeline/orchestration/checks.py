"""Every threshold as an asset check: the value, its bound, and what to look at when it fails."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline import tables
from embed_pipeline.evaluation.gates import forgetting_failures, release_failures
from embed_pipeline.evaluation.promotion import promotion_failures
from embed_pipeline.orchestration.partitions import all_batches
from embed_pipeline.orchestration.presentation import markdown_table
from embed_pipeline.release.manifest import BundleError, verify_bundle
from embed_pipeline.release.parity import read_parity
from embed_pipeline.release.precision import measured_precisions, precision_failures
from embed_pipeline.serving.deployment import deployment_failures
from embed_pipeline.settings import load_settings
from embed_pipeline.synthesis import checks
from embed_pipeline.training.record import read_record
from embed_pipeline.training_data.audit import full_share, negatives_failures
from embed_pipeline.training_data.split import split_failures


def _none_of(failures: Sequence[str], *, hard: bool = True) -> dg.AssetCheckResult:
    """No failure: each is a sentence; ``hard``: one is an error, else a warning."""
    return dg.AssetCheckResult(
        passed=not failures,
        severity=dg.AssetCheckSeverity.ERROR if hard else dg.AssetCheckSeverity.WARN,
        description="; ".join(failures) or "nothing found",
        metadata={"failures": dg.MetadataValue.json(list(failures))},
    )


def _figure(
    value: float,
    bound: float,
    *,
    passed: bool,
    hard: bool = False,
    **metadata: Any,  # noqa: ANN401 - any metadata
) -> dg.AssetCheckResult:
    """A value held against its bound; ``hard``: a failure is an error, else a warning."""
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if hard else dg.AssetCheckSeverity.WARN,
        description=f"{value:.4g}, bound {bound:.4g}",
        metadata={"value": value, "bound": bound, **metadata},
    )


def _measured(check: checks.Check, *, hard: bool = False) -> dg.AssetCheckResult:
    """A check of the generated set, with the worst examples."""
    worst = markdown_table(check.worst.columns, check.worst.rows())
    return _figure(check.value, check.bound, passed=check.passed, hard=hard, worst=worst)


_DECISIONS = {"qa_decisions": dg.AssetIn("qa_decisions")}
_CORPUS = {"corpus": dg.AssetIn("corpus")}


@dg.asset_check(
    asset="qa_dataset", blocking=True, description="Enough accepted pairs to train on.", additional_ins=_DECISIONS
)
def enough_accepted_pairs(qa_dataset: pl.DataFrame, qa_decisions: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.min_accepted_pairs``."""
    return _measured(checks.accepted_pairs(qa_dataset, qa_decisions, load_settings().synthesis), hard=True)


@dg.asset_check(
    asset="qa_dataset",
    blocking=True,
    description="The generator's questions are good enough to be worth training on.",
    additional_ins=_DECISIONS,
)
def acceptance_rate(qa_decisions: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.min_acceptance_rate``."""
    return _measured(checks.acceptance_rate(qa_decisions, load_settings().synthesis), hard=True)


@dg.asset_check(
    asset="qa_dataset", description="Every document yields pairs: accepted ones for each.", additional_ins=_CORPUS
)
def yield_per_document(qa_dataset: pl.DataFrame, corpus: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.min_pairs_per_document``."""
    return _measured(checks.yield_per_document(qa_dataset, corpus, load_settings().synthesis))


@dg.asset_check(
    asset="qa_dataset",
    description="Questions cover the documents: share of segments with an accepted question.",
    additional_ins=_CORPUS,
)
def segment_coverage(qa_dataset: pl.DataFrame, corpus: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.min_segment_coverage``."""
    return _measured(checks.segment_coverage(qa_dataset, corpus, load_settings().synthesis))


@dg.asset_check(
    asset="qa_dataset", description="Query types, reasoning types and hop counts come in the shares asked for."
)
def asked_mix(qa_dataset: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.max_share_deviation``."""
    return _measured(checks.asked_mix(qa_dataset, load_settings().synthesis))


@dg.asset_check(
    asset="qa_dataset",
    description="Judged pairs score well on every criterion, on average.",
    additional_ins={**_DECISIONS, "qa_scores": all_batches()},
)
def mean_scores(qa_decisions: pl.DataFrame, qa_scores: dict[str, pl.DataFrame]) -> dg.AssetCheckResult:
    """``synthesis.min_mean_score``."""
    scores = pl.concat(qa_scores.values()) if qa_scores else tables.QA_SCORES.empty()
    return _measured(checks.mean_scores(scores, qa_decisions, load_settings().synthesis))


@dg.asset_check(
    asset="qa_dataset", description="The generator seldom asks the same question twice.", additional_ins=_DECISIONS
)
def duplicate_rate(qa_decisions: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.max_duplicate_rate``."""
    return _measured(checks.duplicate_rate(qa_decisions, load_settings().synthesis))


@dg.asset_check(
    asset="qa_dataset",
    description="Questions lead back to their sources: share of pairs that find all of them among the ten best.",
    additional_ins=_DECISIONS,
)
def round_trip_rate(qa_decisions: pl.DataFrame) -> dg.AssetCheckResult:
    """``synthesis.min_round_trip_rate``."""
    return _measured(checks.round_trip_rate(qa_decisions, load_settings().synthesis))


@dg.asset_check(
    asset="dataset_split",
    blocking=True,
    description="No leak: no group on two sides, no test question or copy of one in train; enough test questions.",
    additional_ins={"qa_dataset": dg.AssetIn("qa_dataset")},
)
def split_is_sound(dataset_split: pl.DataFrame, qa_dataset: pl.DataFrame) -> dg.AssetCheckResult:
    """``training_data.min_test_questions``, and the rules of the split."""
    return _none_of(split_failures(dataset_split, qa_dataset, load_settings()))


@dg.asset_check(
    asset="hard_negatives",
    blocking=True,
    description="Every negative is wrong: under the ceiling, no positive and no copy of one.",
    additional_ins={"corpus": dg.AssetIn("corpus")},
)
def negatives_are_wrong(hard_negatives: pl.DataFrame, corpus: pl.DataFrame) -> dg.AssetCheckResult:
    """``training_data.relative_margin`` and ``absolute_margin``."""
    return _none_of(negatives_failures(hard_negatives, corpus, load_settings()))


@dg.asset_check(asset="hard_negatives", description="Most questions have all the hard negatives that were wanted.")
def negatives_suffice(hard_negatives: pl.DataFrame) -> dg.AssetCheckResult:
    """``training_data.min_negative_coverage``."""
    options = load_settings().training_data
    share, bound = full_share(hard_negatives, options.num_negatives), options.min_negative_coverage
    return _figure(share, bound, passed=share >= bound)


@dg.asset_check(
    asset="retrieval_evaluation",
    blocking=True,
    description="The tuned model is better than its base, and worse on no set of people's questions.",
)
def tuned_is_better(retrieval_evaluation: pl.DataFrame) -> dg.AssetCheckResult:
    """``evaluation.min_gain`` and ``evaluation.max_labelled_loss``."""
    return _none_of(release_failures(retrieval_evaluation, load_settings().evaluation))


@dg.asset_check(
    asset="finetuned_model", blocking=True, description="The model still knows what its base knew of general text."
)
def base_is_not_forgotten(finetuned_model: Path) -> dg.AssetCheckResult:
    """``evaluation.max_forgetting``, on questions from the standard library's documentation."""
    return _none_of(forgetting_failures(read_record(finetuned_model), load_settings().evaluation))


@dg.asset_check(asset="onnx_model", blocking=True, description="The export gives the original's vectors and rankings.")
def export_is_faithful(onnx_model: Path) -> dg.AssetCheckResult:
    """``release.min_cosine``, ``max_ndcg_delta`` and ``min_top10_overlap``."""
    return _none_of(read_parity(onnx_model).failures(load_settings().release))


@dg.asset_check(
    asset="onnx_precisions", description="Every other precision keeps to its bounds; one that does not is not released."
)
def precisions_are_faithful(onnx_precisions: Path) -> dg.AssetCheckResult:
    """``release.min_fp16_cosine`` and ``serving.max_int8_ndcg_delta``."""
    settings = load_settings()
    measured = measured_precisions(onnx_precisions).items()
    return _none_of(
        [failure for precision, parity in measured for failure in precision_failures(precision, parity, settings)],
        hard=False,
    )


@dg.asset_check(asset="release", blocking=True, description="Every file of the bundle is what its manifest says.")
def bundle_is_whole(release: Path) -> dg.AssetCheckResult:
    """Hashes of all files."""
    try:
        manifest = verify_bundle(release)
    except BundleError as error:
        return _none_of([str(error)])
    return dg.AssetCheckResult(passed=True, description=f"{len(manifest.files)} files, version {manifest.version}")


@dg.asset_check(
    asset="champion_comparison", blocking=True, description="The new release is no worse than the one that is served."
)
def no_worse_than_champion(champion_comparison: pl.DataFrame) -> dg.AssetCheckResult:
    """``orchestration.min_champion_gain`` and ``evaluation.max_labelled_loss``."""
    return _none_of(promotion_failures(champion_comparison, load_settings()))


@dg.asset_check(asset="deployment", blocking=True, description="The endpoint gives the model's vectors and rankings.")
def endpoint_is_faithful(deployment: pl.DataFrame) -> dg.AssetCheckResult:
    """``release.min_cosine`` and ``min_top10_overlap``, through the endpoint."""
    return _none_of(deployment_failures(deployment, load_settings()))


all_checks = [
    enough_accepted_pairs,
    acceptance_rate,
    yield_per_document,
    segment_coverage,
    asked_mix,
    mean_scores,
    duplicate_rate,
    round_trip_rate,
    split_is_sound,
    negatives_are_wrong,
    negatives_suffice,
    base_is_not_forgotten,
    tuned_is_better,
    export_is_faithful,
    precisions_are_faithful,
    bundle_is_whole,
    no_worse_than_champion,
    endpoint_is_faithful,
]
