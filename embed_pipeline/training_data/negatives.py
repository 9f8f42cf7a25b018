"""Hard negatives: the most similar wrong segments of each question, by rule (DESIGN.md, section 5).

Candidates of a question are the ``range_max`` texts most similar to it, its positives and texts identical to one
left out. A candidate becomes a negative only if its similarity is at most the ceiling and it is no near-duplicate of a
positive; where fewer survive than are wanted, fewer are returned. The ceiling lies ``relative_margin`` times the
magnitude below the least similar positive (as the field's `mine_hard_negatives` has it), so that it is below it for
negative similarities too.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Kind
from embed_pipeline.embedding.search import Floats, search
from embed_pipeline.settings import Settings, TrainingData
from embed_pipeline.training_data.near_duplicates import Hashes, Shingler, containment, normalise_question

_BLOCK = 16_384


class MiningError(ValueError):
    """A question's positives do not fit the corpus."""


class Encodes(Protocol):
    """What mining needs of an encoder: unit vectors of texts, float32 (texts, d)."""

    def encode(self, texts: Sequence[str], kind: Kind, label: str | None = None) -> Floats:
        """Unit vectors in the order of ``texts``."""
        ...


@dataclass(frozen=True)
class _Question:
    """A question with its place among the vectors; passages are named by their number."""

    row: int
    qa_id: str
    positive_ids: list[str]
    positives: list[int]
    excluded: frozenset[int]


@dataclass(frozen=True)
class _Mined:
    """What mining found for one question."""

    positive_similarities: list[float]
    ceiling: float
    negatives: list[int]
    similarities: list[float]
    above_ceiling: int


class _Passages:
    """The distinct texts of a corpus: texts that several segments share are one passage, named by the first id."""

    def __init__(self, corpus: pl.DataFrame) -> None:
        distinct = corpus.sort("segment_id").unique("text", keep="first", maintain_order=True)
        self.texts: list[str] = distinct["text"].to_list()
        self.ids: list[str] = distinct["segment_id"].to_list()
        number = {text: place for place, text in enumerate(self.texts)}
        self.number = {key: number[text] for key, text in corpus.select("segment_id", "text").iter_rows()}
        self._shingler = Shingler()
        self._hashes: dict[int, Hashes] = {}

    def alike(self, one: int, other: int, threshold: float) -> bool:
        """True where two passages are near-duplicates."""
        return containment(self._hashed(one), self._hashed(other)) >= threshold

    def _hashed(self, number: int) -> Hashes:
        if number not in self._hashes:
            if len(self._hashes) > _BLOCK:
                self._hashes.clear()
            self._hashes[number] = self._shingler.hashes(self.texts[number])
        return self._hashes[number]


def mine_hard_negatives(
    questions: pl.DataFrame, corpus: pl.DataFrame, settings: Settings, encoder: Encodes
) -> pl.DataFrame:
    """Mine ``num_negatives`` hard negatives for every question, exactly; fewer where fewer survive.

    The positives of a question are those of every row that asks the same in the same words. Memory beside the vectors
    does not grow with the corpus, as no question-by-corpus matrix is made. Row order changes nothing.

    Args:
        questions: frame of qa_id, origin, question and positive_segment_ids.
        corpus: frame of :data:`tables.CORPUS`.
        settings: margins, range, number, strategy and seed.
        encoder: the base model.

    Returns:
        Frame of :data:`tables.HARD_NEGATIVES`, sorted by qa_id.

    Raises:
        MiningError: a question has no positive, or one that is not in the corpus.
    """
    ordered = questions.sort("qa_id")
    passages = _Passages(corpus)
    asked = _number_questions(ordered, passages)
    question_vectors = encoder.encode(ordered["question"].to_list(), "query", label="Encoding questions")
    passage_vectors = encoder.encode(passages.texts, "passage", label="Encoding segments")
    mined = _mine(asked, passages, question_vectors, passage_vectors, settings)
    rows = []
    for question, (_, origin, text, _) in zip(asked, ordered.select(_COLUMNS).iter_rows(), strict=True):
        found = mined[question.row]
        rows.append(
            {
                "qa_id": question.qa_id,
                "origin": origin,
                "question": text,
                "positive_segment_ids": question.positive_ids,
                "positive_similarities": found.positive_similarities,
                "ceiling": found.ceiling,
                "negative_segment_ids": [passages.ids[number] for number in found.negatives],
                "negative_similarities": found.similarities,
                "above_ceiling": found.above_ceiling,
            }
        )
    return tables.HARD_NEGATIVES.frame(rows)


_COLUMNS = ("qa_id", "origin", "question", "positive_segment_ids")


def similarity_ceiling(positive_similarities: Sequence[float], options: TrainingData) -> float:
    """Greatest similarity that a negative may have, given those of the question's positives.

    Below the least of them by ``relative_margin`` of its magnitude and by ``absolute_margin``, whichever is lower.
    """
    least = min(positive_similarities)
    return min(least - options.relative_margin * abs(least), least - options.absolute_margin)


def _number_questions(ordered: pl.DataFrame, passages: _Passages) -> list[_Question]:
    known: defaultdict[str, set[int]] = defaultdict(set)
    asked: list[tuple[str, str, list[str], list[int]]] = []
    for qa_id, _, text, positive_ids in ordered.select(_COLUMNS).iter_rows():
        missing = [key for key in positive_ids if key not in passages.number]
        if missing or not positive_ids:
            message = f"question {qa_id!r}: positives {missing or '[]'} are not in the corpus"
            raise MiningError(message)
        # Of positives that say the same, the first stands for all.
        distinct: dict[int, str] = {}
        for key in positive_ids:
            distinct.setdefault(passages.number[key], key)
        known[normalise_question(text)].update(distinct)
        asked.append((qa_id, text, list(distinct.values()), list(distinct)))
    return [
        _Question(row, qa_id, positive_ids, numbers, frozenset(known[normalise_question(text)]))
        for row, (qa_id, text, positive_ids, numbers) in enumerate(asked)
    ]


def _mine(
    asked: Sequence[_Question],
    passages: _Passages,
    question_vectors: Floats,
    passage_vectors: Floats,
    settings: Settings,
) -> dict[int, _Mined]:
    """What is found for each question, by its row."""
    options = settings.training_data
    mined: dict[int, _Mined] = {}
    for depth, block in _blocks(asked, options.range_max if options.num_negatives else 0):
        vectors = np.ascontiguousarray(question_vectors[[question.row for question in block]])
        hits = search(vectors, passage_vectors, max(1, depth))
        for place, question in enumerate(block):
            positive = _similarities(vectors[place], passage_vectors[question.positives])
            ceiling = similarity_ceiling(positive, options)
            ranked = _candidates(question, hits.indices[place], hits.scores[place], options)
            fitting = [(number, score) for number, score in ranked if score <= ceiling]
            chosen = _choose(question, fitting, passages, settings)
            mined[question.row] = _Mined(
                positive_similarities=positive,
                ceiling=ceiling,
                negatives=[number for number, _ in chosen],
                similarities=[score for _, score in chosen],
                above_ceiling=len(ranked) - len(fitting),
            )
    return mined


def _blocks(asked: Sequence[_Question], range_max: int) -> Iterator[tuple[int, list[_Question]]]:
    """Questions that are searched together, and how deep: those with many positives apart from the rest."""
    by_depth: defaultdict[int, list[_Question]] = defaultdict(list)
    for question in asked:
        # Rounded up to a power of two, so that one question with a hundred positives deepens no other's search.
        by_depth[range_max + (1 << (len(question.excluded) - 1).bit_length())].append(question)
    for depth in sorted(by_depth):
        own = by_depth[depth]
        yield from ((depth, own[start : start + _BLOCK]) for start in range(0, len(own), _BLOCK))


def _similarities(question: Floats, passages: Floats) -> list[float]:
    """Cosines as the search gives them: summed in fp64, stored as float32."""
    products = (passages.astype(np.float64) @ question.astype(np.float64)).astype(np.float32)
    return [float(value) for value in products]


def _candidates(
    question: _Question, numbers: np.ndarray, scores: np.ndarray, options: TrainingData
) -> list[tuple[int, float]]:
    """The passages of ranks ``range_min`` to ``range_max`` that are no positive, and their similarities."""
    ranked = [
        (number, score)
        for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        if number not in question.excluded
    ]
    return ranked[options.range_min : options.range_max]


def _choose(
    question: _Question, fitting: Sequence[tuple[int, float]], passages: _Passages, settings: Settings
) -> list[tuple[int, float]]:
    """The first ``num_negatives`` that are no near-duplicate of a positive, or a seeded choice; most similar first."""
    options = settings.training_data
    order = list(range(len(fitting)))
    if options.sampling_strategy == "random":
        digest = hashlib.sha256(f"{settings.seed} {question.qa_id}".encode()).digest()
        np.random.default_rng(int.from_bytes(digest[:8], "big")).shuffle(order)
    chosen: list[int] = []
    for place in order:
        if len(chosen) == options.num_negatives:
            break
        number = fitting[place][0]
        if not any(passages.alike(number, own, options.near_duplicate_passages) for own in question.excluded):
            chosen.append(place)
    return [fitting[place] for place in sorted(chosen)]
