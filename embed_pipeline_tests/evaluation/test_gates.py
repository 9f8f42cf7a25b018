from __future__ import annotations

import polars as pl

from embed_pipeline.evaluation.gates import forgetting_failures, release_failures
from embed_pipeline.settings import Forgetting, Gates


def metrics(high: float = 0.1, **sets: tuple[float, float]) -> pl.DataFrame:
    """Rows of base and tuned figures; the upper end of every interval of a difference is ``high``."""
    rows = [
        {
            "query_set": name,
            "slice": part,
            "system": system,
            "metric": metric,
            "k": 10,
            "value": value + offset,
            "difference_low": -0.2,
            "difference_high": high,
        }
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
    assert release_failures(metrics(generated=(0.5, 0.55), people=(0.4, 0.39)), Gates(min_gain=0.1)) == []


def test_too_small_a_gain_is_relative_to_the_base() -> None:
    failures = release_failures(metrics(generated=(0.5, 0.54)), Gates(min_gain=0.1))
    assert len(failures) == 1
    assert "generated: nDCG@10 0.5400 against the base's 0.5000" in failures[0]
    assert "min_gain = 0.1" in failures[0]


def test_a_loss_on_peoples_questions_is_absolute() -> None:
    frame = metrics(generated=(0.5, 0.6), people=(0.4, 0.37), other=(0.4, 0.39))
    failures = release_failures(frame, Gates(max_labelled_loss=0.02))
    assert [failure.split(":")[0] for failure in failures] == ["people"]


def test_nothing_is_released_without_generated_questions() -> None:
    assert release_failures(metrics(people=(0.4, 0.9)), Gates()) != []


def test_a_significant_loss_on_peoples_questions_is_one_however_small() -> None:
    frame = metrics(high=-0.001, generated=(0.5, 0.6), people=(0.4, 0.395))
    failures = release_failures(frame, Gates(max_labelled_loss=0.02))
    assert len(failures) == 1
    assert "people: nDCG@10 0.3950 against the base's 0.4000 is a significant loss" in failures[0]


def test_forgetting_is_bounded_and_must_have_been_measured() -> None:
    bound = Forgetting(max_loss=0.02)
    record = {"general_before": 0.8, "general_after": 0.781, "tuned_share": 0.5}
    assert forgetting_failures(record, bound) == []
    [failure] = forgetting_failures({**record, "general_after": 0.77, "tuned_share": 0.0}, bound)
    assert "nDCG@10 0.7700 against the base's 0.8000" in failure
    assert "max_loss = 0.02; no mixture" in failure
    assert forgetting_failures({"general_before": None, "general_after": None}, bound) != []
    assert forgetting_failures({}, Forgetting(questions=0)) == []
