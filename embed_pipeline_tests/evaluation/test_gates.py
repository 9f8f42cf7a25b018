"""What keeps a model from being released or promoted, and the comparison of champion and candidate."""

from __future__ import annotations

import polars as pl
import pytest

from embed_pipeline.evaluation.gates import (
    compare_with_champion,
    forgetting_failures,
    promotion_failures,
    release_failures,
)
from embed_pipeline.settings import Forgetting, Gates, Settings
from embed_pipeline.tables import CHAMPION_COMPARISON
from embed_pipeline_tests.evaluation import material
from embed_pipeline_tests.tiny import write_tiny_model


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


def settings():
    return Settings.model_validate({"evaluation": {"bootstrap_samples": 200}})


def comparison(**figures):
    """A comparison of ``query_set=(champion, candidate)``."""
    return CHAMPION_COMPARISON.frame(
        [
            {
                "query_set": name, "champion": "v1", "candidate": "v2", "queries": 9, "champion_ndcg_10": champion,
                "candidate_ndcg_10": candidate, "difference_low": -0.1, "difference_high": 0.1,
            }
            for name, (champion, candidate) in figures.items()
        ]
    )  # fmt: skip


@pytest.mark.slow
def test_a_release_is_as_good_as_itself_and_differs_from_another(tiny_model, tmp_path):
    other = write_tiny_model(tmp_path / "other", seed=5)
    sets = [material.generated(), material.labelled()]
    same = compare_with_champion(("v1", tiny_model), ("v2", tiny_model), material.corpus(), sets, settings())
    assert same["query_set"].to_list() == ["generated", "people"]
    assert same["queries"].to_list() == [6, 3]
    assert (same["champion_ndcg_10"] - same["candidate_ndcg_10"]).abs().max() < 1e-9
    assert promotion_failures(same, Gates()) == []
    differs = compare_with_champion(("v1", tiny_model), ("v2", other), material.corpus(), sets, settings())
    swapped = compare_with_champion(("v2", other), ("v1", tiny_model), material.corpus(), sets, settings())
    assert differs["candidate_ndcg_10"].to_list() == swapped["champion_ndcg_10"].to_list()
    assert differs["champion_ndcg_10"].to_list() == same["champion_ndcg_10"].to_list()


@pytest.mark.parametrize(
    ("figures", "options", "says"),
    [
        ({"generated": (0.80, 0.81)}, {}, []),
        ({"generated": (0.80, 0.80)}, {}, []),
        ({"generated": (0.80, 0.79)}, {}, ["generated: nDCG@10 0.7900 of v2 against 0.8000 of v1"]),
        ({"generated": (0.80, 0.79)}, {"min_champion_gain": -0.05}, []),
        ({"generated": (0.80, 0.81)}, {"min_champion_gain": 0.05}, ["min_champion_gain = 0.05"]),
        ({"generated": (0.80, 0.90), "people": (0.50, 0.49)}, {}, []),
        ({"generated": (0.80, 0.90), "people": (0.50, 0.40)}, {}, ["people: nDCG@10 0.4000 of v2"]),
        ({"generated": (0.80, 0.70), "people": (0.50, 0.40)}, {}, ["generated:", "people:"]),
        ({}, {}, []),
    ],
)
def test_a_worse_release_is_refused_with_its_figures(figures, options, says):
    failures = promotion_failures(comparison(**figures), Gates(**options))
    assert len(failures) == len(says)
    assert all(words in failure for words, failure in zip(says, failures, strict=True))
