"""Judgements (qrels): which files of a BEIR folder hold those of a side, and what is in their columns.

A side's judgements are in ``qrels``, ``data`` or ``default``, in a file named exactly for the side, such as
``test.tsv``, or in parts of it as hubs write them, such as ``test-00000-of-00001.parquet``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embed_pipeline.enumerations import Side
from embed_pipeline.row_files import ENDINGS, LabelsError, files_of_rows, id_text, lines_of, name_and_ending, read_rows

SIDES_BY_NAME: Mapping[str, Side] = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "eval": "dev",
    "test": "test",
}
"""Name of a side in files and columns to the side."""
UNGRADED = "1"
_FOLDERS = ("qrels", "data", "default")
_TABLES = (".tsv",)
_FORMS = (*_TABLES, *(ending for ending in ENDINGS if ending not in _TABLES))
_PART = re.compile(r"(?P<side>[a-z]+)(?P<part>[-_][0-9]+([-_]of[-_][0-9]+)?([-_][0-9a-f]+)?)?")
_HEADERS = frozenset({"query-id", "query_id", "qid"})
_COLUMNS = ("query-id", "corpus-id", "score")
# Columns of a judgement: without a grade, with one, and in TREC's form.
_WIDTHS = frozenset({2, 3, 4})


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


def judgement_rows(path: Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Query id, passage id and grade of every judgement, as texts, each with its place.

    Raises:
        LabelsError: naming the file and line that is malformed.
    """
    if name_and_ending(path)[1] in _TABLES:
        return _tab_separated(path)
    return (judgement for place, row in read_rows(path) for judgement in _named_judgements(place, row))


def _tab_separated(path: Path) -> Iterator[tuple[str, tuple[str, str, str]]]:
    expected = _WIDTHS
    for number, (place, line) in enumerate(lines_of(path)):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) == 1 and len(line.split()) == max(_WIDTHS):
            # TREC's own files are separated by spaces.
            cells = line.split()
        if number == 0 and cells[0].lower() in _HEADERS:
            expected = _WIDTHS & {len(cells)} or _WIDTHS
            continue
        if len(cells) not in expected:
            message = f"{place}: expected {', '.join(_COLUMNS)} separated by tabs, got {len(cells)} columns"
            raise LabelsError(message)
        query, passage, *score = cells[:1] + cells[2:] if len(cells) == max(_WIDTHS) else cells
        yield place, (query, passage, score[0] if score else UNGRADED)


def _named_judgements(place: str, row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """A row of named columns; or an object of every query's grades by passage, as ranx and pytrec_eval have it."""
    if row and all(isinstance(value, dict) for value in row.values()):
        yield from ((place, (query, key, str(grade))) for query, graded in row.items() for key, grade in graded.items())
        return
    named = {str(name).lower().replace("_", "-"): value for name, value in row.items()}
    query, passage = id_text(named.get(_COLUMNS[0])), id_text(named.get(_COLUMNS[1]))
    if query is None or passage is None:
        message = f"{place}: expected the columns {', '.join(_COLUMNS)}, found {sorted(row)}"
        raise LabelsError(message)
    yield place, (query, passage, str(named.get(_COLUMNS[2], UNGRADED)))
