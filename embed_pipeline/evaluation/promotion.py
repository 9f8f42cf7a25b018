"""Champion and candidate: is a new release better than the one that is served now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from embed_pipeline.evaluation.gates import headline
from embed_pipeline.evaluation.query_sets import GENERATED, QuerySet
from embed_pipeline.evaluation.retrieval import compare
from embed_pipeline.settings import Gates, Settings
from embed_pipeline.tables import CHAMPION_COMPARISON


def compare_with_champion(
    champion: tuple[str, Path],
    candidate: tuple[str, Path],
    corpus: pl.DataFrame,
    sets: Sequence[QuerySet],
    settings: Settings,
) -> pl.DataFrame:
    """Measure two releases on the same queries and passages.

    Args:
        champion: version and model folder of the release served now.
        candidate: version and model folder of the new one.
        corpus: table ``corpus``.
        sets: the frozen test questions and the labelled sets.
        settings: groups ``embedding`` and ``evaluation``, and the seed.

    Returns:
        Table ``champion_comparison``, a row for each query set.

    Raises:
        EvaluationError: as :func:`.retrieval.compare`.
        ModelError: a release cannot be loaded.
    """
    found = headline(compare(champion[1], candidate[1], corpus, sets, settings).metrics)
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
