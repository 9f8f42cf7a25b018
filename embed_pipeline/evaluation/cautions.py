"""What a reader should know before trusting the figures or using the tuned model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.evaluation.query_sets import GENERATED
from embed_pipeline.evaluation.significance import Verdict

if TYPE_CHECKING:
    from embed_pipeline.evaluation.ranking import SetResult

FEW_QUESTIONS = 100
LEXICAL_LEAK = 0.8
_SHIFT = 0.02
_WORD = re.compile(r"[^\W\d_]{4,}")


def cautions_of(
    results: Sequence[SetResult],
    verdicts: Mapping[str, Verdict],
    answers: Mapping[tuple[str, str], str],
    *,
    same_passages: bool,
) -> list[str]:
    """Sentences of warning, the gravest first.

    Args:
        results: every query set, ranked and scored.
        verdicts: verdict of each query set.
        answers: (query set, query id) to the text of a passage that answers it.
        same_passages: whether passages have the same vectors under both models.
    """
    cautions = _only_on_generated(verdicts)
    for result in results:
        name = result.query_set.name
        if len(result.query_set) < FEW_QUESTIONS:
            cautions.append(
                f"{name}: only {len(result.query_set)} questions; differences under a few points cannot be told from "
                "chance"
            )
        shared = _shared_words(result, answers)
        if shared is not None and shared > LEXICAL_LEAK:
            cautions.append(
                f"{name}: {shared:.0%} of the questions' words occur in the passage that answers them; such questions "
                "are easier than people's and favour BM25"
            )
    if same_passages:
        cautions.append("passages keep the base model's vectors: an index that was filled with the base stays valid")
    else:
        cautions.append(
            "embed the whole corpus again for the tuned model: its vectors are not comparable with the base model's"
        )
    cautions.extend(shift for shift in map(_score_shift, results[:1]) if shift)
    return cautions


def _only_on_generated(verdicts: Mapping[str, Verdict]) -> list[str]:
    labelled = {name: verdict for name, verdict in verdicts.items() if name != GENERATED}
    if not labelled:
        caution = (
            "there are no questions written by people; a gain on generated questions may not carry over: add a BEIR "
            "folder to evaluation.query_sets"
        )
        return [caution]
    if verdicts.get(GENERATED) is None or verdicts[GENERATED].outcome != "better":
        return []
    return [
        f"tuned is better on the generated questions but not on {name} ({verdict.sentence})"
        for name, verdict in labelled.items()
        if verdict.outcome != "better"
    ]


def _shared_words(result: SetResult, answers: Mapping[tuple[str, str], str]) -> float | None:
    """Mean share of a question's longer words that occur in its answering passage; None: not known."""
    shares = []
    for query, text in result.query_set.queries.items():
        passage = answers.get((result.query_set.name, query))
        words = set(_WORD.findall(text.lower()))
        if passage is not None and words:
            shares.append(len(words & set(_WORD.findall(passage.lower()))) / len(words))
    return sum(shares) / len(shares) if shares else None


def _score_shift(result: SetResult) -> str:
    """The threshold under the tuned model that is as precise as one before; empty: it is the same."""
    systems = {}
    for system in ("base", "tuned"):
        ranked = result.ranked[system]
        ids = result.query_set.ids
        scores = np.asarray([ranked.first_scores[query] for query in ids])
        right = np.asarray([ranked.rankings[query][0] in result.query_set.qrels[query] for query in ids])
        systems[system] = (scores, right)
    old = float(np.median(systems["base"][0]))
    precision = float(systems["base"][1][systems["base"][0] >= old].mean())
    new = threshold_at(*systems["tuned"], precision=precision)
    if new is None or abs(new - old) < _SHIFT:
        return ""
    return (
        f"similarity scores shift: a threshold of {old:.2f} under the base is as precise "
        f"({precision:.0%} of first hits right) as {new:.2f} under the tuned model"
    )


def threshold_at(scores: NDArray[np.float64], right: NDArray[np.bool_], *, precision: float) -> float | None:
    """Lowest threshold at which the first hits that reach it are right at least as often as ``precision``.

    Args:
        scores: similarity of each query's first hit, float64 (queries,).
        right: whether that hit answers the query, bool (queries,).
        precision: share wanted.

    Returns:
        The threshold; None: no threshold is that precise.
    """
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(reached >= precision)
    return float(scores[order[good[-1]]]) if len(good) else None
