from __future__ import annotations

import polars as pl

from embed_pipeline.evaluation.gates import release_failures
from embed_pipeline.settings import Evaluation


def metrics(**sets: tuple[float, float]) -> pl.DataFrame:
    rows = [
        {"query_set": name, "slice": part, "system": system, "metric": metric, "k": 10, "value": value + offset}
        for name, values in sets.items()
        for system, value in zip(("base", "tuned"), values, strict=True)
        for part, metric, k, offset in (
            ("all", "nDCG", 10, 0.0),
            ("hop_count=1", "nDCG", 10, 9.0),
            ("all", "MAP", 10, 9.0),
        )
    ]
    return pl.DataFrame(rows)


def test_a_gain_that_is_large_enough_passes() -> None:
    assert release_failures(metrics(generated=(0.5, 0.55), people=(0.4, 0.39)), Evaluation(min_gain=0.1)) == []


def test_too_small_a_gain_is_relative_to_the_base() -> None:
    failures = release_failures(metrics(generated=(0.5, 0.54)), Evaluation(min_gain=0.1))
    assert len(failures) == 1
    assert "generated: nDCG@10 0.5400 against the base's 0.5000" in failures[0]
    assert "min_gain = 0.1" in failures[0]


def test_a_loss_on_peoples_questions_is_absolute() -> None:
    frame = metrics(generated=(0.5, 0.6), people=(0.4, 0.37), other=(0.4, 0.39))
    failures = release_failures(frame, Evaluation(max_labelled_loss=0.02))
    assert [failure.split(":")[0] for failure in failures] == ["people"]


def test_nothing_is_released_without_generated_questions() -> None:
    assert release_failures(metrics(people=(0.4, 0.9)), Evaluation()) != []
