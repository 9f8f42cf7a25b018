"""Champion and candidate: measured on the same queries, and kept apart by the gate."""

from __future__ import annotations

import pytest

from embed_pipeline.evaluation.gates import compare_with_champion, promotion_failures
from embed_pipeline.settings import Gates, Settings
from embed_pipeline.tables import CHAMPION_COMPARISON
from embed_pipeline_tests.evaluation import material
from embed_pipeline_tests.tiny import write_tiny_model


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
