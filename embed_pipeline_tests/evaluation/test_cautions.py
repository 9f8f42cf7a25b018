"""Cautions."""

from __future__ import annotations

import numpy as np

from embed_pipeline.evaluation.cautions import threshold_at


def test_the_threshold_is_the_lowest_that_is_precise_enough() -> None:
    scores = np.asarray([0.9, 0.8, 0.7, 0.6, 0.5])
    right = np.asarray([True, True, False, True, False])
    assert threshold_at(scores, right, precision=1.0) == 0.8
    assert threshold_at(scores, right, precision=0.75) == 0.6
    assert threshold_at(scores, right, precision=0.1) == 0.5
    assert threshold_at(scores, ~right, precision=1.0) is None
