"""The query's encoder that follows the linear adapter's teacher: what it learns, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Adapter, Settings, Training
from embed_pipeline.training.linear_adapter import Teaching, fit_adapter
from embed_pipeline.training.loss import follow_distribution
from embed_pipeline.training.prepared_model import split_sides
from embed_pipeline.training.query_encoder import follow_teacher
from embed_pipeline.training.record import read_record
from embed_pipeline.training.train import finetune
from embed_pipeline_tests.training import small
from embed_pipeline_tests.training.test_linear_adapter import IDS, TEXTS


def divergence(teaching: Teaching, queries: np.ndarray) -> float:
    cosines = torch.from_numpy(queries @ teaching.vectors[1].T)
    return float(follow_distribution(cosines / 0.05, torch.from_numpy(teaching.scores), 0.05))


@pytest.mark.slow
def test_queries_come_closer_to_the_teacher_and_passages_stay_bit_for_bit(tiny_model: Path) -> None:
    settings = small.settings(tiny_model)
    model = split_sides(load_model(tiny_model, settings.embedding, "cpu"))
    encoder = Encoder.of(model, settings.embedding)
    teaching = Teaching.of(encoder, TEXTS, IDS, dense_weight=0.65, generator=np.random.default_rng(17))
    before = encoder.encode(TEXTS, "passage")
    for _ in range(10):
        follow_teacher(model, teaching, np.random.default_rng(17))
    followed = Encoder.of(model, settings.embedding)
    assert np.array_equal(followed.encode(TEXTS, "passage"), before)
    learnt = divergence(teaching, followed.encode(teaching.sentences, "query"))
    assert learnt < 0.9 * divergence(teaching, teaching.vectors[0])
    assert not model.training


def test_questions_are_asked_too_and_their_sources_come_first(tiny_model: Path) -> None:
    settings = small.settings(tiny_model)
    encoder = Encoder.of(load_model(tiny_model, settings.embedding, "cpu"), settings.embedding)
    asked = {"which of them?": {TEXTS[4]}, "and which two?": {TEXTS[1], TEXTS[2]}, "what is gone?": {"another text"}}

    def teach(questions: dict[str, set[str]]) -> Teaching:
        chance = np.random.default_rng(17)
        return Teaching.of(encoder, TEXTS, IDS, dense_weight=0.65, generator=chance, questions=questions)

    with_questions, alone = teach(asked), teach({})
    count = len(alone.sentences)
    assert with_questions.sentences == [*alone.sentences, "which of them?", "and which two?"]
    assert (with_questions.questions, alone.questions) == (2, 0)
    assert np.isfinite(with_questions.scores[count:]).all()
    assert with_questions.scores[count].argmax() == 4
    assert set(np.argsort(with_questions.scores[count + 1])[-2:]) == {1, 2}
    shapes = [fit_adapter(one, generator=np.random.default_rng(17)).shape for one in (with_questions, alone)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_a_question_is_learnt(tiny_model: Path) -> None:
    settings = small.settings(tiny_model)
    model = split_sides(load_model(tiny_model, settings.embedding, "cpu"))
    encoder = Encoder.of(model, settings.embedding)
    asked = {"which of them?": {TEXTS[4]}}
    chance = np.random.default_rng(17)
    teaching = Teaching.of(encoder, TEXTS, IDS, dense_weight=0.65, generator=chance, questions=asked)
    passages = encoder.encode(TEXTS, "passage")
    before = (encoder.encode([*asked], "query") @ passages.T)[0]
    for _ in range(10):
        follow_teacher(model, teaching, np.random.default_rng(17))
    after = (Encoder.of(model, settings.embedding).encode([*asked], "query") @ passages.T)[0]
    assert after[4] - after.mean() > before[4] - before.mean()


@pytest.mark.slow
def test_a_training_keeps_the_share_that_was_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    tuned = {}
    for share in (0.0, 0.5):
        settings = small.settings(tiny_model, epochs=1, share=0.5, contrastive=False, sides="query")
        adapter = settings.adapter.model_copy(update={"query_encoder_share": share})
        known = {**small.passages(), **dict(zip(IDS, TEXTS, strict=True))}
        output = tmp_path / f"tuned-{share}"
        finetune(
            small.examples(),
            small.passages(),
            small.dev(),
            (list(known), list(known.values())),
            settings.model_copy(update={"adapter": adapter}),
            output=output,
            work=tmp_path / "work",
            documents=list(known),
        )
        record = read_record(output)
        assert (record["adapter_share"], record["query_encoder_share"]) == (0.5, share)
        encoder = Encoder.load(output, settings.embedding)
        tuned[share] = encoder.encode(TEXTS, "query"), encoder.encode(TEXTS, "passage")
    base = Encoder.load(tiny_model, settings.embedding).encode(TEXTS, "passage")
    assert all(np.array_equal(passages, base) for _, passages in tuned.values())
    assert not np.allclose(tuned[0.0][0], tuned[0.5][0], atol=1e-4)


def test_it_needs_the_query_side_and_the_adapter() -> None:
    for training, adapter in (
        (Training(), Adapter(query_encoder_share=0.5)),
        (Training(sides="query"), Adapter(query_encoder_share=0.5, share=0)),
    ):
        with pytest.raises(ValidationError, match=r"adapter.query_encoder_share needs training.sides"):
            Settings(training=training, adapter=adapter)
