"""From ranked passages to candidates for negatives: how deep to search, the ceiling, near-duplicates of positives."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import neg

import numpy as np

from embed_pipeline.embedding.search import Floats, Hits, search
from embed_pipeline.progress import progress
from embed_pipeline.settings import Settings, TrainingData
from embed_pipeline.text.shingles import Texts
from embed_pipeline.training_data.near_duplicates import NearDuplicatePassages

QUESTIONS_PER_BLOCK = 4_096


@dataclass(frozen=True)
class Question:
    """A question with its place among the vectors; passages are named by their number.

    Attributes:
        row: place among the question vectors.
        qa_id: its id.
        text: the question.
        positives: passages that answer it.
        known: all passages known to answer it: also those of other rows that ask the same.
        labelled: passages that people say do not answer it.
    """

    row: int
    qa_id: str
    text: str
    positives: list[int]
    known: frozenset[int]
    labelled: list[int]


@dataclass(frozen=True)
class MinedCandidates:
    """What mining found for one question.

    Attributes:
        positives: passages that answer it.
        positive_similarities: cosine of each.
        ceiling: greatest similarity of a negative.
        negatives: passages that pass the rules, most similar first.
        similarities: cosine of each.
        above_ceiling: candidates left out because their similarity is above the ceiling.
    """

    positives: list[int]
    positive_similarities: list[float]
    ceiling: float
    negatives: list[int]
    similarities: list[float]
    above_ceiling: int


def similarity_ceiling(positive_similarities: Sequence[float], options: TrainingData) -> float:
    """Greatest similarity that a negative may have, given those of the question's positives.

    Their minimum less ``relative_margin`` of its magnitude, so that the ceiling is lower even where the minimum is
    negative.
    """
    least = min(positive_similarities)
    return least - options.relative_margin * abs(least)


def mine_candidates(
    asked: Sequence[Question],
    texts: Texts,
    vectors: tuple[Floats, Floats],
    wanted: int,
    settings: Settings,
) -> list[MinedCandidates]:
    """The first ``wanted`` candidates of every question that pass the rules, exactly; fewer where fewer pass.

    Args:
        asked: the questions.
        texts: the passages.
        vectors: unit vectors of the questions and of the passages.
        wanted: candidates per question; 0: only the positives' similarities.
        settings: margins, range, strategy, thresholds and seed.
    """
    questions, passages = vectors
    rules = _CandidateRules(texts, wanted, settings)
    mined: dict[int, MinedCandidates] = {}
    with progress("Mining", len(asked), "question") as bar:
        pending = list(asked)
        for ranks in _ranks_searched(wanted, settings.training_data):
            short: list[Question] = []
            for depth, block in _search_blocks(pending, ranks):
                own = np.ascontiguousarray(questions[[question.row for question in block]])
                hits = search(own, passages, depth)
                for place, question in enumerate(block):
                    numbers, scores = _ranked_candidates(question, hits, place, ranks)
                    positive = similarities(own[place], passages[question.positives])
                    mined[question.row] = rules.apply(question, positive, numbers, scores)
                unfinished = [question for question in block if len(mined[question.row].negatives) < wanted]
                bar.advance(len(block) - len(unfinished))
                short += unfinished
            pending = short
    return [mined[question.row] for question in asked]


def _ranked_candidates(question: Question, hits: Hits, place: int, ranks: int) -> tuple[list[int], list[float]]:
    """The first hits of a question and their scores, without its positives and the passages that people judged."""
    left_out = question.known | set(question.labelled)
    numbers, scores = hits.indices[place].tolist(), hits.scores[place].tolist()
    # Two lists, not a list of pairs: a hundred tuples for each question keep the garbage collector busy.
    chosen = [rank for rank, number in enumerate(numbers) if number not in left_out][:ranks]
    return [numbers[rank] for rank in chosen], [scores[rank] for rank in chosen]


def similarities(question: Floats, passages: Floats) -> list[float]:
    """Cosines of one question and some passages as the search gives them: summed in fp64, stored as float32."""
    products = np.einsum("ij,j->i", passages, question, dtype=np.float64).astype(np.float32)
    values: list[float] = products.tolist()
    return values


def _ranks_searched(wanted: int, options: TrainingData) -> tuple[int, ...]:
    """How many ranks to search, in turn, until a question has all its negatives; the last is ``range_max``.

    For most questions the negatives are among the first few candidates. Deeper ranks change neither them nor the number
    of candidates above the ceiling, as similarities fall with the rank.
    """
    if not wanted:
        return (0,)
    first = options.range_min + 4 * wanted + 8
    return (options.range_max,) if first >= options.range_max else (first, options.range_max)


def _search_blocks(asked: Sequence[Question], ranks: int) -> Iterator[tuple[int, list[Question]]]:
    """Questions that are searched together, and how deep: those with many positives apart from the others."""
    by_depth: defaultdict[int, list[Question]] = defaultdict(list)
    for question in asked:
        left_out = len(question.known) + len(question.labelled)
        # Rounded up to a power of two, so that one question with a hundred positives deepens no other's search.
        by_depth[ranks + (1 << (left_out - 1).bit_length())].append(question)
    for depth in sorted(by_depth):
        own = by_depth[depth]
        yield from (
            (depth, own[start : start + QUESTIONS_PER_BLOCK]) for start in range(0, len(own), QUESTIONS_PER_BLOCK)
        )


class _CandidateRules:
    """Applies the rules to the ranked candidates of a question."""

    def __init__(self, texts: Texts, wanted: int, settings: Settings) -> None:
        self._texts = texts
        self._wanted = wanted
        self._options = settings.training_data
        self._passages = NearDuplicatePassages(settings.training_data.near_duplicate_passages)

    def apply(
        self, question: Question, positive: list[float], numbers: Sequence[int], scores: Sequence[float]
    ) -> MinedCandidates:
        """The candidates of a question that pass the rules.

        Args:
            question: the question.
            positive: similarity of each of its positives.
            numbers: the candidates, positives not among them, most similar first.
            scores: their similarities, descending.
        """
        first = self._options.range_min
        ceiling = similarity_ceiling(positive, self._options)
        above = bisect_left(scores, -ceiling, lo=min(first, len(scores)), key=neg)
        fitting, similar = numbers[above:], scores[above:]
        chosen = self._choose(question, fitting)
        return MinedCandidates(
            positives=question.positives,
            positive_similarities=positive,
            ceiling=ceiling,
            negatives=[fitting[place] for place in chosen],
            similarities=[similar[place] for place in chosen],
            above_ceiling=max(0, above - first),
        )

    def _choose(self, question: Question, fitting: Sequence[int]) -> list[int]:
        """Places of the first candidates that are no near-duplicate of a positive."""
        chosen: list[int] = []
        for place, number in enumerate(fitting):
            if len(chosen) == self._wanted:
                break
            text = self._texts[number]
            if not any(self._passages.alike(text, self._texts[own]) for own in question.known):
                chosen.append(place)
        return chosen
