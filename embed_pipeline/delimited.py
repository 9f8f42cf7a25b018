"""Rows of CSV and TSV as people write them: any encoding of Excel, any line end, and quotes that are plain text.

Comma and semicolon files follow RFC 4180. Tab-separated files often hold quotes that mean nothing, so a quoted cell of
theirs runs over a line end only where the next lines are no rows of their own.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from embed_pipeline.text.blocks import whole_characters

_SEPARATORS = ",;\t"
# Tells Excel what separates the cells.
_SEPARATOR_LINE = re.compile(r'[ \t]*"?sep=(.)"?[ \t\r]*(?:\n|\Z)', re.IGNORECASE)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_CELL = re.compile(rf"(?:{_QUOTED.pattern}(?=\t|\Z)|[^\t]*)(?:\t|\Z)")
_LITERAL = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*["]""")
_LITERALS = re.compile(rf"\[\s*(?:(?:{_LITERAL.pattern})\s*(?:,\s*)?)*\]")
_REPEATED = re.compile(r"(.+)_duplicated_[0-9]+", re.DOTALL)


def delimited_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and cells of every row that is not blank; columns of one name hold the list of their cells.

    Cells are texts, or None where they are empty.

    Raises:
        ValueError: naming the line that is no text, or the row that has more cells than there are columns.
    """
    stated, text = stated_separator(table_text(content))
    header = _QUOTED.sub("", text.partition("\n")[0])
    separator = stated or max(_SEPARATORS, key=header.count)
    named = _tab_rows(text) if separator == "\t" else _comma_rows(text, separator)
    for number, (names, cells) in enumerate(named, start=1):
        # A blank line has no cell.
        if any(cell is not None for cell in cells):
            yield number, _row(names, cells)


def stated_separator(text: str) -> tuple[str, str]:
    """The separator that a first line of Excel's states (``sep=;``), empty where none does, and the rest."""
    said = _SEPARATOR_LINE.match(text)
    return (said[1], text[said.end() :]) if said else ("", text)


def list_in_cell(cell: str) -> list[Any] | None:
    """The list that pandas, NumPy (no commas) or JSON wrote into a cell; None: the cell is a plain text."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = None
    if found is None and _LITERALS.fullmatch(cell):
        try:
            found = [ast.literal_eval(literal) for literal in _LITERAL.findall(cell)]
        except (ValueError, SyntaxError):
            # An escape that is none of Python's.
            return None
    if found is None or any(isinstance(each, list | dict) for each in found):
        return None
    return [whole_characters(each) if isinstance(each, str) else each for each in found]


def table_text(content: bytes) -> str:
    """The text of a file, with line feeds where lines end in carriage returns alone.

    Raises:
        ValueError: naming the line that is no text.
    """
    try:
        text = content.decode("utf-16") if content.startswith(_UTF_16) else content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"line {line}: not {error.encoding.upper()} at byte {error.start}; save the file as UTF-8"
        raise ValueError(message) from error
    return text if "\n" in text else text.replace("\r", "\n")


def _row(names: Sequence[str], cells: Sequence[str | None]) -> dict[str, Any]:
    if len(set(names)) == len(names):
        return dict(zip(names, cells, strict=True))
    several: dict[str, list[str]] = {name: [] for name in names}
    for name, cell in zip(names, cells, strict=True):
        if cell is not None and cell not in several[name]:
            several[name].append(cell)
    return {name: found if len(found) > 1 else next(iter(found), None) for name, found in several.items()}


def _comma_rows(text: str, separator: str) -> Iterator[tuple[list[str], tuple[str | None, ...]]]:
    import polars as pl

    try:
        frame = pl.read_csv(text.encode(), separator=separator, infer_schema=False, raise_if_empty=False)
    except pl.exceptions.PolarsError as error:
        message = _wide_row(text, separator) or f"not a readable CSV file: {str(error).splitlines()[0]}"
        raise ValueError(message) from error
    renamed = [(name, _REPEATED.fullmatch(name)) for name in frame.columns]
    names = [match[1] if match and match[1] in frame.columns else name for name, match in renamed]
    for cells in frame.iter_rows():
        yield names, cells


def _wide_row(text: str, separator: str) -> str | None:
    """What is wrong with the first row that has more cells than the header."""
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        width = len(next(rows, []))
        for number, cells in enumerate(rows, start=1):
            if len(cells) > width:
                return _too_many(number, len(cells), width, separator)
    except csv.Error:
        # A cell longer than the csv module reads.
        return None
    return None


def _too_many(number: int, cells: int, width: int, separator: str) -> str:
    wrong = f"row {number}: {cells} cells under {width} columns"
    return f"{wrong}; put quotes around a cell that holds {'a tab' if separator == chr(9) else repr(separator)}"


def _tab_rows(text: str) -> Iterator[tuple[list[str], list[str | None]]]:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if not lines[-1]:
        lines.pop()
    names = _tab_cells(lines[0], 0)
    at, number = 1, 0
    while at < len(lines):
        taken = _lines_of_row(lines, at, len(names))
        cells: list[str | None] = [cell or None for cell in _tab_cells("\n".join(lines[at : at + taken]), len(names))]
        at, number = at + taken, number + 1
        if len(cells) > len(names):
            raise ValueError(_too_many(number, len(cells), len(names), "\t"))
        yield names, cells + [None] * (len(names) - len(cells))


def _lines_of_row(lines: Sequence[str], at: int, width: int) -> int:
    """How many lines the row has that begins at a line: several where a quoted cell of it runs over their ends."""
    first = lines[at]
    quotes = first.count('"')
    if quotes % 2 == 0 or not any(cell.startswith('"') for cell in first.split("\t")):
        return 1
    whole = first.count("\t") == width - 1
    for end in range(at + 1, len(lines)):
        quotes += lines[end].count('"')
        if whole and lines[end].count("\t") == width - 1:
            return 1
        if quotes % 2 == 0:
            joined = "\n".join(lines[at : end + 1])
            return end + 1 - at if len(_quoted_cells(joined)) == width and "\n" not in _outside_quotes(joined) else 1
    return 1


def _outside_quotes(text: str) -> str:
    """What is left of a text without its quoted cells."""
    return "".join(cell for cell in _quoted_cells(text) if not _QUOTED.fullmatch(cell))


def _tab_cells(line: str, width: int) -> list[str]:
    """The cells of a row, without the quotes around them; a tab in quotes separates where the row needs it to."""
    plain = line.split("\t")
    cells = plain if len(plain) == width and "\n" not in line else _quoted_cells(line)
    return [cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in cells]


def _quoted_cells(text: str) -> list[str]:
    """The cells of a row, each as it is written; a tab inside quotes is part of its cell."""
    cells, at = [], 0
    while (match := _CELL.match(text, at)) and match.end() > at:
        cells.append(match[0].removesuffix("\t"))
        at = match.end()
    return [*cells, ""] if text.endswith("\t") or not text else cells
