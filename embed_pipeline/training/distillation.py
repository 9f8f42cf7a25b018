"""Soft labels: how well each candidate answers its question, by a better ranker than the base model.

A question's candidates are its positive and its mined negatives. The teacher is the hybrid of BM25 and the base model,
or a cross-encoder. Its scores are brought to the scale of the base model's cosines, so that one temperature fits both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import refuse_foreign_code, resolve_model, torch_device
from embed_pipeline.embedding.search import BM25, hybrid_scores
from embed_pipeline.progress import progress
from embed_pipeline.settings import Settings
from embed_pipeline.training.task import Examples, TrainingError

HYBRID = "hybrid"
Pair = tuple[int, int]
Scores = dict[Pair, float]
_QUESTION_BLOCK = 256
_CROSS_ENCODER_PAIRS = 32


def candidates_of(examples: Examples) -> dict[int, list[int]]:
    """Question number to the passages that the teacher scores for it: all its positives and negatives, sorted."""
    found: dict[int, set[int]] = {}
    for question, positive, negatives in zip(examples.question, examples.positive, examples.negatives, strict=True):
        found.setdefault(question, set()).update({positive, *negatives})
    return {question: sorted(passages) for question, passages in sorted(found.items())}


def score_candidates(examples: Examples, corpus_texts: Sequence[str], settings: Settings) -> Scores | None:
    """Scores by ``training.teacher`` of every question's candidates, on the scale of the base model's cosines.

    Args:
        examples: the numbered examples.
        corpus_texts: texts of all segments, over which the hybrid standardises its scores.
        settings: groups ``training``, ``embedding`` and ``evaluation`` (the hybrid's weight).

    Returns:
        Score of each (question number, passage number); None: there is no teacher.

    Raises:
        TrainingError: the cross-encoder cannot be used.
        ModelError: a model cannot be loaded, or brings code of its own.
    """
    if settings.training.teacher is None:
        return None
    encoder = Encoder.load(settings.embedding.model, settings.embedding)
    questions = encoder.encode(examples.questions, "query", label="Encoding questions for the teacher")
    passages = encoder.encode(examples.passages, "passage", label="Encoding passages for the teacher")
    candidates = candidates_of(examples)
    cosines = {(q, p): float(questions[q] @ passages[p]) for q, own in candidates.items() for p in own}
    if settings.training.teacher == HYBRID:
        vectors = encoder.encode(corpus_texts, "passage", label="Encoding segments for the teacher")
        weight = settings.training.teacher_dense_weight
        scores = _hybrid(
            examples, candidates, corpus_texts, (questions, vectors), weight, language=settings.corpus.language
        )
    else:
        scores = _cross_encoder(settings.training.teacher, examples, candidates, settings)
    return to_scale(scores, cosines)


def to_scale(scores: Mapping[Pair, float], cosines: Mapping[Pair, float]) -> Scores:
    """``scores`` stretched so that they spread within a question as much as ``cosines`` do.

    Distillation compares the candidates of one question, so only differences within a question count.
    """
    spread, wanted = _spread_within(scores), _spread_within(cosines)
    factor = wanted / spread if spread else 0.0
    return {pair: score * factor for pair, score in scores.items()}


def _spread_within(scores: Mapping[Pair, float]) -> float:
    """Root mean square deviation from the question's own mean."""
    by_question: dict[int, list[float]] = {}
    for (question, _), score in scores.items():
        by_question.setdefault(question, []).append(score)
    deviations = [value - np.mean(own) for own in by_question.values() for value in own]
    return float(np.sqrt(np.mean(np.square(deviations)))) if deviations else 0.0


def _hybrid(
    examples: Examples,
    candidates: Mapping[int, Sequence[int]],
    texts: Sequence[str],
    vectors: tuple[NDArray[np.float32], NDArray[np.float32]],
    dense_weight: float,
    *,
    language: str,
) -> Scores:
    """The evaluation's hybrid over all segments, at each question's candidates."""
    questions, corpus = vectors
    place = {text: index for index, text in enumerate(texts)}
    lexical = BM25(texts, language)
    scores: Scores = {}
    questions_scored = list(candidates)
    with progress("Scoring candidates", len(questions_scored), "question") as bar:
        for start in range(0, len(questions_scored), _QUESTION_BLOCK):
            block = questions_scored[start : start + _QUESTION_BLOCK]
            dense = questions[block] @ corpus.T
            for question, row in zip(block, dense, strict=True):
                ranked = hybrid_scores(row, lexical.scores(examples.questions[question]), dense_weight)
                for passage in candidates[question]:
                    scores[question, passage] = float(ranked[place[examples.passages[passage]]])
                bar.advance()
    return scores


def _cross_encoder(
    teacher: str, examples: Examples, candidates: Mapping[int, Sequence[int]], settings: Settings
) -> Scores:
    from sentence_transformers import CrossEncoder

    trusted = settings.embedding.trust_remote_code
    location = resolve_model(teacher)
    local = Path(location).is_dir()
    if local and not trusted:
        refuse_foreign_code(Path(location))
    try:
        model = CrossEncoder(
            location,
            device=torch_device(settings.embedding),
            trust_remote_code=trusted,
            local_files_only=local,
            model_kwargs={} if trusted else {"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as error:
        message = f"training.teacher = {teacher!r} cannot be loaded as a cross-encoder: {error}"
        raise TrainingError(message) from error
    pairs = [(question, passage) for question, own in candidates.items() for passage in own]
    texts = [(examples.questions[question], examples.passages[passage]) for question, passage in pairs]
    values = np.asarray(model.predict(texts, batch_size=_CROSS_ENCODER_PAIRS, show_progress_bar=False))
    if values.shape != (len(pairs),):
        message = f"training.teacher = {teacher!r} gives scores of shape {values.shape}, must be ({len(pairs)},)"
        raise TrainingError(message)
    if not np.isfinite(values).all():
        message = f"training.teacher = {teacher!r} gives a score that is not finite"
        raise TrainingError(message)
    return {pair: float(value) for pair, value in zip(pairs, values, strict=True)}
