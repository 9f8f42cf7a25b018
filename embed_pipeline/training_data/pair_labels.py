"""Labels of pairs: which pairs of a file match, said in numbers (0 and 1, a similarity) or words (entailment)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from embed_pipeline.row_files import LabelsError

Verdict = Literal["match", "mismatch", "neither"]
PAIR_FIELDS = ("label", "labels", "gold_label")
"""Columns that may say whether a pair matches."""
LEAST_MATCH = 0.5
"""The similarity from which a pair matches; it is a mismatch at 0 only."""
_WORDS: Mapping[str, Verdict] = {
    **dict.fromkeys(("entailment", "true", "yes", "match", "relevant", "duplicate"), "match"),
    **dict.fromkeys(("contradiction", "false", "no", "no match", "irrelevant", "not relevant"), "mismatch"),
    **dict.fromkeys(("neutral", "not entailment", "not duplicate"), "neither"),
}
# SNLI writes a dash where its judges did not agree.
_UNSAID = frozenset({"", "-", "None"})


def pair_verdicts(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[str | None, list[Verdict]]:
    """The column that says whether pairs match, and a verdict for each row.

    The column is None where there is none, or where it holds words of something else, such as a topic: then all match.

    Args:
        rows: the rows without negatives, each with its place. Next to a negative the same columns hold the margin by
            which the positive is nearer (MarginMSE; Hofstätter et al. 2020), and say nothing of a match.

    Raises:
        LabelsError: a number is not from -1 to 1, or only some words are known.
    """
    for name in PAIR_FIELDS:
        said = {place: row[name] for place, row in rows if name in row and _text(row[name]) not in _UNSAID}
        verdicts = {place: _verdict(value) for place, value in said.items()}
        unknown = [place for place, verdict in verdicts.items() if verdict is None]
        if unknown and (len(unknown) < len(said) or _number(said[unknown[0]]) is not None):
            message = (
                f"{unknown[0]}: {name} is {said[unknown[0]]!r}, expected a number from 0 to 1 (a match "
                f"from {LEAST_MATCH}) or one of {', '.join(_WORDS)}; rename the column where it says something else"
            )
            raise LabelsError(message)
        if said and not unknown:
            return name, [verdicts.get(place) or "neither" for place, _ in rows]
    return None, ["match"] * len(rows)


def _verdict(label: object) -> Verdict | None:
    """What a label says; None: nothing that is known."""
    number = _number(label)
    if number is None:
        return _WORDS.get(re.sub(r"[\s_-]+", " ", _text(label).lower()))
    if abs(number) > 1:
        return None
    return "match" if number >= LEAST_MATCH else "neither" if number else "mismatch"


def _number(label: object) -> float | None:
    try:
        return float(_text(label))
    except ValueError:
        return None


def _text(label: object) -> str:
    return "" if isinstance(label, float) and math.isnan(label) else str(label).strip()
