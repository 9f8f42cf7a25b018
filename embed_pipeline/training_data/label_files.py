"""Reading labels that people made: BEIR folders (:mod:`embed_pipeline.beir`), JSONL and Parquet files.

A JSONL or Parquet file has a row for each question, with the fields

- ``question``: text;
- ``positives``: texts that answer it, or ``positive_ids``: ids of segments or paths of documents, or both;
- ``negatives``, ``negative_ids``: likewise what does not answer it (may be left out);
- ``split``: train, dev or test (may be left out in every row, never in some).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.beir import LabelsError, read_beir, read_json_lines
from embed_pipeline.enumerations import SIDES, Side

_TEXT_FIELDS = ("positives", "negatives")
_ID_FIELDS = ("positive_ids", "negative_ids")
_KNOWN_FIELDS = {"question", "split", *_TEXT_FIELDS, *_ID_FIELDS}


@dataclass(frozen=True)
class RawLabel:
    """A question as its file has it.

    Attributes:
        place: file and line or row, for messages.
        question: the question.
        positives: texts that answer it.
        positive_ids: ids of the set's passages, of segments, or paths of documents.
        negatives: texts that do not answer it.
        negative_ids: likewise ids.
        side: None where the set has no split of its own.
    """

    place: str
    question: str
    positives: list[str]
    positive_ids: list[str]
    negatives: list[str]
    negative_ids: list[str]
    side: Side | None


@dataclass(frozen=True)
class LabelSet:
    """One source of labels: its name, its questions, and passages of its own by their ids."""

    name: str
    labels: list[RawLabel]
    passages: dict[str, str] = field(default_factory=dict)


def read_label_set(path: Path) -> LabelSet:
    """Read a BEIR folder, a ``.jsonl`` or a ``.parquet`` file.

    Raises:
        LabelsError: naming the file, and the line or row that is malformed.
    """
    if path.is_dir():
        return _read_beir(path)
    if path.suffix not in {".jsonl", ".parquet"} or not path.is_file():
        message = f"training_data.label_sets {path}: neither a folder nor a .jsonl or .parquet file"
        raise LabelsError(message)
    labels = [_label(place, row) for place, row in (read_json_lines(path) if path.suffix == ".jsonl" else _rows(path))]
    unsplit = [label for label in labels if label.side is None]
    if unsplit and len(unsplit) < len(labels):
        message = f"{unsplit[0].place}: split is missing, while other rows have one"
        raise LabelsError(message)
    return LabelSet(path.stem, labels)


def _read_beir(folder: Path) -> LabelSet:
    found = read_beir(folder)
    # Train judgements alone are no split; test judgements alone say that nothing of them is for training.
    split = found.judged.keys() != {"train"}
    labels = [
        RawLabel(
            place=judged.place,
            question=found.queries[query],
            positives=[],
            positive_ids=judged.positives,
            negatives=[],
            negative_ids=judged.negatives,
            side=side if split else None,
        )
        for side, queries in found.judged.items()
        for query, judged in queries.items()
        if judged.positives
    ]
    return LabelSet(folder.name, labels, found.passages or {})


def _label(place: str, row: Mapping[str, Any]) -> RawLabel:
    unknown = sorted(row.keys() - _KNOWN_FIELDS)
    if unknown:
        message = f"{place}: unknown fields {unknown}; known are {sorted(_KNOWN_FIELDS)}"
        raise LabelsError(message)
    question, side = row.get("question"), row.get("split") or None
    if not isinstance(question, str) or not question.strip():
        message = f"{place}: question is {question!r}, expected a text"
        raise LabelsError(message)
    if side is not None and side not in SIDES:
        message = f"{place}: split is {side!r}, expected one of {list(SIDES)}"
        raise LabelsError(message)
    lists = {name: _texts(place, name, row.get(name)) for name in (*_TEXT_FIELDS, *_ID_FIELDS)}
    if not lists["positives"] and not lists["positive_ids"]:
        message = f"{place}: neither positives nor positive_ids"
        raise LabelsError(message)
    return RawLabel(place=place, question=question, side=side, **lists)


def _texts(place: str, name: str, value: object) -> list[str]:
    """A field that holds one text, several, or none."""
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        message = f"{place}: {name} is {str(value)[:80]!r}, expected a text or a list of texts"
        raise LabelsError(message)
    return found


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = f"{path}: not a readable Parquet file: {error}"
        raise LabelsError(message) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(frame.iter_rows(named=True), start=1))
