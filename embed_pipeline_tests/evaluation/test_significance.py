"""Intervals and verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from embed_pipeline.evaluation.significance import bootstrap_intervals, judge


def test_intervals_are_seeded_and_match_the_normal_ones() -> None:
    differences = np.random.default_rng(0).normal(0.1, 0.3, size=(400, 2))
    low, high = bootstrap_intervals(differences, 4000, seed=5)
    error = 1.96 * differences.std(axis=0) / 20
    assert low == pytest.approx(differences.mean(axis=0) - error, abs=0.004)
    assert high == pytest.approx(differences.mean(axis=0) + error, abs=0.004)
    again = bootstrap_intervals(differences, 4000, seed=5)
    assert (low.tolist(), high.tolist()) == (again[0].tolist(), again[1].tolist())
    assert bootstrap_intervals(differences, 4000, seed=6)[0].tolist() != low.tolist()


def test_the_verdict_says_better_worse_or_how_many_more_questions() -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, size=300)
    base = np.full(300, 0.5)
    better = judge(base, base + 0.1 + noise, samples=1000, seed=1)
    worse = judge(base, base - 0.1 + noise, samples=1000, seed=1)
    assert (better.outcome, worse.outcome) == ("better", "worse")
    assert better.sentence == f"better, {better.difference:+.3f} nDCG@10 [{better.low:.3f}, {better.high:.3f}]"
    assert worse.sentence.startswith("worse, -0.")
    small = noise - noise.mean() + 0.01
    unclear = judge(base, base + small, samples=1000, seed=1)
    assert unclear.outcome == "unclear"
    needed = (2.8 * small.std(ddof=1) / 0.01) ** 2 - 300
    assert unclear.questions_needed == pytest.approx(needed, rel=0.05)
    assert unclear.sentence.endswith(f"; about {unclear.questions_needed} more test questions needed")


def test_no_difference_at_all_asks_for_no_questions() -> None:
    verdict = judge(np.ones(20), np.ones(20), samples=100, seed=1)
    assert (verdict.outcome, verdict.questions_needed) == ("unclear", None)
    assert verdict.sentence == "no difference shown: +0.000 nDCG@10 [0.000, 0.000]"
    with pytest.raises(ValueError, match="at least one query"):
        judge(np.ones(0), np.ones(0), samples=100, seed=1)
