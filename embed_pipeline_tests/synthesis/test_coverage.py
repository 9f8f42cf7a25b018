"""Which segments are asked about where there are more than ``synthesis.max_questions`` allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import plan_windows
from embed_pipeline.synthesis.coverage import ASKED, covering, mark_asked
from embed_pipeline.synthesis.estimate import Estimate, StageEstimate
from embed_pipeline.synthesis.generate import plan_tasks
from embed_pipeline.synthesis.plan import QuestionTask, askable_sources
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
TITLES = {"d1": "Pump", "d2": "Invoices", "d9": "Other"}
MANY = material.TEXTS | {
    f"x{number}": f"Part {number} of the other machine turns {number * 3} times a minute." for number in range(45)
}


def _unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_each_row_taken_is_the_one_that_adds_most(seed: int) -> None:
    vectors = _unit(40, seed)
    similar = np.clip(vectors @ vectors.T, 0, 1).astype(np.float64)
    covered, taken = np.zeros(40), covering(vectors, 40)
    assert sorted(taken) == list(range(40))
    for index in taken:
        gains = np.maximum(similar - covered, 0).sum(axis=1)
        assert gains[index] == pytest.approx(gains.max(), abs=1e-5)
        covered = np.maximum(covered, similar[index])
    assert covering(vectors, 7) == taken[:7], "a higher number only adds"


def test_large_groups_and_small_ones_are_covered_before_one_is_covered_twice() -> None:
    centres = np.eye(8, dtype=np.float32)[:4]
    sizes = [200, 100, 30, 1]
    groups = np.repeat(np.arange(4), sizes)
    vectors = centres[groups] + 0.01 * _unit(len(groups), 0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert covering(vectors, 0) == []
    assert groups[covering(vectors[np.argsort(-groups)], 1)[0]] in range(4)
    first = groups[covering(vectors, 8)]
    assert set(first.tolist()) == {0, 1, 2, 3}, "64 neighbours cover the largest group in a few steps"
    assert np.count_nonzero(first == 0) > np.count_nonzero(first == 2)
    same = np.repeat(centres[:1], 100, axis=0)
    assert sorted(covering(same, 100)) == list(range(100)), "equal vectors are no trap"


def _asked(settings: Settings, encoder: Encoder, share: float = 1.0, batch: str = "b1") -> list[str]:
    marked = mark_asked(batch, material.segments(MANY), share, settings, lambda: encoder)
    assert marked.drop(ASKED).equals(material.segments(MANY))
    return marked.filter(ASKED)["segment_id"].to_list()


def _no_encoder() -> Encoder:
    raise AssertionError("nothing has to be chosen")


def test_nothing_is_chosen_where_all_may_be_asked_about(make_settings: MakeSettings) -> None:
    whole = material.segments(MANY)
    for limit in ("all", 110, 50_000):
        marked = mark_asked("b1", whole, 1.0, make_settings(max_questions=limit), _no_encoder)
        assert marked[ASKED].all()
    per_document = make_settings(questions_per_document=3)
    assert mark_asked("b1", whole.clear(), 1.0, per_document, _no_encoder).is_empty(), "a batch of deletions"
    none = Settings.model_validate({"training_data": {"sources": ["structure"]}, "embedding": {"device": "cpu"}})
    assert mark_asked("b1", whole, 1.0, none, _no_encoder).is_empty()


def test_the_limit_is_one_of_questions(make_settings: MakeSettings, encoder: Encoder) -> None:
    assert len(_asked(make_settings(max_questions=22), encoder)) == pytest.approx(10, abs=1)
    assert len(_asked(make_settings(max_questions=22, max_hops=1), encoder)) == pytest.approx(11, abs=1)
    assert len(_asked(make_settings(max_questions=44, questions_per_segment=4), encoder)) == pytest.approx(10, abs=1)
    # Ten questions for each of three documents: 30 of 50 segments make up 18 of 30.
    per_document = make_settings(max_questions=18, questions_per_document=10, multi_hop_share=0)
    assert len(_asked(per_document, encoder)) == pytest.approx(30, abs=1)


def test_small_batches_add_up_to_the_limit(make_settings: MakeSettings, encoder: Encoder) -> None:
    settings = make_settings(max_questions=110)
    counts = [len(_asked(settings, encoder, 0.005, f"{number:05d}-0a1b2c3d")) for number in range(60)]
    assert set(counts) == {0, 1}
    assert sum(counts) == pytest.approx(60 * 0.25, abs=9)


def test_a_higher_limit_asks_the_same_and_more(make_settings: MakeSettings, encoder: Encoder) -> None:
    def tasks(limit: int | str) -> dict[str, QuestionTask]:
        settings = make_settings(max_questions=limit, multi_hop_share=0)
        frame = mark_asked("b1", material.segments(MANY), 1.0, settings, lambda: encoder)
        sources = askable_sources(frame, TITLES, tables.DOCUMENT_ARTIFACTS.empty(), settings)
        planned = plan_tasks(sources, frame, settings, lambda: encoder)
        return {task.sources[0].segment_id: task for task in planned}

    few, more, whole = tasks(20), tasks(50), tasks("all")
    assert 9 <= len(few) < len(more) < len(whole) == 50
    assert few.items() <= more.items() <= {key: task for key, task in whole.items() if key in more}.items()


def test_the_estimate_shows_what_other_limits_cost() -> None:
    stage = StageEstimate("questions", 3000, 0, 300_000, 30_000, 6.0, 600.0)
    found = Estimate(750, 3000, 1500, (stage,), ())
    assert {limit: (row.calls, row.cost, row.seconds) for limit, row in found.curve.items()} == {
        "1000": (2000, 4.0, 400.0),
        "5000": (10_000, 20.0, 2000.0),
        "all": (12_000, 24.0, 2400.0),
    }
    stored = Estimate(750, 3000, 1500, (replace(stage, calls=100, cached=2900),), ())
    assert stored.curve == Estimate(0, 0, 0, (), ()).curve == {}


def test_windows_without_a_segment_that_is_asked_about_are_not_read() -> None:
    frame = material.segments()
    assert len(plan_windows(frame)) == 2
    one = frame.with_columns((pl.col("segment_id") == "s2").alias(ASKED))
    [window] = plan_windows(one)
    assert [row["segment_id"] for row in window] == ["s1", "s2", "s3"]
