"""Whether a difference is real: paired bootstrap intervals, and a verdict in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Outcome = Literal["better", "worse", "unclear"]

_CONFIDENCE = 95.0
# Normal quantiles of a 95 % interval and of 80 % power: how many questions would show a difference of this size.
_DETECTABLE = 1.96 + 0.84
_MOST_QUESTIONS = 20_000
_BLOCK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Verdict:
    """Tuned against base on one query set.

    Attributes:
        outcome: ``better`` or ``worse`` where the interval excludes zero, else ``unclear``.
        difference: mean nDCG@10 of the tuned model less the base's.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        queries: questions measured.
        questions_needed: about how many more would show a difference of this size; None: shown already, or
            more than anyone would write.
        sentence: the verdict in words.
    """

    outcome: Outcome
    difference: float
    low: float
    high: float
    queries: int
    questions_needed: int | None
    sentence: str


def bootstrap_intervals(differences: Floats, samples: int, seed: int) -> tuple[Floats, Floats]:
    """Percentile 95 % intervals of the mean paired difference (Efron and Tibshirani 1993, chapter 13).

    Args:
        differences: float64 (queries, columns); one column for each comparison, all resampled alike.
        samples: resamples of the queries.
        seed: seed of the resampling.

    Returns:
        Lower and upper ends, each float64 (columns,).

    Raises:
        ValueError: there are no queries.
    """
    queries, columns = differences.shape
    if not queries:
        message = "an interval needs at least one query, got none"
        raise ValueError(message)
    generator = np.random.default_rng(seed)
    means = np.empty((samples, columns))
    rows = max(1, _BLOCK_BYTES // (8 * queries))
    for start in range(0, samples, rows):
        count = min(rows, samples - start)
        weights = generator.multinomial(queries, np.full(queries, 1 / queries), size=count)
        means[start : start + count] = weights @ differences / queries
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(means, [tail, 100 - tail], axis=0)
    return low, high


def judge(base: Floats, tuned: Floats, *, samples: int, seed: int) -> Verdict:
    """The verdict on nDCG@10 of every query under both models, float64 (queries,) each, in the same order."""
    differences = tuned - base
    lows, highs = bootstrap_intervals(differences[:, None], samples, seed)
    mean, low, high = float(differences.mean()), float(lows[0]), float(highs[0])
    figures = f"{mean:+.3f} nDCG@10 [{low:.3f}, {high:.3f}]"
    needed: int | None = None
    outcome: Outcome = "unclear"
    if low > 0:
        outcome, sentence = "better", f"better, {figures}"
    elif high < 0:
        outcome, sentence = "worse", f"worse, {figures}"
    else:
        needed = _questions_needed(differences)
        advice = f"; about {needed} more test questions needed" if needed else ""
        sentence = f"no difference shown: {figures}{advice}"
    return Verdict(outcome, mean, low, high, len(differences), needed, sentence)


def _questions_needed(differences: Floats) -> int | None:
    """More questions until a difference of this size and spread would show, to two digits."""
    mean, spread = abs(float(differences.mean())), float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if not mean or not spread:
        return None
    more = (_DETECTABLE * spread / mean) ** 2 - len(differences)
    if not 0 < more <= _MOST_QUESTIONS:
        return None
    unit: int = 10 ** max(0, len(str(int(more))) - 2)
    return max(1, round(more / unit) * unit)
