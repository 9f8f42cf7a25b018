"""The teachers' scores, and the loss that follows them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.search import BM25
from embed_pipeline.settings import Settings
from embed_pipeline.training.distillation import candidates_of, score_candidates, to_scale
from embed_pipeline.training.loss import POSITIVE, follow_distribution
from embed_pipeline.training.task import number_examples
from embed_pipeline.training.train import finetune
from embed_pipeline.training.training_batches import Collator
from embed_pipeline_tests.training import small

NUMBERED = number_examples(small.examples(), small.passages())
NAN = math.nan


def scores(settings: Settings) -> dict[tuple[int, int], float]:
    found = score_candidates(NUMBERED, small.corpus()[1], settings)
    assert found is not None
    return found


def cosines(settings: Settings) -> dict[tuple[int, int], float]:
    encoder = Encoder.load(settings.embedding.model, settings.embedding)
    questions, passages = encoder.encode(NUMBERED.questions, "query"), encoder.encode(NUMBERED.passages, "passage")
    return {(q, p): float(questions[q] @ passages[p]) for q, own in candidates_of(NUMBERED).items() for p in own}


def test_candidates_are_a_questions_positives_and_negatives() -> None:
    texts = list(small.passages().values())
    asked = NUMBERED.questions.index("what is the value")
    assert {NUMBERED.passages[p] for p in candidates_of(NUMBERED)[asked]} == {texts[0], texts[12], texts[5]}


def test_the_hybrid_ranks_as_the_evaluations_hybrid_does_on_the_scale_of_cosines(tiny_model: Path) -> None:
    settings = small.settings(tiny_model, teacher="hybrid")
    found, base = scores(settings), cosines(settings)
    assert found.keys() == base.keys()
    texts = small.corpus()[1]
    encoder, lexical = Encoder.load(tiny_model, settings.embedding), BM25(texts)
    corpus = encoder.encode(texts, "passage")
    weight = settings.training.teacher_dense_weight
    ratios = []
    for question, own in candidates_of(NUMBERED).items():
        dense = corpus @ encoder.encode([NUMBERED.questions[question]], "query")[0]
        words = lexical.scores(NUMBERED.questions[question])
        both = weight * (dense - dense.mean()) / dense.std() + (1 - weight) * (words - words.mean()) / words.std()
        expected = [both[texts.index(NUMBERED.passages[p])] for p in own]
        given = [found[question, p] for p in own]
        ratios += [(g - given[0]) / (e - expected[0]) for g, e in zip(given[1:], expected[1:], strict=True)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-2)


def test_scores_are_stretched_to_the_spread_within_questions() -> None:
    stretched = to_scale({(0, 0): 10.0, (0, 1): 20.0, (1, 0): -5.0}, {(0, 0): 0.1, (0, 1): 0.3, (1, 0): 0.9})
    assert stretched[0, 1] - stretched[0, 0] == pytest.approx(0.2)
    assert to_scale({(0, 0): 1.0, (0, 1): 1.0}, {(0, 0): 0.1, (0, 1): 0.3}) == {(0, 0): 0.0, (0, 1): 0.0}


def test_a_cross_encoder_scores_every_pair(tiny_model: Path, tmp_path: Path) -> None:
    folder = small.write_tiny_cross_encoder(tmp_path / "cross", tiny_model)
    settings = small.settings(tiny_model, teacher=str(folder))
    found = scores(settings)
    pairs = [(q, p) for q, own in candidates_of(NUMBERED).items() for p in own]
    texts = [(NUMBERED.questions[q], NUMBERED.passages[p]) for q, p in pairs]
    expected = np.asarray(CrossEncoder(str(folder), device="cpu").predict(texts))
    given = np.asarray([found[pair] for pair in pairs])
    assert np.corrcoef(expected, given)[0, 1] == pytest.approx(1.0, abs=1e-6)


def test_a_cross_encoder_with_pickled_weights_or_code_of_its_own_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = small.write_tiny_cross_encoder(tmp_path / "cross", tiny_model)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        scores(small.settings(tiny_model, teacher=str(folder)))


def test_following_the_teacher_is_zero_where_it_is_equalled_and_ignores_what_it_does_not_know() -> None:
    cosine = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]], requires_grad=True)
    same = torch.tensor([[1.9, 1.1, NAN], [NAN, NAN, NAN]])
    other = torch.tensor([[0.9, 0.4, NAN], [NAN, NAN, NAN]])
    assert follow_distribution(cosine / 0.1, same, 0.1).item() == pytest.approx(0.0, abs=1e-6)
    value = follow_distribution(cosine / 0.1, other, 0.1)
    assert value.item() > 1e-3
    (gradient,) = torch.autograd.grad(value, cosine)
    assert torch.isfinite(gradient).all()
    assert not gradient[1].any()
    assert not gradient[0, 2]
    assert gradient[0, 1] < 0


def test_the_divergence_is_that_of_the_distributions() -> None:
    logits, target = torch.tensor([[2.0, 1.0]]), torch.tensor([[0.3, 0.1]])
    teacher, student = torch.softmax(target / 0.1, 1), torch.softmax(logits, 1)
    expected = (teacher * (teacher / student).log()).sum()
    assert follow_distribution(logits, target, 0.1).item() == pytest.approx(expected.item(), abs=1e-6)


def test_labels_bring_the_scores_where_there_is_a_teacher(tiny_model: Path) -> None:
    settings = small.settings(tiny_model, teacher="hybrid")
    model = Encoder.load(tiny_model, settings.embedding).backend.model
    found = scores(settings)
    collate = Collator(NUMBERED, model, teacher_scores=found)
    batch = collate([{"index": 0}, {"index": 1}])
    relations, target = batch["label"]
    assert batch["label"].shape == (2, 2, 4)
    assert not torch.isnan(target[relations == POSITIVE]).any()
    assert torch.isnan(target).sum() == 4


@pytest.mark.slow
def test_a_teacher_changes_what_is_learnt(tiny_model: Path, tmp_path: Path) -> None:
    losses = []
    for name, teacher in (("a", None), ("b", "hybrid")):
        settings = small.settings(tiny_model, epochs=1, teacher=teacher)
        folder = tmp_path / name
        result = finetune(
            small.examples(),
            small.passages(),
            None,
            small.corpus(),
            settings,
            output=folder / "tuned",
            work=folder / "work",
        )
        losses.append(result.loss_curve[0][1])
    assert losses[1] > losses[0]
