"""Reading labels that people made: BEIR folders, JSONL and Parquet files.

A BEIR folder has ``queries.jsonl``, ``qrels/{train,dev,test}.tsv`` and, where the set brings its own passages,
``corpus.jsonl``. A JSONL or Parquet file has a row for each question, with the fields

- ``question``: text;
- ``positives``: texts that answer it, or ``positive_ids``: ids of segments or paths of documents, or both;
- ``negatives``, ``negative_ids``: likewise what does not answer it (may be left out);
- ``split``: train, dev or test (may be left out in every row, never in some).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

SIDES = ("train", "dev", "test")
_TEXT_FIELDS = ("positives", "negatives")
_ID_FIELDS = ("positive_ids", "negative_ids")
_KNOWN_FIELDS = {"question", "split", *_TEXT_FIELDS, *_ID_FIELDS}
_QRELS_COLUMNS = 3


class LabelsError(ValueError):
    """A file of labels is absent, malformed, or names what is not there."""


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
        side: train, dev or test; empty where the set has no split of its own.
    """

    place: str
    question: str
    positives: list[str]
    positive_ids: list[str]
    negatives: list[str]
    negative_ids: list[str]
    side: str


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
        message = f"training_data.labelled {path}: neither a folder nor a .jsonl or .parquet file"
        raise LabelsError(message)
    labels = [_label(place, row) for place, row in (_json_rows(path) if path.suffix == ".jsonl" else _rows(path))]
    unsplit = [label for label in labels if not label.side]
    if unsplit and len(unsplit) < len(labels):
        message = f"{unsplit[0].place}: split is missing, while other rows have one"
        raise LabelsError(message)
    return LabelSet(path.stem, labels)


def _read_beir(folder: Path) -> LabelSet:
    queries = {row["_id"]: row["text"] for _, row in _beir_rows(folder / "queries.jsonl")}
    own = folder / "corpus.jsonl"
    passages = {}
    if own.exists():
        passages = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for _, row in _beir_rows(own)}
    files = {side: folder / "qrels" / f"{side}.tsv" for side in SIDES}
    present = {side: path for side, path in files.items() if path.exists()}
    if not present:
        message = f"{folder}: none of {', '.join(f'qrels/{side}.tsv' for side in SIDES)}"
        raise LabelsError(message)
    # Train judgements alone are no split; test judgements alone say that nothing of them is for training.
    split = present.keys() != {"train"}
    labels = [
        RawLabel(place, queries[query], [], positives, [], negatives, side if split else "")
        for side, path in present.items()
        for query, (place, positives, negatives) in _read_qrels(path, queries).items()
        if positives
    ]
    return LabelSet(folder.name, labels, passages)


def _beir_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for place, row in _json_rows(path):
        if not isinstance(row.get("_id"), str) or not isinstance(row.get("text"), str):
            message = f"{place}: expected the strings _id and text"
            raise LabelsError(message)
        if row["_id"] in seen:
            message = f"{place}: _id {row['_id']!r} occurs twice"
            raise LabelsError(message)
        seen.add(row["_id"])
        yield place, row


def _read_qrels(path: Path, queries: Mapping[str, str]) -> dict[str, tuple[str, list[str], list[str]]]:
    """For each query the place of its first line, what answers it (grade 1 and more) and what does not (0)."""
    judged: dict[str, tuple[str, list[str], list[str]]] = {}
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        place, parts = f"{path}, line {number}", [part.strip() for part in line.split("\t")]
        if not line.strip() or (number == 1 and parts[0].lower() in {"query-id", "query_id", "qid"}):
            continue
        if len(parts) != _QRELS_COLUMNS or not parts[2].lstrip("-").isdigit():
            message = f"{place}: expected query-id, corpus-id and a whole number, got {parts}"
            raise LabelsError(message)
        if parts[0] not in queries:
            message = f"{place}: query {parts[0]!r} is not in queries.jsonl"
            raise LabelsError(message)
        _, positives, negatives = judged.setdefault(parts[0], (place, [], []))
        (positives if int(parts[2]) > 0 else negatives).append(parts[1])
    return judged


def _label(place: str, row: Mapping[str, Any]) -> RawLabel:
    unknown = sorted(row.keys() - _KNOWN_FIELDS)
    if unknown:
        message = f"{place}: unknown fields {unknown}; known are {sorted(_KNOWN_FIELDS)}"
        raise LabelsError(message)
    question, side = row.get("question"), row.get("split") or ""
    if not isinstance(question, str) or not question.strip():
        message = f"{place}: question is {question!r}, expected a text"
        raise LabelsError(message)
    if side and side not in SIDES:
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


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of every line that is not blank."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                message = f"{place}: not JSON: {error.msg}"
                raise LabelsError(message) from error
            if not isinstance(row, dict):
                message = f"{place}: expected an object"
                raise LabelsError(message)
            yield place, row


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = f"{path}: not a readable Parquet file: {error}"
        raise LabelsError(message) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(frame.iter_rows(named=True), start=1))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise LabelsError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 at byte {error.start}"
        raise LabelsError(message) from error
