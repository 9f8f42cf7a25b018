"""The comparison in a few lines, for a terminal and for the Dagster UI."""

from __future__ import annotations

import polars as pl

from embed_pipeline.enumerations import SYSTEMS
from embed_pipeline.evaluation.query_sets import GENERATED

COLUMNS = ("questions", "system", "nDCG@10", "Recall@10", "nDCG@10 less the base's (95 % interval)")


def headline_rows(metrics: pl.DataFrame) -> list[list[str]]:
    """A row for each query set and system, under :data:`COLUMNS`; the generated questions first.

    Args:
        metrics: table ``retrieval_evaluation``.
    """
    shown = metrics.filter((pl.col("slice") == "all") & (pl.col("k") == 10))  # noqa: PLR2004 - the headline figures are at 10
    values = {(row["query_set"], row["system"], row["metric"]): row for row in shown.to_dicts()}
    names = sorted({name for name, _, _ in values}, key=lambda name: (name != GENERATED, name))
    return [_row(values[name, system, "nDCG"], values[name, system, "Recall"]) for name in names for system in SYSTEMS]


def _row(ndcg: dict[str, object], recall: dict[str, object]) -> list[str]:
    changed = f"{ndcg['difference']:+.4f} ({ndcg['difference_low']:+.4f} to {ndcg['difference_high']:+.4f})"
    return [
        f"{ndcg['query_set']} ({ndcg['queries']})",
        str(ndcg["system"]),
        f"{ndcg['value']:.4f}",
        f"{recall['value']:.4f}",
        "" if ndcg["system"] == "base" else changed,
    ]
