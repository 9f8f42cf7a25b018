"""Small pictures for asset metadata, as PNG bytes."""

import polars as pl

from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.evaluation.plots import draw_bars, draw_histograms


def counts(values: pl.Series, label: str) -> bytes:
    """How often each value occurs, as bars."""
    counted = values.value_counts().sort(values.name)
    return draw_bars([str(value) for value in counted[values.name]], counted["count"].to_list(), label)


def score_histograms(scores: pl.DataFrame) -> bytes:
    """Distribution of the four scores of a batch."""
    return draw_histograms({name: scores[name].to_list() for name in CRITERIA}, (1.0, 10.0))
