"""Judgements (qrels): which files of a BEIR folder hold those of a side, and what is in their columns.

A side's judgements are in ``qrels``, ``data`` or ``default``, in a file named exactly for the side, such as
``test.tsv``, or in parts of it as hubs write them, such as ``test-00000-of-00001.parquet``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from embed_pipeline.enumerations import Side
from embed_pipeline.row_files import (
    ENDINGS,
    LabelsError,
    files_of_rows,
    id_text,
    lines_of_table,
    name_and_ending,
    read_rows,
)

SIDES_BY_NAME: Mapping[str, Side] = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "eval": "dev",
    "test": "test",
    "training": "train",
    "evaluation": "dev",
    "testing": "test",
}
"""Name of a side in files and columns to the side."""
_UNGRADED = "1"
_FOLDERS = ("qrels", "data", "default")
_TABLES = (".tsv", ".csv", ".txt", ".qrels")
_FORMS = (*_TABLES, *(ending for ending in ENDINGS if ending not in _TABLES))
_PART = re.compile(r"(?P<side>[a-z]+)(?P<part>[-_][0-9]+([-_]of[-_][0-9]+)?([-_][0-9a-f]+)?)?")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "query-id": ("query-id", "queryid", "qid", "q-id", "topic-id", "question-id", "query", "topic", "question"),
    "corpus-id": (
        *("corpus-id", "corpusid", "doc-id", "docid", "docno", "document-id", "passage-id", "pid", "cid"),
        *("doc", "document", "passage", "path", "file"),
    ),
    "score": ("score", "rel", "relevance", "relevancy", "grade", "label", "judgement", "judgment", "rating"),
}
# How many columns a judgement has where no header names them: without a grade, with one, and in TREC's form.
_WIDTHS: tuple[int, ...] = (2, 3, 4)
_TREC = 4
_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", " ": "spaces"}
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,9}(\.0+)?")


def judgement_files(folder: Path, side: Side) -> list[Path]:
    """The file of a side's judgements, or its parts, in the first folder and form that there is."""
    for place in _FOLDERS:
        found: dict[tuple[bool, int, int], list[Path]] = {}
        for path in files_of_rows(folder / place, _FORMS):
            name, ending = name_and_ending(path)
            match = _PART.fullmatch(name.lower())
            if match and SIDES_BY_NAME.get(match["side"]) == side:
                order = (bool(match["part"]), [*SIDES_BY_NAME].index(match["side"]), _FORMS.index(ending))
                found.setdefault(order, []).append(path)
        if found:
            return found[min(found)]
    return []


def judgement_rows(path: Path) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """Query id, passage id and grade of every judgement, each with its place.

    Columns are those that the header names, in any order. Where no line names them they are query id and passage id,
    or these and the grade, or TREC's four, of which the second is not read.

    Raises:
        LabelsError: naming the file and line that is malformed.
    """
    if name_and_ending(path)[1] in _TABLES:
        found = _table_judgements(path)
    else:
        found = (judgement for place, row in read_rows(path) for judgement in _named_judgements(place, row))
    for place, (query, passage, grade) in found:
        if not _WHOLE_NUMBER.fullmatch(grade):
            message = f"{place}: score {grade!r} is not a whole number"
            raise LabelsError(message)
        yield place, (query, passage, int(grade.partition(".")[0]))


def _table_judgements(path: Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Every line has as many columns as the first."""
    separator, names, widths = "\t", list[str](), _WIDTHS
    for number, (place, line) in enumerate(lines_of_table(path)):
        if number == 0:
            separator = _separator(place, line)
        cells = _cells(place, line, separator)
        if number == 0 and _is_header(cells):
            names, widths = cells, (len(cells),)
            continue
        if len(cells) not in widths:
            expected = f"{', '.join(names or _NAMES)} separated by {_SEPARATORS[separator]}"
            message = f"{place}: expected {expected}, got {len(cells)} columns"
            raise LabelsError(message)
        widths = (len(cells),)
        if names:
            yield from _named_judgements(place, dict(zip(names, cells, strict=True)))
        else:
            query, passage, *grade = cells[:1] + cells[2:] if len(cells) == _TREC else cells
            yield place, (query, passage, grade[0] if grade else _UNGRADED)


def _separator(place: str, line: str) -> str:
    """What separates the columns of a file with this first line: tabs, or what makes a header or judgement of it."""
    if "\t" in line:
        return "\t"
    for separator in (",", ";", " "):
        cells = _cells(place, line, separator)
        widths = (_TREC,) if separator == " " else _WIDTHS[1:]
        if _is_header(cells) or (len(cells) in widths and _WHOLE_NUMBER.fullmatch(cells[-1])):
            return separator
    return next((separator for separator in (",", ";") if separator in line), "\t")


def _cells(place: str, line: str, separator: str) -> list[str]:
    """The columns of a line, which may be quoted."""
    if separator == " ":
        return line.split()
    try:
        (cells,) = csv.reader([line.strip("\r\n")], delimiter=separator, skipinitialspace=True)
    except csv.Error as error:
        message = f"{place}: {error}"
        raise LabelsError(message) from error
    return [cell.strip() for cell in cells]


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a line names the columns of query and passage, or the query's and holds no grade."""
    query, passage, _ = _columns(tuple(cells))
    return query is not None and (passage is not None or not any(map(_WHOLE_NUMBER.fullmatch, cells)))


@cache
def _columns(given: tuple[str, ...]) -> tuple[str | None, ...]:
    """Which of the columns hold query id, passage id and grade, each by the first of its names that is among them."""
    spelt = {re.sub(r"[_\s]", "-", name.lower()): name for name in given}
    return tuple(next((spelt[name] for name in names if name in spelt), None) for names in _NAMES.values())


def _named_judgements(place: str, row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """A row of named columns; or an object of every query's grades by passage, as ranx and pytrec_eval have it."""
    if row and all(isinstance(value, dict) for value in row.values()):
        yield from ((place, (query, key, str(grade))) for query, graded in row.items() for key, grade in graded.items())
        return
    columns = _columns(tuple(row))
    query, passage = (None if column is None else id_text(row[column]) for column in columns[:2])
    if query is None or passage is None:
        message = f"{place}: expected the columns {', '.join(_NAMES)}, found {', '.join(row)}"
        raise LabelsError(message)
    yield place, (query, passage, _UNGRADED if columns[2] is None else str(row[columns[2]]))
