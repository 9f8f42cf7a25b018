"""Dev measurements, and what is decided by them."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed_pipeline.embedding.models import load_model
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.settings import Embedding
from embed_pipeline.training.supervisor import DevMeasure, best_step, stalled
from embed_pipeline.training.task import TrainingError
from embed_pipeline_tests.training import small


def test_a_large_corpus_is_cut_to_positives_lexical_neighbours_and_a_seeded_sample() -> None:
    ids, texts = small.corpus()
    pools = [DevMeasure(small.dev(), (ids, texts), seed=seed, max_pool=12).pool for seed in (1, 1, 2)]
    assert len(pools[0]) == 12
    assert {texts[i] for i in range(16, 20)} <= set(pools[0])
    assert pools[0] == pools[1]
    assert DevMeasure(small.dev(), (ids, texts), seed=1).pool == texts


def test_a_model_that_finds_the_passage_itself_measures_one_and_keeps_its_mode(tiny_model: Path) -> None:
    texts = small.passages()
    dev = QuerySet("dev", queries={"a": texts["s03"], "b": texts["s07"]}, qrels={"a": {"s03": 1}, "b": {"s07": 1}})
    embedding = Embedding(device="cpu")
    model = load_model(tiny_model, embedding).train()
    assert DevMeasure(dev, small.corpus(), seed=1)(model, embedding) == pytest.approx(1.0)
    assert model.training


def test_an_answer_outside_the_corpus_is_refused() -> None:
    dev = QuerySet("dev", queries={"a": "x"}, qrels={"a": {"nowhere": 1}})
    with pytest.raises(TrainingError, match="'nowhere'"):
        DevMeasure(dev, small.corpus(), seed=1)


def test_the_base_wins_only_where_it_beats_every_step_and_stalling_is_counted_from_the_best() -> None:
    assert best_step([(0, 0.5), (2, 0.5), (4, 0.5)]) == 2
    assert best_step([(0, 0.6), (2, 0.5), (4, 0.55)]) == 0
    assert best_step([]) is None
    curve = [(0, 0.1), (2, 0.5), (4, 0.4), (6, 0.4), (8, 0.4), (10, 0.4)]
    assert stalled(curve)
    assert not stalled(curve[:-1])
