"""Labels of pairs: which pairs of a file match, said in numbers (0 and 1, a similarity) or words (entailment)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from embed_pipeline.row_files import LabelsError

Verdict = Literal["match", "mismatch", "neither"]
PAIR_FIELDS = ("label", "labels", "gold_label")
"""Columns that may say whether a pair matches, in any capitals."""
SCORE_FIELDS = ("score", "similarity_score", "is_relevant")
"""Columns that say so where all their values are verdicts, and something else otherwise; in any capitals."""
LEAST_MATCH = 0.5
"""The similarity from which a pair matches; it is a mismatch at 0 only."""
_WORDS: Mapping[str, Verdict] = {
    **dict.fromkeys(("entailment", "true", "yes", "match", "positive", "relevant", "duplicate"), "match"),
    **dict.fromkeys(("contradiction", "false", "no", "no match", "negative", "irrelevant", "not relevant"), "mismatch"),
    **dict.fromkeys(("neutral", "not entailment", "not duplicate"), "neither"),
}
# SNLI writes a dash where its judges did not agree.
_UNSAID = frozenset({"", "-", "None"})
# How many words make a column of verdicts; more are topics, and so is one word in all rows.
_VERDICT_WORDS = range(2, 4)


def pair_verdicts(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str | None, list[Verdict]]:
    """The column that says whether pairs match, and a verdict for each row.

    The column is None where there is none, or where it holds words of something else, such as a topic: then all match.

    Args:
        rows: the rows without negatives, each with its place. Next to a negative the same columns hold the margin by
            which the positive is nearer (MarginMSE; Hofstätter et al. 2020), and say nothing of a match.

    Raises:
        LabelsError: a number in a column of labels is not from -1 to 1, only some words are known, or a column of two
            or three words has none that is known.
    """
    given = list(dict.fromkeys(name for _, row in rows for name in row))
    for field in (*PAIR_FIELDS, *SCORE_FIELDS):
        for name in (name for name in given if name.lower() == field):
            said = {place: row[name] for place, row in rows if name in row and _text(row[name]) not in _UNSAID}
            verdicts = {place: _verdict(value) for place, value in said.items()}
            if field in SCORE_FIELDS and any((_number(value) or 0) < 0 for value in said.values()):
                continue
            unknown = {place: said[place] for place, verdict in verdicts.items() if verdict is None}
            if field in PAIR_FIELDS and unknown and not _is_topic(said, unknown):
                raise _unknown(name, *next(iter(unknown.items())))
            if said and not unknown:
                return name, [verdicts.get(place) or "neither" for place, _ in rows]
    return None, ["match"] * len(rows)


def split_labelled_list(place: str, row: Mapping[str, Any], positives: str, negatives: str) -> dict[str, Any]:
    """A row whose list is split by the labels next to it, as sentence-transformers has it; others as they are.

    Args:
        place: file and line, for messages.
        row: the row.
        positives: the column that holds a list of what answers the question and what does not.
        negatives: the column to hold what does not.

    Raises:
        LabelsError: list and labels differ in length, or a label says nothing that is known.
    """
    texts = row.get(positives)
    name = next((name for name in row if name.lower() in PAIR_FIELDS and isinstance(row[name], list)), None)
    if name is None or not isinstance(texts, list):
        return dict(row)
    unknown = [label for label in row[name] if _verdict(label) is None]
    if len(unknown) == len(row[name]) and all(_number(label) is None for label in unknown):
        # Topics.
        return dict(row)
    if unknown:
        raise _unknown(name, place, unknown[0])
    if len(texts) != len(row[name]):
        message = f"{place}: {positives} has {len(texts)} entries and {name} has {len(row[name])}, expected as many"
        raise LabelsError(message)
    said = [(text, _verdict(label)) for text, label in zip(texts, row[name], strict=True)]
    kept = {column: value for column, value in row.items() if column != name}
    return kept | {
        positives: [text for text, verdict in said if verdict == "match"],
        negatives: [text for text, verdict in said if verdict == "mismatch"],
    }


def _is_topic(said: Mapping[str, object], unknown: Mapping[str, object]) -> bool:
    """Whether the words of a column say something other than whether pairs match."""
    words = {_text(value).lower() for value in said.values()}
    numbers = any(_number(value) is not None for value in unknown.values())
    return len(unknown) == len(said) and not numbers and len(words) not in _VERDICT_WORDS


def _unknown(name: str, place: str, label: object) -> LabelsError:
    return LabelsError(
        f"{place}: {name} is {label!r}, expected a number from 0 to 1 (a match from {LEAST_MATCH}) "
        f"or one of {', '.join(_WORDS)}; rename the column where it says something else"
    )


def _verdict(label: object) -> Verdict | None:
    """What a label says; None: nothing that is known."""
    number = _number(label)
    if number is None:
        return _WORDS.get(re.sub(r"[\s_-]+", " ", _text(label).lower()))
    if abs(number) > 1:
        return None
    return "match" if number >= LEAST_MATCH else "neither" if number else "mismatch"


def _number(label: object) -> float | None:
    text = _text(label)
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def _text(label: object) -> str:
    return "" if isinstance(label, float) and math.isnan(label) else str(label).strip()
