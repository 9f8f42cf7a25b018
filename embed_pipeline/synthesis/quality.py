"""What a generated set is worth: measures with their bounds and the worst examples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import polars as pl

from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.settings import Gates, Synthesis
from embed_pipeline.synthesis.judge import LEAST_JUDGED
from embed_pipeline.synthesis.plan import STRUCTURAL_SHARE
from embed_pipeline.synthesis.score import MEASURED, PLANTED
from embed_pipeline.synthesis.select import ACCEPTED

ROUND_TRIP_K = 10
WORST = 10
PLANTED_KINDS = MappingProxyType(
    {
        "wrong_answer": "a wrong answer",
        "other_segment": "segments of another subject",
        "copied_prompt": "a sentence of the prompt as their question",
    }
)
"""Kind of planted bad pair to its words."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        value: what was measured.
        bound: what it is held against.
        passed: whether it holds.
        worst: at most ten rows to look at, worst first; its columns are for reading.
    """

    value: float
    bound: float
    passed: bool
    worst: pl.DataFrame


def accepted_pairs(dataset: pl.DataFrame, decisions: pl.DataFrame, gates: Gates) -> Check:
    """How many pairs are accepted; the reasons why others are not, commonest first.

    Args:
        dataset: frame of :data:`tables.QA_DATASET`.
        decisions: frame of :data:`tables.QA_DECISIONS`.
        gates: ``min_accepted_pairs``.
    """
    turned_down = decisions.filter(~pl.col("accepted"))
    reasons = (
        turned_down["reason"].value_counts(sort=True, name="pairs").sort("pairs", "reason", descending=[True, False])
    )
    return _at_least(dataset.height, gates.min_accepted_pairs, reasons)


def unknown_words(by_document: pl.DataFrame, gates: Gates) -> Check:
    """Share of the documents' tokens that stand for words which the encoder does not know; the documents with the most.

    Where it is large, vectors say little: choose an ``embedding.model`` trained on the documents' language.

    Args:
        by_document: frame of :func:`embed_pipeline.corpus.current.unknown_words`.
        gates: ``max_unknown_tokens``.
    """
    share = int(by_document["unknown_tokens"].sum()) / max(1, int(by_document["token_count"].sum()))
    worst = by_document.with_columns(share=pl.col("unknown_tokens") / pl.col("token_count")).head(WORST)
    return Check(share, gates.max_unknown_tokens, share <= gates.max_unknown_tokens, worst)


def yield_per_document(dataset: pl.DataFrame, corpus: pl.DataFrame, gates: Gates) -> Check:
    """Accepted pairs for each document, on average; the documents with the fewest.

    Args:
        dataset: frame of :data:`tables.QA_DATASET`.
        corpus: frame of :data:`tables.CORPUS`.
        gates: ``min_pairs_per_document``.
    """
    asked = dataset.select(pl.col("document_ids").explode().alias("document_id")).group_by("document_id").len("pairs")
    documents = corpus.group_by("document_id", "path").agg(pl.len().alias("segments"))
    each = documents.join(asked, on="document_id", how="left").with_columns(pl.col("pairs").fill_null(0))
    worst = each.sort("pairs", "segments", "path", descending=[False, True, False]).select("path", "pairs", "segments")
    return _at_least(dataset.height / max(1, documents.height), gates.min_pairs_per_document, worst)


def acceptance_rate(decisions: pl.DataFrame, gates: Gates) -> Check:
    """Accepted pairs as a share of the scored ones; the best-scored that were rejected.

    Args:
        decisions: frame of :data:`tables.QA_DECISIONS`.
        gates: ``min_acceptance_rate``.
    """
    best = decisions.filter(~pl.col("accepted")).sort("overall", "qa_id", descending=[True, False])
    worst = best.select("qa_id", "reason", "detail", "overall", "question")
    return _at_least(_share(decisions["accepted"]), gates.min_acceptance_rate, worst)


def asked_mix(dataset: pl.DataFrame, synthesis: Synthesis, gates: Gates) -> Check:
    """The farthest that a share of the accepted pairs is from what was asked: query and reasoning type, hop count.

    Args:
        dataset: frame of :data:`tables.QA_DATASET`.
        synthesis: the shares asked for.
        gates: ``max_share_deviation``.
    """
    rows = []
    for column, wanted in _asked_shares(synthesis).items():
        counts = dict(dataset[column].cast(pl.String).value_counts().iter_rows())
        for name in sorted({*wanted, *counts}):
            got = counts.get(name, 0) / max(1, dataset.height)
            asked = wanted.get(name, 0.0)
            rows.append({"field": column, "value": name, "asked": asked, "got": got, "off": abs(got - asked)})
    worst = pl.DataFrame(rows).sort("off", "field", "value", descending=[True, False, False])
    return _at_most(worst["off"][0], gates.max_share_deviation, worst)


def mean_scores(scores: pl.DataFrame, pairs: pl.DataFrame, gates: Gates) -> Check:
    """The least mean of a criterion over all judged pairs; the pairs that score least on it, with the reason.

    Args:
        scores: frame of :data:`tables.QA_SCORES`.
        pairs: frame of :data:`tables.QA_PAIRS`.
        gates: ``min_mean_score``.
    """
    means = {name: float(scores[name].mean() or 0.0) for name in CRITERIA}  # type: ignore[arg-type]  # a real column
    least = min(means, key=lambda name: (means[name], name))
    asked = scores.join(pairs.select("qa_id", "question").unique("qa_id", keep="last"), on="qa_id", how="left")
    worst = asked.sort(least, "qa_id").select("qa_id", least, f"{least}_justification", "question")
    return _at_least(means[least], gates.min_mean_score, worst)


def duplicate_rate(decisions: pl.DataFrame, gates: Gates) -> Check:
    """Duplicates as a share of the pairs that pass every threshold; each with the question that was kept.

    Args:
        decisions: frame of :data:`tables.QA_DECISIONS`.
        gates: ``max_duplicate_rate``.
    """
    passed = decisions.filter(pl.col("reason").is_in([ACCEPTED, "duplicate"]))
    kept = decisions.select(pl.col("qa_id").alias("duplicate_of"), pl.col("question").alias("kept"))
    twins = passed.filter(pl.col("duplicate_of").is_not_null()).join(kept, on="duplicate_of", how="left")
    worst = twins.sort("overall", "qa_id", descending=[True, False]).select("qa_id", "question", "kept", "detail")
    return _at_most(twins.height / max(1, passed.height), gates.max_duplicate_rate, worst)


def segment_coverage(dataset: pl.DataFrame, corpus: pl.DataFrame, gates: Gates) -> Check:
    """The share of segments with an accepted question; the documents with most segments without one.

    Args:
        dataset: frame of :data:`tables.QA_DATASET`.
        corpus: frame of :data:`tables.CORPUS`.
        gates: ``min_segment_coverage``.
    """
    asked = dataset["segment_ids"].explode().drop_nulls().unique()
    covered = corpus["segment_id"].is_in(asked.implode())
    bare = corpus.filter(~covered).group_by("path").agg(pl.len().alias("segments without a question"))
    worst = bare.sort("segments without a question", "path", descending=[True, False])
    return _at_least(_share(covered), gates.min_segment_coverage, worst)


def round_trip_rate(decisions: pl.DataFrame, gates: Gates) -> Check:
    """The share of pairs whose question finds all its sources among the ten best; those that find them least.

    Args:
        decisions: frame of :data:`tables.QA_DECISIONS`.
        gates: ``min_round_trip_rate``.
    """
    found = decisions["round_trip_rank"] <= ROUND_TRIP_K
    lost = decisions.sort("round_trip_rank", "overall", "qa_id", descending=[True, True, False], nulls_last=True)
    worst = lost.select("qa_id", "round_trip_rank", "overall", "question")
    return _at_least(_share(found), gates.min_round_trip_rate, worst)


def judge_faults(scores: pl.DataFrame, judgements: pl.DataFrame, gates: Gates) -> tuple[list[str], dict[str, float]]:
    """Why the judge that was asked cannot tell good pairs from bad, a sentence each, and what was measured.

    Args:
        scores: frame of :data:`tables.QA_SCORES`.
        judgements: frame of :data:`tables.REJECTED_JUDGEMENTS`, with what the judge made of planted bad pairs.
        gates: ``min_judge_spread`` and ``min_judge_margin``.
    """
    asked = scores.filter(pl.col("judge") != MEASURED)
    if asked.height < LEAST_JUDGED:
        return [], {}
    names = ", ".join(sorted(asked["judge"].unique()))
    mean, spread = _mean(asked["overall"]), float(asked["overall"].std() or 0.0)  # type: ignore[arg-type]  # a number
    measured = {"mean_overall": mean, "spread": spread}
    ranks = asked.select(pl.corr("overall", -pl.col("round_trip_rank"), method="spearman")).item()
    if ranks is not None and not math.isnan(ranks):
        measured["agreement_with_round_trip"] = float(ranks)
    faults = []
    if spread < gates.min_judge_spread:
        faults.append(f"the verdicts of {names} are all alike: overall {mean:.2f}, standard deviation {spread:.2f}")
    said: dict[str, list[float]] = {}
    for raw in judgements.filter(pl.col("reason") == PLANTED)["raw"]:
        planted = json.loads(raw)
        if planted["overall"] is not None:
            said.setdefault(planted["kind"], []).append(planted["overall"])
    for kind, values in sorted(said.items()):
        measured[kind] = sum(values) / len(values)
        if measured[kind] > mean - gates.min_judge_margin:
            meaning = PLANTED_KINDS.get(kind, kind)
            faults.append(f"{names} gives pairs with {meaning} {measured[kind]:.2f} overall, and the others {mean:.2f}")
    return faults, measured


def _mean(column: pl.Series) -> float:
    return float(column.mean() or 0.0)  # type: ignore[arg-type]  # a number


def _asked_shares(synthesis: Synthesis) -> dict[str, Mapping[str, float]]:
    hops = synthesis.max_hops - 1
    multi = synthesis.multi_hop_share / (1 + synthesis.multi_hop_share) if hops else 0.0
    reasoning = sum(synthesis.reasoning_types.values())
    structural = (1 - multi) * STRUCTURAL_SHARE
    return {
        "query_type": {"multi_hop": multi, "structural": structural, "contextual": 1 - multi - structural},
        "reasoning_type": {name: weight / reasoning for name, weight in synthesis.reasoning_types.items()},
        "hop_count": {"1": 1 - multi, **{str(count): multi / hops for count in range(2, synthesis.max_hops + 1)}},
    }


def _share(column: pl.Series) -> float:
    """Share of a boolean column that is true; 0 of none."""
    return float(column.sum()) / max(1, len(column))


def _at_least(value: float, bound: float, worst: pl.DataFrame) -> Check:
    return Check(float(value), float(bound), value >= bound, worst.head(WORST))


def _at_most(value: float, bound: float, worst: pl.DataFrame) -> Check:
    return Check(float(value), float(bound), value <= bound, worst.head(WORST))
