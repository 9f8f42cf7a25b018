"""The judge that measures: four scores from round trip, support and form, where no model's opinion is worth asking.

Each score is on 1 to 10 and 6 is the line between use and no use, as for a judge model:

- relevance: ``10 - 4 log(rank) / log(R)``, so that rank 1 scores 10 and rank R = ``max_round_trip_rank`` scores 6;
- accuracy: ``1 + 9 min(1, c / 0.7)``, c the base model's cosine of question and answer: the answer is a sentence
  of the source, so what can be wrong is that it answers another question (c = 0.39 scores 6);
- context support: ``1 + 9 g``, g the mean of two shares: of the answer's and of the question's content words that
  stand in the sources;
- clarity: 10, less 3 for a question under six words and 3 for one without a term that is rare in the corpus;
  1 where it has not the form of a question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from embed_pipeline.synthesis.words import content_words, words

_GOOD_COSINE = 0.7
_SHORT_QUESTION_WORDS = 6
_RARE_IDF = 2.5


@dataclass(frozen=True)
class Verdict:
    """Scores on 1-10 in the order of :data:`~embed_pipeline.enumerations.CRITERIA`, each with its reason."""

    scores: tuple[float, float, float, float]
    justifications: tuple[str, str, str, str]

    @property
    def overall(self) -> float:
        """Mean of the four scores."""
        return sum(self.scores) / len(self.scores)


def judge_by_measure(
    question: str,
    *,
    rank: int,
    bound_rank: int,
    answer_cosine: float,
    grounding: float,
    overlap: float,
    problem: str | None,
    idf: Mapping[str, float],
    style: str = "question",
) -> Verdict:
    """Score one pair.

    Args:
        question: the question.
        rank: round-trip rank of its sources.
        bound_rank: ``synthesis.max_round_trip_rank``.
        answer_cosine: cosine of question and answer under the base model.
        grounding: share of the answer's content words in the sources.
        overlap: share of the question's content words in the sources.
        problem: what is wrong with the question's form, or None.
        idf: inverse document frequency of the corpus's content words.
        style: how the question is asked; keywords may be short.
    """
    relevance = max(1.0, 10 - 4 * math.log(rank) / math.log(max(bound_rank, 2)))
    accuracy = 1 + 9 * min(1.0, max(0.0, answer_cosine) / _GOOD_COSINE)
    support = 1 + 9 * (grounding + overlap) / 2
    clarity, why = _clarity(question, problem, idf, style)
    return Verdict(
        tuple(round(score, 2) for score in (relevance, accuracy, support, clarity)),  # type: ignore[arg-type]  # four
        (
            f"the question finds its source at rank {rank}",
            f"cosine of question and answer {answer_cosine:.2f}",
            f"{grounding:.0%} of the answer's and {overlap:.0%} of the question's content words stand in the source",
            why,
        ),
    )


def _clarity(question: str, problem: str | None, idf: Mapping[str, float], style: str) -> tuple[float, str]:
    if problem is not None:
        return 1.0, f"form: {problem}"
    short = style != "keywords" and len(words(question)) < _SHORT_QUESTION_WORDS
    plain = all(idf.get(word, 0.0) < _RARE_IDF for word in content_words(question))
    faults = [fault for fault, found in (("short", short), ("names nothing specific", plain)) if found]
    return 10.0 - 3 * len(faults), "; ".join(faults) or "well formed, names its subject"
