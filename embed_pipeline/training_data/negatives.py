"""Hard negatives: the most similar wrong segments of each question, and one training example per positive."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.families import Kind
from embed_pipeline.embedding.search import Floats
from embed_pipeline.enumerations import Context
from embed_pipeline.settings import Settings, TrainingData
from embed_pipeline.text.passages import passage_texts
from embed_pipeline.text.shingles import Texts
from embed_pipeline.training_data.candidates import (
    MinedCandidates,
    Question,
    mine_candidates,
    similarities,
    similarity_ceiling,
)
from embed_pipeline.training_data.cross_check import CrossCheck, QuestionCandidates, configured_checks
from embed_pipeline.training_data.near_duplicates import NearDuplicatePassages, normalise_question

# Candidates that a cross-check looks at, for each negative wanted.
_CHECKED_PER_NEGATIVE = 3
_LABELLED_NEGATIVES, _OTHER_ANSWERS = "labelled_negative_ids", "other_answer_ids"


class MiningError(ValueError):
    """A question's positives or labelled negatives do not fit the corpus."""


class Encodes(Protocol):
    """What mining needs of an encoder: unit vectors of texts, float32 (texts, d)."""

    def encode(self, texts: Sequence[str], kind: Kind, label: str | None = None) -> Floats:
        """Unit vectors in the order of ``texts``."""
        ...


def mine_hard_negatives(
    questions: pl.DataFrame, corpus: pl.DataFrame, settings: Settings, encoder: Encodes
) -> pl.DataFrame:
    """Mine ``num_negatives`` hard negatives for every question, exactly; fewer where fewer survive.

    The answers to a question are all positives of all rows that ask it in the same words. Memory other than the
    vectors does not grow with the corpus, as no question-by-corpus matrix is made. Row order changes nothing. A
    configured cross-check looks at three candidates for each negative wanted, and those that answer are dropped or
    become positives.

    Args:
        questions: frame of qa_id, origin, question, positive_segment_ids and, where people labelled negatives,
            labelled_negative_ids; other_answer_ids are segments that answer it and are not trained on.
        corpus: frame of :data:`tables.CORPUS`.
        settings: margins, range, number, strategy, checks and seed.
        encoder: the base model.

    Returns:
        Frame of :data:`tables.HARD_NEGATIVES`, sorted by qa_id.

    Raises:
        MiningError: a question has no positive, or names a segment that is not in the corpus.
        CrossCheckError, ModelError: a cross-check is set that cannot be made.
        EndpointError, BudgetExhausted, TooManyFailures: from the judge.
    """
    checks = configured_checks(settings)
    ordered = questions.sort("qa_id")
    asides = (_LABELLED_NEGATIVES, _OTHER_ANSWERS)
    missing = [name for name in asides if name not in ordered.columns]
    ordered = ordered.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias(name) for name in missing)
    named = pl.concat(ordered[name].explode() for name in ("positive_segment_ids", *asides)).drop_nulls()
    passages = _DistinctPassages.of(corpus, named, settings.embedding.context)
    asked = _number_questions(ordered, passages.number)
    vectors = (
        encoder.encode(ordered["question"].to_list(), "query", label="Encoding questions"),
        encoder.encode(passages.embedded.to_list(), "passage", label="Encoding segments"),
    )
    wanted = settings.training_data.num_negatives * (_CHECKED_PER_NEGATIVE if checks else 1)
    mined = mine_candidates(asked, passages.texts, vectors, wanted, settings)
    answering = _answering_candidates(asked, mined, passages.texts, checks)
    selector = _NegativeSelector(passages.texts, vectors, settings.training_data)
    selected = [selector.select(*row) for row in zip(asked, mined, answering, strict=True)]
    names = " and ".join(check.name for check in checks)
    decision = f"{settings.training_data.false_negatives} by {names}" if checks else ""
    return _hard_negatives_frame(ordered, passages, selected, decision)


def unroll(hard_negatives: pl.DataFrame) -> pl.DataFrame:
    """A question with n positives becomes n examples, all with the same negatives; siblings share its qa_id.

    Unrolling comes after mining, so that the ceiling is that of the question's least similar positive and no
    sibling's positive is anyone's negative.

    Args:
        hard_negatives: frame of :data:`tables.HARD_NEGATIVES`.

    Returns:
        Frame of :data:`tables.TRAINING_EXAMPLES`, sorted by qa_id, positives in the question's order.
    """
    rows: list[dict[str, object]] = [
        {
            "example_id": hashlib.sha256(f"{row['qa_id']}\0{positive}".encode()).hexdigest()[:16],
            "qa_id": row["qa_id"],
            "origin": row["origin"],
            "question": row["question"],
            "positive_segment_id": positive,
            "negative_segment_ids": row["negative_segment_ids"],
            "positive_similarity": similarity,
            "negative_similarities": row["negative_similarities"],
        }
        for row in hard_negatives.sort("qa_id").iter_rows(named=True)
        for positive, similarity in zip(row["positive_segment_ids"], row["positive_similarities"], strict=True)
    ]
    return tables.TRAINING_EXAMPLES.frame(rows)


@dataclass(frozen=True)
class _DistinctPassages:
    """The distinct passages of a corpus; one that several segments share is named by the first id.

    Attributes:
        texts: their texts, by which they are compared, in the order of their ids.
        embedded: their texts as they are embedded.
        ids: segment id of each.
        number: place among the passages of each segment asked for that is in the corpus.
    """

    texts: pl.Series
    embedded: pl.Series
    ids: pl.Series
    number: dict[str, int]

    @classmethod
    def of(cls, corpus: pl.DataFrame, asked_for: Iterable[str], context: Context) -> _DistinctPassages:
        # Where nothing is put before a text, both columns are one in memory.
        plain = context == "none"
        embedded = corpus["text"] if plain else pl.Series(passage_texts(corpus, context), dtype=pl.String)
        segments = corpus.select("segment_id", "text").with_columns(embedded=embedded)
        distinct = segments.sort("segment_id").unique("embedded", keep="first", maintain_order=True)
        asked = pl.DataFrame({"segment_id": sorted(set(asked_for))}, schema={"segment_id": pl.String})
        placed = segments.join(asked, on="segment_id", how="semi").join(
            distinct.select("embedded").with_row_index("number"), on="embedded"
        )
        number: dict[str, int] = dict(placed.select("segment_id", "number").iter_rows())
        return cls(distinct["text"], distinct["embedded"], distinct["segment_id"], number)


def _number_questions(ordered: pl.DataFrame, number: Mapping[str, int]) -> list[Question]:
    known: defaultdict[str, set[int]] = defaultdict(set)
    columns = ("qa_id", "question", "positive_segment_ids", _LABELLED_NEGATIVES, _OTHER_ANSWERS)
    rows = list(ordered.select(columns).iter_rows())
    asked_as = [normalise_question(text) for _, text, *_ in rows]
    for same, (qa_id, _, positive_ids, labelled_ids, other_ids) in zip(asked_as, rows, strict=True):
        missing = [key for key in (*positive_ids, *labelled_ids, *other_ids) if key not in number]
        if missing or not positive_ids:
            message = f"question {qa_id!r}: positives or labelled negatives {missing or '[]'} are not in the corpus"
            raise MiningError(message)
        known[same].update(number[key] for key in (*positive_ids, *other_ids))
    asked = []
    for row, (qa_id, text, positive_ids, labelled_ids, _) in enumerate(rows):
        answers = frozenset(known[asked_as[row]])
        # A passage counts once, whatever the segments that share it; one that answers is no negative, labelled or not.
        positives = list(dict.fromkeys(number[key] for key in positive_ids))
        labelled = [n for n in dict.fromkeys(number[key] for key in labelled_ids) if n not in answers]
        asked.append(Question(row, qa_id, text, positives, answers, labelled))
    return asked


def _answering_candidates(
    asked: Sequence[Question], mined: Sequence[MinedCandidates], texts: Texts, checks: Sequence[CrossCheck]
) -> list[frozenset[int]]:
    """The mined negatives of each question that answer it by any check, or by one made for the same question."""
    if not checks:
        return [frozenset() for _ in asked]
    to_check = [
        QuestionCandidates(question.text, [texts[n] for n in found.positives], [texts[n] for n in found.negatives])
        for question, found in zip(asked, mined, strict=True)
    ]
    answering: defaultdict[str, set[int]] = defaultdict(set)
    for check in checks:
        for question, found, answers in zip(asked, mined, check.answering(to_check), strict=True):
            own = {number for number, yes in zip(found.negatives, answers, strict=True) if yes}
            answering[normalise_question(question.text)] |= own
    return [
        frozenset(answering[normalise_question(question.text)].intersection(found.negatives))
        for question, found in zip(asked, mined, strict=True)
    ]


@dataclass(frozen=True)
class _SelectedNegatives:
    """The final positives and negatives of one question; passages are named by their number."""

    promoted: list[int]
    positive_similarities: list[float]
    ceiling: float
    negatives: list[int]
    negative_similarities: list[float]
    labelled: int
    above_ceiling: int
    answering: list[int]


class _NegativeSelector:
    """Selects the final negatives: labelled ones first, then mined ones that no check found to answer."""

    def __init__(self, texts: Texts, vectors: tuple[Floats, Floats], options: TrainingData) -> None:
        self._texts = texts
        self._questions, self._passages = vectors
        self._options = options
        self._alike = NearDuplicatePassages(options.near_duplicate_passages).alike

    def select(self, question: Question, mined: MinedCandidates, answering: frozenset[int]) -> _SelectedNegatives:
        """Drop or promote candidates that answer; a promoted one may lower the ceiling, as any positive does."""
        similarity = dict(zip(mined.negatives, mined.similarities, strict=True))
        answers = sorted(answering, key=lambda number: (-similarity[number], number))
        promoted = answers if self._options.false_negatives == "promote" else []
        positives = [*mined.positive_similarities, *(similarity[number] for number in promoted)]
        ceiling = similarity_ceiling(positives, self._options)
        eligible = [
            number
            for number in mined.negatives
            if number not in answering and similarity[number] <= ceiling and not self._duplicates_any(number, promoted)
        ]
        labelled = question.labelled[: self._options.num_negatives]
        chosen = eligible[: self._options.num_negatives - len(labelled)]
        chosen.sort(key=lambda number: (-similarity[number], number))
        labelled_similarities = (
            similarities(self._questions[question.row], self._passages[labelled]) if labelled else []
        )
        return _SelectedNegatives(
            promoted=promoted,
            positive_similarities=positives,
            ceiling=ceiling,
            negatives=[*labelled, *chosen],
            negative_similarities=[*labelled_similarities, *(similarity[number] for number in chosen)],
            labelled=len(labelled),
            above_ceiling=mined.above_ceiling,
            answering=answers,
        )

    def _duplicates_any(self, number: int, promoted: Sequence[int]) -> bool:
        return any(self._alike(self._texts[number], self._texts[other]) for other in promoted)


def _hard_negatives_frame(
    ordered: pl.DataFrame, passages: _DistinctPassages, selected: Sequence[_SelectedNegatives], decision: str
) -> pl.DataFrame:
    def named(rows: Iterable[Sequence[int]]) -> pl.Series:
        return _list_column([[passages.ids[number] for number in own] for own in rows], pl.String)

    positive_ids = [
        [*_first_segments(own, passages.number), *(passages.ids[number] for number in one.promoted)]
        for own, one in zip(ordered["positive_segment_ids"].to_list(), selected, strict=True)
    ]
    frame = ordered.select("qa_id", "origin", "question").with_columns(
        positive_segment_ids=_list_column(positive_ids, pl.String),
        positive_similarities=_list_column([one.positive_similarities for one in selected], pl.Float64),
        ceiling=pl.Series([one.ceiling for one in selected], dtype=pl.Float64),
        negative_segment_ids=named(one.negatives for one in selected),
        negative_similarities=_list_column([one.negative_similarities for one in selected], pl.Float64),
        labelled_negatives=pl.Series([one.labelled for one in selected], dtype=pl.Int64),
        above_ceiling=pl.Series([one.above_ceiling for one in selected], dtype=pl.Int64),
        answering_segment_ids=named(one.answering for one in selected),
        cross_check=pl.lit(decision),
    )
    return tables.validate(frame, tables.HARD_NEGATIVES)


def _list_column(rows: Sequence[Sequence[object]], inner: type[pl.String | pl.Float64]) -> pl.Series:
    """A column of lists, made from their concatenation, which is many times faster than list by list."""
    import pyarrow as pa  # type: ignore[import-untyped]  # it ships no types

    offsets = np.cumsum([0, *map(len, rows)])
    flat = pl.Series(list(chain.from_iterable(rows)), dtype=inner).to_arrow()
    return pl.Series(pa.LargeListArray.from_arrays(offsets, flat)).cast(pl.List(inner))


def _first_segments(segment_ids: Sequence[str], number: Mapping[str, int]) -> list[str]:
    """The first of the segments of each passage."""
    first: dict[int, str] = {}
    for key in segment_ids:
        first.setdefault(number[key], key)
    return list(first.values())
