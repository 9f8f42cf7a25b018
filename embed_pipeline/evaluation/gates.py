"""What keeps a tuned model from being released or promoted: pure functions over stored comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.enumerations import Context
from embed_pipeline.evaluation.query_sets import GENERATED, QuerySet
from embed_pipeline.evaluation.retrieval import compare
from embed_pipeline.settings import Forgetting, Gates, Settings
from embed_pipeline.tables import CHAMPION_COMPARISON


def headline(metrics: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """The row of nDCG@10, the figure that gates, for each (query set, system), in the table's order.

    Args:
        metrics: table ``retrieval_evaluation``.
    """
    rows = metrics.filter((pl.col("slice") == "all") & (pl.col("metric") == "nDCG") & (pl.col("k") == 10))  # noqa: PLR2004 - nDCG@10
    return {(row["query_set"], row["system"]): row for row in rows.to_dicts()}


def release_failures(metrics: pl.DataFrame, gates: Gates) -> list[str]:
    """Why the tuned model may not be released, a sentence for each reason; empty: it may.

    The gain on the generated test questions is relative to the base. On a labelled set no loss may be significant,
    its 95 % interval below zero, nor larger than the bound, whatever its interval. All are in nDCG@10. A comparison
    without generated questions releases nothing.

    Args:
        metrics: table ``retrieval_evaluation``.
        gates: the bounds, ``min_gain`` and ``max_labelled_loss``.
    """
    rows = headline(metrics)
    figures = {key: row["value"] for key, row in rows.items()}
    sets = sorted({name for name, _ in figures})
    if GENERATED not in sets:
        return ["the comparison holds no generated test questions, so no gain is shown"]
    failures = []
    for name in sets:
        base, tuned = figures[name, "base"], figures[name, "tuned"]
        figure = f"nDCG@10 {tuned:.4f} against the base's {base:.4f}"
        if name == GENERATED and tuned < base * (1 + gates.min_gain):
            failures.append(f"{name}: {figure} is below the least relative gain gates.min_gain = {gates.min_gain}")
        low, high = (rows[name, "tuned"][f"difference_{end}"] for end in ("low", "high"))
        if name != GENERATED and high < 0:
            failures.append(f"{name}: {figure} is a significant loss, 95 % interval [{low:.4f}, {high:.4f}]")
        elif name != GENERATED and base - tuned > gates.max_labelled_loss:
            failures.append(f"{name}: {figure} loses more than gates.max_labelled_loss = {gates.max_labelled_loss}")
    return failures


def forgetting_failures(record: Mapping[str, Any], forgetting: Forgetting) -> list[str]:
    """Why the tuned model has forgotten too much, a sentence for each reason; empty: it has not.

    Args:
        record: what training recorded with the model: nDCG@10 on the general questions, ``general_before`` of the base
            and ``general_after`` of the model, None where it was not measured.
        forgetting: the bound, ``max_loss``; with no ``questions`` nothing is checked.
    """
    if not forgetting.questions:
        return []
    before, after = record.get("general_before"), record.get("general_after")
    if before is None or after is None:
        return ["the general questions were not scored when the model was trained; train it again"]
    if before - after <= forgetting.max_loss:
        return []
    tried = "; no mixture with the base's weights keeps both bounds" if record.get("tuned_share") == 0 else ""
    figure = f"nDCG@10 {after:.4f} against the base's {before:.4f}"
    return [f"general questions: {figure} loses more than forgetting.max_loss = {forgetting.max_loss}{tried}"]


def compare_with_champion(
    champion: tuple[str, Path],
    candidate: tuple[str, Path],
    corpus: pl.DataFrame,
    sets: Sequence[QuerySet],
    settings: Settings,
    *,
    champion_context: Context | None = None,
) -> pl.DataFrame:
    """Measure two releases on the same queries and passages.

    Args:
        champion: version and model folder of the release served now.
        candidate: version and model folder of the new one.
        corpus: table ``corpus``.
        sets: the frozen test questions and the labelled sets.
        settings: groups ``embedding`` and ``evaluation``, and the seed.
        champion_context: what is put before a segment's text under the champion; None: what ``embedding.context`` says.

    Returns:
        Table ``champion_comparison``, a row for each query set.

    Raises:
        EvaluationError: as :func:`.retrieval.compare`.
        ModelError: a release cannot be loaded.
    """
    compared = compare(champion[1], candidate[1], corpus, sets, settings, base_context=champion_context)
    found = headline(compared.metrics)
    return CHAMPION_COMPARISON.frame(
        [
            {
                "query_set": name,
                "champion": champion[0],
                "candidate": candidate[0],
                "queries": found[name, "tuned"]["queries"],
                "champion_ndcg_10": found[name, "base"]["value"],
                "candidate_ndcg_10": found[name, "tuned"]["value"],
                "difference_low": found[name, "tuned"]["difference_low"],
                "difference_high": found[name, "tuned"]["difference_high"],
            }
            for name in sorted({name for name, _ in found})
        ]
    )


def promotion_failures(comparison: pl.DataFrame, gates: Gates) -> list[str]:
    """Why the candidate may not take the champion's place, a sentence for each reason; empty: it may.

    An empty comparison holds nothing against it: nothing is served yet, or it is the champion itself.

    Args:
        comparison: table ``champion_comparison``.
        gates: ``min_champion_gain`` and ``max_labelled_loss``.
    """
    gain, loss = gates.min_champion_gain, gates.max_labelled_loss
    failures = []
    for row in comparison.sort("query_set").to_dicts():
        champion, candidate = row["champion_ndcg_10"], row["candidate_ndcg_10"]
        figure = (
            f"{row['query_set']}: nDCG@10 {candidate:.4f} of {row['candidate']} against {champion:.4f} of "
            f"{row['champion']}, which is served"
        )
        if row["query_set"] == GENERATED and candidate < champion * (1 + gain):
            failures.append(f"{figure}, is below the least relative gain gates.min_champion_gain = {gain}")
        if row["query_set"] != GENERATED and champion - candidate > loss:
            failures.append(f"{figure}, loses more than gates.max_labelled_loss = {loss}")
    return failures
