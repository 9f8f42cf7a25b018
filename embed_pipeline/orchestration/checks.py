"""Every threshold as an asset check: the value, its bound, and what to look at when it fails."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.current import unknown_words
from embed_pipeline.enumerations import GENERATED
from embed_pipeline.escaping import as_markdown, counted
from embed_pipeline.evaluation.gates import forgetting_failures, headline, promotion_failures, release_failures
from embed_pipeline.inspection.agreement import agreement_failures, judged_pairs, measure_agreement
from embed_pipeline.orchestration.partitions import all_batches
from embed_pipeline.orchestration.presentation import shown_table
from embed_pipeline.release.manifest import BundleError, verify_bundle
from embed_pipeline.release.parity import read_parity
from embed_pipeline.release.precision import measured_precisions, precision_failures
from embed_pipeline.reviews import fold_reviews, read_reviews
from embed_pipeline.serving.deployment import deployment_failures
from embed_pipeline.settings import Settings
from embed_pipeline.storage import BatchTables
from embed_pipeline.synthesis import quality
from embed_pipeline.training.record import read_record
from embed_pipeline.training_data.audit import full_share, negatives_failures
from embed_pipeline.training_data.split import split_failures


def none_of(failures: Sequence[str], figures: Mapping[str, float | None], *, hard: bool = True) -> dg.AssetCheckResult:
    """No failure: each is a sentence; ``hard``: one is an error, else a warning.

    ``figures`` are what was measured, and the bounds: shown, and drawn over time; None: not measured.
    """
    measured = {name: value for name, value in figures.items() if value is not None}
    said = ", ".join(f"{name} {value:.6g}" for name, value in measured.items())
    return dg.AssetCheckResult(
        passed=not failures,
        severity=dg.AssetCheckSeverity.ERROR if hard else dg.AssetCheckSeverity.WARN,
        # The UI reads a description as Markdown.
        description=as_markdown("; ".join(failures)) or said or "nothing found",
        metadata={"failures": dg.MetadataValue.json(list(failures)), **measured},
    )


def _figure(
    value: float,
    bound: float,
    setting: str,
    *,
    passed: bool,
    name: str | None = None,
    hard: bool = False,
    **metadata: Any,  # noqa: ANN401 - any metadata
) -> dg.AssetCheckResult:
    """A value held against the bound that ``setting`` gives; ``hard``: a failure is an error, else a warning."""
    return dg.AssetCheckResult(
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if hard else dg.AssetCheckSeverity.WARN,
        description=f"{value:.4g}, bound {setting} = {bound:.4g}",
        metadata={"value": value, "bound": bound, **metadata},
    )


def _measured(
    check: quality.Check, setting: str, *, name: str | None = None, hard: bool = False
) -> dg.AssetCheckResult:
    """A check of the generated set, with the worst examples."""
    worst = shown_table(check.worst.columns, check.worst.rows())
    return _figure(check.value, check.bound, setting, passed=check.passed, name=name, hard=hard, worst=worst)


@dg.asset_check(
    asset="corpus",
    description="The encoder knows the documents' words: share of the tokens that stand for unknown ones.",
    additional_ins={"segments": all_batches()},
)
def encoder_knows_the_words(
    settings: dg.ResourceParam[Settings], corpus: pl.DataFrame, segments: BatchTables
) -> dg.AssetCheckResult:
    """A warning where the encoder was not made for the documents' language."""
    return _measured(quality.unknown_words(unknown_words(corpus, segments), settings.gates), "gates.max_unknown_tokens")


_NOTHING_GENERATED = "no pairs are generated: training_data.sources"
_MEASURES: Mapping[str, tuple[str, str, bool]] = MappingProxyType(
    {
        "enough_accepted_pairs": ("min_accepted_pairs", "Enough accepted pairs to train on.", True),
        "acceptance_rate": (
            "min_acceptance_rate",
            "The generator's questions are good enough to be worth training on.",
            True,
        ),
        "yield_per_document": (
            "min_pairs_per_document",
            "Every document yields pairs: accepted ones for each.",
            False,
        ),
        "segment_coverage": (
            "min_segment_coverage",
            "Questions cover the documents: share of segments with an accepted question.",
            False,
        ),
        "asked_mix": (
            "max_share_deviation",
            "Query types, reasoning types and hop counts come in the shares asked for.",
            False,
        ),
        "duplicate_rate": ("max_duplicate_rate", "The generator seldom asks the same question twice.", False),
        "round_trip_rate": (
            "min_round_trip_rate",
            "Questions lead back to their sources: share of pairs that find all in the ten best.",
            False,
        ),
    }
)
"""Check of the generated set to its bound in ``gates``, what it says, and whether a failure is an error that blocks."""


@dg.multi_asset_check(
    name="generated_set",
    specs=[
        dg.AssetCheckSpec(
            name,
            asset="qa_dataset",
            additional_deps=["qa_decisions", "corpus"],
            description=meaning,
            blocking=hard,
        )
        for name, (_, meaning, hard) in _MEASURES.items()
    ],
    ins={
        "qa_dataset": dg.AssetIn("qa_dataset"),
        "qa_decisions": dg.AssetIn("qa_decisions"),
        "corpus": dg.AssetIn("corpus"),
    },
)
def generated_set(
    settings: dg.ResourceParam[Settings], qa_dataset: pl.DataFrame, qa_decisions: pl.DataFrame, corpus: pl.DataFrame
) -> Iterable[dg.AssetCheckResult]:
    """The bounds of the generated set, in one step: each of them alone would take a process of its own.

    All but the first are about what a language model wrote, apart from pairs of other sources and their passages. Where
    people's labels or the documents' structure are all there is, few pairs are a warning.
    """
    gates, generates = settings.gates, settings.training_data.generates
    enough = quality.accepted_pairs(qa_dataset, qa_decisions, gates)
    yield _measured(enough, "gates.min_accepted_pairs", name="enough_accepted_pairs", hard=generates)
    if not generates:
        for name in _MEASURES.keys() - {"enough_accepted_pairs"}:
            yield dg.AssetCheckResult(passed=True, check_name=name, description=_NOTHING_GENERATED)
        return
    written = qa_dataset.filter(pl.col("origin") == GENERATED)
    asked_of = corpus.filter(pl.col("label_set").is_null())
    measured = {
        "acceptance_rate": quality.acceptance_rate(qa_decisions, gates),
        "yield_per_document": quality.yield_per_document(written, asked_of, gates),
        "segment_coverage": quality.segment_coverage(written, asked_of, gates),
        "asked_mix": quality.asked_mix(written, settings.synthesis, gates),
        "duplicate_rate": quality.duplicate_rate(qa_decisions, gates),
        "round_trip_rate": quality.round_trip_rate(qa_decisions, gates),
    }
    for name, check in measured.items():
        setting, _, hard = _MEASURES[name]
        yield _measured(check, f"gates.{setting}", name=name, hard=hard)


@dg.asset_check(
    asset="qa_dataset",
    description="Judged pairs score well on every criterion, on average.",
    additional_ins={"qa_decisions": dg.AssetIn("qa_decisions"), "qa_scores": all_batches()},
)
def mean_scores(
    settings: dg.ResourceParam[Settings], qa_decisions: pl.DataFrame, qa_scores: BatchTables
) -> dg.AssetCheckResult:
    """``gates.min_mean_score``."""
    if not settings.training_data.generates:
        return dg.AssetCheckResult(passed=True, description=_NOTHING_GENERATED)
    scores = pl.concat(qa_scores.values()) if qa_scores else tables.QA_SCORES.empty()
    if scores.is_empty():
        return dg.AssetCheckResult(passed=True, description="no pair was judged")
    return _measured(quality.mean_scores(scores, qa_decisions, settings.gates), "gates.min_mean_score")


@dg.asset_check(
    asset="qa_dataset",
    description="The judge tells good pairs from bad: its verdicts differ, and planted bad pairs score lower.",
    additional_ins={"qa_scores": all_batches(), "rejected_judgements": all_batches()},
)
def judge_discriminates(
    settings: dg.ResourceParam[Settings],
    qa_dataset: pl.DataFrame,  # noqa: ARG001 - what the check is about
    qa_scores: BatchTables,
    rejected_judgements: BatchTables,
) -> dg.AssetCheckResult:
    """``gates.min_judge_spread`` and ``gates.min_judge_margin``; a judge that measures is not asked."""
    scores = pl.concat(qa_scores.values()) if qa_scores else tables.QA_SCORES.empty()
    judgements = pl.concat(rejected_judgements.values()) if rejected_judgements else tables.REJECTED_PAIRS.empty()
    faults, figures = quality.judge_faults(scores, judgements, settings.gates)
    advice = ["the judge is at fault: set llm.judge_model to a larger model"] if faults else []
    return none_of(faults + advice, figures)


@dg.asset_check(
    asset="qa_dataset",
    description="The thresholds decide as people do, on the pairs that people accepted or rejected.",
    additional_ins={"qa_decisions": dg.AssetIn("qa_decisions"), "qa_scores": all_batches()},
)
def thresholds_agree_with_reviewers(
    settings: dg.ResourceParam[Settings],
    qa_dataset: pl.DataFrame,  # noqa: ARG001 - what the check is about
    qa_decisions: pl.DataFrame,
    qa_scores: BatchTables,
) -> dg.AssetCheckResult:
    """``gates.min_judge_agreement``, held against the upper end of the interval: few reviews prove nothing."""
    reviews = read_reviews(settings.paths.root)
    scores = pl.concat(qa_scores.values()) if qa_scores else tables.QA_SCORES.empty()
    if reviews is None or scores.is_empty():
        return dg.AssetCheckResult(passed=True, description="nobody reviewed a judged pair")
    judged = judged_pairs(scores, qa_decisions, fold_reviews(reviews), settings.synthesis)
    failures, measured = agreement_failures(measure_agreement(judged, reviews), settings.gates)
    return none_of(failures, measured, hard=False)


@dg.asset_check(
    asset="dataset_split",
    blocking=True,
    description="No leak: no group on two sides, no test question or copy of one in train; enough test questions.",
    additional_ins={"qa_dataset": dg.AssetIn("qa_dataset")},
)
def split_is_sound(
    settings: dg.ResourceParam[Settings], dataset_split: pl.DataFrame, qa_dataset: pl.DataFrame
) -> dg.AssetCheckResult:
    """``training_data.min_test_questions``, and the rules of the split."""
    tested = dataset_split.filter(pl.col("split") == "test").height
    return none_of(
        split_failures(dataset_split, qa_dataset, settings),
        {"test_questions": tested, "min_test_questions": settings.training_data.min_test_questions},
    )


@dg.asset_check(
    asset="hard_negatives",
    blocking=True,
    description="Every negative is wrong: under the ceiling, no positive and no copy of one.",
    additional_ins={"corpus": dg.AssetIn("corpus")},
)
def negatives_are_wrong(
    settings: dg.ResourceParam[Settings], hard_negatives: pl.DataFrame, corpus: pl.DataFrame
) -> dg.AssetCheckResult:
    """``training_data.relative_margin``, and the rules of mining."""
    found = {
        "questions": hard_negatives.height,
        "negatives": int(hard_negatives["negative_segment_ids"].list.len().sum()),
    }
    return none_of(negatives_failures(hard_negatives, corpus, settings), found)


@dg.asset_check(asset="hard_negatives", description="Most questions have all the hard negatives that were wanted.")
def negatives_suffice(settings: dg.ResourceParam[Settings], hard_negatives: pl.DataFrame) -> dg.AssetCheckResult:
    """``gates.min_negative_coverage``."""
    share = full_share(hard_negatives, settings.training_data.num_negatives)
    bound = settings.gates.min_negative_coverage
    return _figure(share, bound, "gates.min_negative_coverage", passed=share >= bound)


@dg.asset_check(
    asset="retrieval_evaluation",
    blocking=True,
    description="The tuned model is better than its base, and worse on no set of people's questions.",
)
def tuned_is_better(settings: dg.ResourceParam[Settings], retrieval_evaluation: pl.DataFrame) -> dg.AssetCheckResult:
    """``gates.min_gain`` and ``gates.max_labelled_loss``."""
    gates = settings.gates
    figures = {
        f"{query_set}_{system}_ndcg_10": row["value"]
        for (query_set, system), row in headline(retrieval_evaluation).items()
        if system in {"base", "tuned"}
    }
    return none_of(release_failures(retrieval_evaluation, gates), figures | {"min_gain": gates.min_gain})


@dg.asset_check(
    asset="finetuned_model", blocking=True, description="The model still knows what its base knew of general text."
)
def base_is_not_forgotten(settings: dg.ResourceParam[Settings], finetuned_model: Path) -> dg.AssetCheckResult:
    """``forgetting.max_loss``, on questions from the standard library's documentation."""
    record = read_record(finetuned_model)
    figures = {name: record.get(name) for name in ("general_before", "general_after")}
    return none_of(
        forgetting_failures(record, settings.forgetting), figures | {"max_loss": settings.forgetting.max_loss}
    )


@dg.asset_check(asset="onnx_model", blocking=True, description="The export gives the original's vectors and rankings.")
def export_is_faithful(settings: dg.ResourceParam[Settings], onnx_model: Path) -> dg.AssetCheckResult:
    """``gates.min_export_cosine``, ``max_export_ndcg_delta`` and ``min_export_top10_overlap``."""
    parity = read_parity(onnx_model)
    return none_of(parity.failures(settings.gates), parity.figures)


@dg.asset_check(
    asset="onnx_precisions", description="Every other precision keeps to its bounds; one that does not is not released."
)
def precisions_are_faithful(settings: dg.ResourceParam[Settings], onnx_precisions: Path) -> dg.AssetCheckResult:
    """``release.min_fp16_cosine`` and ``release.max_int8_ndcg_delta``."""
    measured = measured_precisions(onnx_precisions).items()
    return none_of(
        [failure for precision, parity in measured for failure in precision_failures(precision, parity, settings)],
        {f"{precision}_{name}": value for precision, parity in measured for name, value in parity.figures.items()},
        hard=False,
    )


@dg.asset_check(asset="release", blocking=True, description="Every file of the bundle is what its manifest says.")
def bundle_is_whole(release: Path) -> dg.AssetCheckResult:
    """Hashes of all files."""
    try:
        manifest = verify_bundle(release)
    except BundleError as error:
        return none_of([str(error)], {})
    return dg.AssetCheckResult(
        passed=True, description=f"{counted(len(manifest.files), 'file')}, version {manifest.version}"
    )


@dg.asset_check(
    asset="champion_comparison", blocking=True, description="The new release is no worse than the one that is served."
)
def no_worse_than_champion(
    settings: dg.ResourceParam[Settings], champion_comparison: pl.DataFrame
) -> dg.AssetCheckResult:
    """``gates.min_champion_gain`` and ``gates.max_labelled_loss``."""
    figures = {
        f"{row['query_set']}_{system}_ndcg_10": row[f"{system}_ndcg_10"]
        for row in champion_comparison.sort("query_set").to_dicts()
        for system in ("champion", "candidate")
    }
    bound = {"min_champion_gain": settings.gates.min_champion_gain}
    return none_of(promotion_failures(champion_comparison, settings.gates), figures | bound)


@dg.asset_check(asset="deployment", blocking=True, description="The endpoint gives the model's vectors and rankings.")
def endpoint_is_faithful(settings: dg.ResourceParam[Settings], deployment: pl.DataFrame) -> dg.AssetCheckResult:
    """``gates.min_export_cosine`` and ``gates.min_export_top10_overlap``, through the endpoint."""
    served = deployment.row(0, named=True)
    figures = {name: served[name] for name in ("texts_compared", "min_cosine", "top10_overlap", "median_milliseconds")}
    return none_of(deployment_failures(deployment, settings), figures)


all_checks = [
    encoder_knows_the_words,
    generated_set,
    mean_scores,
    judge_discriminates,
    thresholds_agree_with_reviewers,
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
