"""What keeps a tuned model from being released: pure functions over the stored comparison."""

from __future__ import annotations

import polars as pl

from embed_pipeline.evaluation.query_sets import GENERATED
from embed_pipeline.settings import Evaluation


def release_failures(metrics: pl.DataFrame, evaluation: Evaluation) -> list[str]:
    """Why the tuned model may not be released, a sentence for each reason; empty: it may.

    The gain on the generated test questions is relative to the base, the loss on a labelled set absolute, both in
    nDCG@10. A comparison without generated questions releases nothing.

    Args:
        metrics: table ``retrieval_evaluation``.
        evaluation: the bounds, ``min_gain`` and ``max_labelled_loss``.
    """
    headline = metrics.filter((pl.col("slice") == "all") & (pl.col("metric") == "nDCG") & (pl.col("k") == 10))  # noqa: PLR2004 - nDCG@10 is the figure that gates
    figures = {(row["query_set"], row["system"]): row["value"] for row in headline.to_dicts()}
    sets = sorted({name for name, _ in figures})
    if GENERATED not in sets:
        return ["the comparison holds no generated test questions, so no gain is shown"]
    failures = []
    for name in sets:
        base, tuned = figures[name, "base"], figures[name, "tuned"]
        figure = f"nDCG@10 {tuned:.4f} against the base's {base:.4f}"
        if name == GENERATED and tuned < base * (1 + evaluation.min_gain):
            failures.append(
                f"{name}: {figure} is below the least relative gain evaluation.min_gain = {evaluation.min_gain}"
            )
        if name != GENERATED and base - tuned > evaluation.max_labelled_loss:
            failures.append(
                f"{name}: {figure} loses more than evaluation.max_labelled_loss = {evaluation.max_labelled_loss}"
            )
    return failures
