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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Kind
from embed_pipeline.embedding.search import Floats, search
from embed_pipeline.settings import Settings, TrainingData
from embed_pipeline.training_data.near_duplicates import Passages, normalise_question
from embed_pipeline.training_data.questions import COLUMNS

_BLOCK = 16_384
_IDS, _REALS = pl.List(pl.String), pl.List(pl.Float64)


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


class _Corpus:
    """The distinct texts of a corpus: texts that several segments share are one passage, named by the first id.

    Attributes:
        texts: the passages, in the order of their ids.
        ids: segment id of each.
        number: place among the passages of each segment asked for, as far as it is there.
    """

    def __init__(self, corpus: pl.DataFrame, segment_ids: pl.Series) -> None:
        segments = corpus.select("segment_id", "text")
        distinct = segments.sort("segment_id").unique("text", keep="first", maintain_order=True)
        self.texts: list[str] = distinct["text"].to_list()
        self.ids: list[str] = distinct["segment_id"].to_list()
        wanted = segments.join(pl.DataFrame({"segment_id": segment_ids.unique()}), on="segment_id", how="semi")
        placed = wanted.join(distinct.select("text").with_row_index("number"), on="text")
        self.number: dict[str, int] = dict(placed.select("segment_id", "number").iter_rows())


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
    passages = _Corpus(corpus, ordered["positive_segment_ids"].explode())
    asked = _number_questions(ordered, passages.number)
    question_vectors = encoder.encode(ordered["question"].to_list(), "query", label="Encoding questions")
    passage_vectors = encoder.encode(passages.texts, "passage", label="Encoding segments")
    mined = _mine(asked, passages, question_vectors, passage_vectors, settings)
    found = [mined[question.row] for question in asked]
    frame = ordered.select("qa_id", "origin", "question").with_columns(
        positive_segment_ids=pl.Series([question.positive_ids for question in asked], dtype=_IDS),
        positive_similarities=pl.Series([one.positive_similarities for one in found], dtype=_REALS),
        ceiling=pl.Series([one.ceiling for one in found], dtype=pl.Float64),
        negative_segment_ids=pl.Series([[passages.ids[n] for n in one.negatives] for one in found], dtype=_IDS),
        negative_similarities=pl.Series([one.similarities for one in found], dtype=_REALS),
        above_ceiling=pl.Series([one.above_ceiling for one in found], dtype=pl.Int64),
    )
    return tables.validate(frame, tables.HARD_NEGATIVES)


def similarity_ceiling(positive_similarities: Sequence[float], options: TrainingData) -> float:
    """Greatest similarity that a negative may have, given those of the question's positives.

    Below the least of them by ``relative_margin`` of its magnitude and by ``absolute_margin``, whichever is lower.
    """
    least = min(positive_similarities)
    return min(least - options.relative_margin * abs(least), least - options.absolute_margin)


def _number_questions(ordered: pl.DataFrame, number: Mapping[str, int]) -> list[_Question]:
    known: defaultdict[str, set[int]] = defaultdict(set)
    asked: list[tuple[str, str, list[str], list[int]]] = []
    for qa_id, _, text, positive_ids in ordered.select(COLUMNS).iter_rows():
        missing = [key for key in positive_ids if key not in number]
        if missing or not positive_ids:
            message = f"question {qa_id!r}: positives {missing or '[]'} are not in the corpus"
            raise MiningError(message)
        # Of positives that say the same, the first stands for all.
        distinct: dict[int, str] = {}
        for key in positive_ids:
            distinct.setdefault(number[key], key)
        known[normalise_question(text)].update(distinct)
        asked.append((qa_id, text, list(distinct.values()), list(distinct)))
    return [
        _Question(row, qa_id, positive_ids, numbers, frozenset(known[normalise_question(text)]))
        for row, (qa_id, text, positive_ids, numbers) in enumerate(asked)
    ]


def _mine(
    asked: Sequence[_Question],
    passages: _Corpus,
    question_vectors: Floats,
    passage_vectors: Floats,
    settings: Settings,
) -> dict[int, _Mined]:
    """What is found for each question, by its row."""
    chooser = _Chooser(passages.texts, settings)
    mined: dict[int, _Mined] = {}
    pending = asked
    for looked_at in _depths(settings.training_data):
        for depth, block in _blocks(pending, looked_at):
            vectors = np.ascontiguousarray(question_vectors[[question.row for question in block]])
            hits = search(vectors, passage_vectors, depth)
            for place, question in enumerate(block):
                positive = _similarities(vectors[place], passage_vectors[question.positives])
                ranked = [
                    (number, score)
                    for number, score in zip(hits.indices[place].tolist(), hits.scores[place].tolist(), strict=True)
                    if number not in question.excluded
                ]
                mined[question.row] = chooser.judge(question, positive, ranked[:looked_at])
        pending = [q for q in pending if len(mined[q.row].negatives) < settings.training_data.num_negatives]
    return mined


def _depths(options: TrainingData) -> tuple[int, ...]:
    """Ranks looked at, in turn, until a question has all its negatives; the last is ``range_max``.

    The most similar negatives are among the first few candidates for most questions, and what lies deeper cannot
    change them, nor how many candidates are above the ceiling: similarities fall with the rank.
    """
    if not options.num_negatives:
        return (0,)
    first = options.range_min + 4 * options.num_negatives + 8
    whole = options.sampling_strategy == "random" or first >= options.range_max
    return (options.range_max,) if whole else (first, options.range_max)


class _Chooser:
    """Applies the rules to the ranked candidates of a question."""

    def __init__(self, texts: Sequence[str], settings: Settings) -> None:
        self._texts = texts
        self._options = settings.training_data
        self._seed = settings.seed
        self._passages = Passages(settings.training_data.near_duplicate_passages)

    def judge(self, question: _Question, positive: list[float], ranked: Sequence[tuple[int, float]]) -> _Mined:
        """Negatives of a question among its candidates, no positive among them."""
        candidates = ranked[self._options.range_min :]
        ceiling = similarity_ceiling(positive, self._options)
        fitting = [(number, score) for number, score in candidates if score <= ceiling]
        chosen = self._choose(question, [number for number, _ in fitting])
        return _Mined(
            positive_similarities=positive,
            ceiling=ceiling,
            negatives=[fitting[place][0] for place in chosen],
            similarities=[fitting[place][1] for place in chosen],
            above_ceiling=len(candidates) - len(fitting),
        )

    def _choose(self, question: _Question, fitting: Sequence[int]) -> list[int]:
        """Places of the first that are no near-duplicate of a positive, or of a seeded choice; ascending."""
        order = list(range(len(fitting)))
        if self._options.sampling_strategy == "random":
            digest = hashlib.sha256(f"{self._seed} {question.qa_id}".encode()).digest()
            np.random.default_rng(int.from_bytes(digest[:8], "big")).shuffle(order)
        chosen: list[int] = []
        for place in order:
            if len(chosen) == self._options.num_negatives:
                break
            text = self._texts[fitting[place]]
            if not any(self._passages.alike(text, self._texts[own]) for own in question.excluded):
                chosen.append(place)
        return sorted(chosen)


def _blocks(asked: Sequence[_Question], looked_at: int) -> Iterator[tuple[int, list[_Question]]]:
    """Questions that are searched together, and how deep: those with many positives apart from the rest."""
    by_depth: defaultdict[int, list[_Question]] = defaultdict(list)
    for question in asked:
        # Rounded up to a power of two, so that one question with a hundred positives deepens no other's search.
        by_depth[looked_at + (1 << (len(question.excluded) - 1).bit_length())].append(question)
    for depth in sorted(by_depth):
        own = by_depth[depth]
        yield from ((depth, own[start : start + _BLOCK]) for start in range(0, len(own), _BLOCK))


def _similarities(question: Floats, passages: Floats) -> list[float]:
    """Cosines as the search gives them: summed in fp64, stored as float32."""
    products = (passages.astype(np.float64) @ question.astype(np.float64)).astype(np.float32)
    return [float(value) for value in products]
