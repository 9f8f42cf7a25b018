"""CSV and JSON Lines: each row a section of its own, read as data.

A row's heading is its title, name, heading, subject, question or id: the first of these columns that it fills. Text in
a cell is Markdown of its own: what is left open there ends with it, and its headings stand below the row's.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from embed_pipeline.corpus.decoding import without_data
from embed_pipeline.delimited import stated_separator
from embed_pipeline.text.blocks import Block, Draft, ParsedDocument, clean_text
from embed_pipeline.text.markdown import markdown_blocks, plain_line_ends, plain_title

Row = list[tuple[str, str]]

_TITLE_COLUMNS = ("title", "name", "heading", "subject", "question", "id")
_MAX_TITLE = 120
_ROW_LEVEL = 2
_DELIMITERS = ",;\t|"
_NO_DELIMITER = "\x1f"
# Backslashes that escape no quote.
_PLAIN_BACKSLASHES = re.compile(r'\\+(?![\\"])')
_SAMPLED_ROWS = 200
_SAMPLED_CHARACTERS = 64_000
_LONGEST_CELL = 2**31 - 1
_MOST_DAMAGES = 100
_DEEPEST_VALUE = 20
_MORE = "more"
# How the types of a message's parts that are no text begin.
_FILES = ("image", "input_image", "audio", "input_audio", "video", "file", "input_file", "document")
_HTML = re.compile(
    r"\s*<(?:!doctype|html|body|p|div|h[1-6]|ul|ol|table|section|article|span|blockquote)\b", re.IGNORECASE
)


class NoRowsError(ValueError):
    """Nothing in the file is a row."""


def read_csv(text: str) -> ParsedDocument:
    """The rows of a CSV file: the delimiter that most rows agree on, Excel's ``sep=`` before all.

    Raises:
        NoRowsError: no row can be read.
    """
    return _reading(_csv_rows(text))


def read_json_lines(text: str) -> ParsedDocument:
    """The objects of a JSON Lines file, or of a JSON array.

    Raises:
        NoRowsError: no line is a JSON object.
    """
    return _reading(_array(text) or _json_rows(text))


def _reading(rows: Iterator[tuple[Row, str]]) -> ParsedDocument:
    draft = Draft()
    left_out = []
    for number, (row, problem) in enumerate(rows, start=1):
        if problem:
            left_out.append(problem)
        else:
            _write(row, number, draft)
    if left_out and draft.is_empty:
        raise NoRowsError(left_out[0])
    return draft.reading(left_out=left_out)


def _write(row: Row, number: int, draft: Draft) -> None:
    shown = [(name, without_data(clean_text(plain_line_ends(value))).strip()) for name, value in row]
    shown = [(name, value) for name, value in shown if value]
    if not shown:
        return
    columns = [name.strip().lower() for name, _ in shown]
    named = next((columns.index(name) for name in _TITLE_COLUMNS if name in columns), None)
    title = (plain_title(shown[named][1]) if named is not None else "") or f"Row {number}"
    if len(title) > _MAX_TITLE:
        # What does not fit into a heading stays in the row.
        title, named = title[:_MAX_TITLE], None
    draft.add_heading(_ROW_LEVEL, title)
    lines: list[str] = []
    for place, (name, value) in enumerate(shown):
        if place == named:
            continue
        said, blocks = _parsed(value)
        is_text = all(block.kind == "paragraph" for block in blocks)
        lines.append(f"{name}: {said}" if is_text else f"{name}:")
        if len(blocks) > is_text:  # the next value is no part of the last of several paragraphs
            draft.add("paragraph", "\n".join(lines))
            lines = []
        if not is_text:
            draft.add_parsed(said, blocks, below=_ROW_LEVEL)
    draft.add("paragraph", "\n".join(lines))


def _parsed(value: str) -> tuple[str, tuple[Block, ...]]:
    """A value and its blocks; one that is HTML as Markdown, one of a single line has none."""
    if _HTML.match(value) and "</" in value:
        from embed_pipeline.corpus.pages import read_html

        read = read_html(value)
        return read.text.rstrip("\n"), read.blocks
    return value, markdown_blocks(value) if "\n" in value else ()


def _csv_rows(text: str) -> Iterator[tuple[Row, str]]:
    """Every row under the names of the first, or what is wrong with it.

    A first column without a name that holds whole numbers, as pandas writes its index, is no text.
    """
    csv.field_size_limit(_LONGEST_CELL)
    delimiter, text = stated_separator(text)
    lines = text.split("\n")
    if not delimiter:
        comments = next((number for number, line in enumerate(lines) if not line.startswith("#")), 0)
        delimiter = _delimiter(lines[comments:])
        if comments and delimiter != _NO_DELIMITER and not any(delimiter in line for line in lines[:comments]):
            yield from (([], f"line {number + 1} is a comment") for number in range(comments))
            lines = lines[comments:]
        elif comments:
            delimiter = _delimiter(lines)
    ended = [f"{line}\n" for line in lines]
    records = _records(_with_plain_quotes(ended) if delimiter == "\t" else ended, delimiter)
    names: Sequence[str] = ()
    numbered = False
    for cells, problem in records:
        if not names and not problem and _is_filled(cells):
            numbered = not cells[0].strip() or cells[0].strip() == "Unnamed: 0"
            names = [name.strip() or f"column {place}" for place, name in enumerate(cells, start=1)]
        elif problem or (names and cells):
            extra = [(_MORE, ", ".join(cells[len(names) :]))] if len(cells) > len(names) else []
            is_index = numbered and bool(cells) and cells[0].strip().isdecimal()
            yield [*zip(names, cells, strict=False), *extra][is_index:], problem


def _with_plain_quotes(lines: Sequence[str]) -> list[str]:
    """The lines of a tab-separated file, with quotes escaped where they are text and do not enclose a cell.

    A cell that is still open where its line ends goes on only if no line up to the closing quote is a whole row.
    """
    tabs = next((line.count("\t") for line in lines if line.strip()), 0)
    kept: list[str] = []
    place = 0
    while place < len(lines):
        end = place + 1
        if lines[place].count("\t") == tabs and _is_open(lines[place]):
            last = next((n for n in range(end, len(lines)) if '"' in lines[n] or lines[n].count("\t") == tabs), -1)
            if last < 0 or lines[last].count("\t") == tabs:
                cells = lines[place].rstrip("\n").replace('"', '""').split("\t")
                kept.append("\t".join(f'"{cell}"' for cell in cells) + "\n")
            else:
                end = last + 1
                kept += lines[place:end]
        else:
            kept.append(lines[place])
        place = end
    return kept


def _is_open(line: str) -> bool:
    """True where a quote that opens a cell of a tab-separated line does not close in it."""
    return '"' in line and next(csv.reader([line], delimiter="\t", skipinitialspace=True))[-1].endswith("\n")


def _records(lines: Sequence[str], delimiter: str) -> Iterator[tuple[list[str], str]]:
    """Cells of each record. One whose quotes do not add up is its line alone, so that it takes no other along.

    A quote in a cell is doubled, or has a backslash before it: what reads the first row that the other does not.
    """
    place, damages, width, escape = 0, 0, 0, ""
    while place < len(lines):
        start = place
        reader = _strict_reader(lines, start, delimiter, escape)
        try:
            for cells in reader:
                width = width or (len(cells) if _is_filled(cells) else 0)
                place = start + reader.line_num
                yield cells, ""
        except csv.Error as error:
            other = "" if escape else "\\"
            if _is_record(_strict_reader(lines, place, delimiter, other), width):
                escape = other
                continue
            damages += 1
            if damages > _MOST_DAMAGES:
                yield [], f"line {place + 1} to the last: over {_MOST_DAMAGES} lines before are damaged"
                return
            alone = next(csv.reader([lines[place]], delimiter=delimiter, skipinitialspace=True), [])
            fits = len(alone) == width and lines[place].count('"') % 2 == 0
            yield (alone, "") if fits else ([], f"line {place + 1}: {error}")
            place += 1
        else:
            return


def _strict_reader(lines: Sequence[str], start: int, delimiter: str, escape: str) -> Any:  # noqa: ANN401 - csv's
    """A reader from a line on; with ``escape``, the backslashes before quotes escape them, and all others are text."""
    rest: Iterator[str] = map(lines.__getitem__, range(start, len(lines)))
    if escape:
        rest = (_PLAIN_BACKSLASHES.sub(lambda found: 2 * found[0], line) for line in rest)
    return csv.reader(rest, delimiter=delimiter, skipinitialspace=True, strict=True, escapechar=escape or None)


def _is_record(reader: Any, width: int) -> bool:  # noqa: ANN401
    """True where a reader's next record can be read and has as many cells as the first one of the file."""
    try:
        return len(next(reader)) == width or not width
    except csv.Error:
        return False


def _is_filled(cells: Sequence[str]) -> bool:
    return any(map(str.strip, cells))


def _delimiter(lines: Sequence[str]) -> str:
    """The sign that cuts the first row into several cells, and most rows into as many."""
    sizes = accumulate(len(line) + 1 for line in lines)
    sample = [line for line, size in zip(lines, sizes, strict=True) if size <= _SAMPLED_CHARACTERS] or lines[:1]
    best, chosen = (0.0, 0), _NO_DELIMITER
    for delimiter in _DELIMITERS:
        reader = csv.reader((f"{line}\n" for line in sample), delimiter=delimiter, skipinitialspace=True)
        widths = [len(cells) for cells, _ in zip(reader, range(_SAMPLED_ROWS), strict=False) if _is_filled(cells)]
        if widths and widths[0] > 1:
            score = (Counter(widths)[widths[0]] / len(widths), widths[0])
            best, chosen = max((best, chosen), (score, delimiter), key=lambda scored: scored[0])
    return chosen


def _array(text: str) -> Iterator[tuple[Row, str]] | None:
    """The rows of a file that is one JSON array; None where it is none."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return ((_pairs(row), "") if isinstance(row, dict) else ([], "an element is no JSON object") for row in found)


def _json_rows(text: str) -> Iterator[tuple[Row, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows = _values(line)
        except (ValueError, RecursionError) as error:
            yield [], f"line {number} is not JSON: {error}"
            continue
        for row in rows:
            yield (_pairs(row), "") if isinstance(row, dict) else ([], f"line {number} is no JSON object")


def _values(line: str) -> list[Any]:
    """The values of a line: one, or several that no line end parts."""
    line, decoder, found, place = line.strip(), json.JSONDecoder(), [], 0
    while place < len(line):
        value, place = decoder.raw_decode(line, place)
        found.append(value)
        while line[place : place + 1] in {" ", "\t", ","}:
            place += 1
    return found


def _pairs(row: dict[str, Any]) -> Row:
    told = {"content": _said(row["content"], 1)} if _is_message(row) else {}
    return [pair for name, value in (row | told).items() for pair in _turns(str(name), value)]


def _turns(name: str, value: object) -> Row:
    """A value under its name; messages one by one, the first under the name of their list."""
    if not isinstance(value, list) or not any(map(_is_message, value)):
        return [(name, _shown(value, 0))]
    turns = (_message(turn, 1) if _is_message(turn) else [(name, _shown(turn, 1))] for turn in value)
    pairs = [(label, shown) for turn in turns for label, shown in turn if shown]
    return [(f"{name}: {label}" if place == 0 else label, shown) for place, (label, shown) in enumerate(pairs)]


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _message(turn: dict[str, Any], depth: int) -> Row:
    """What a message says, under its role, and all else in it under that and its name."""
    role = turn["role"]
    others = [(name, inner) for name, inner in turn.items() if name not in {"role", "content"}]
    shown = ((f"{role} {name}", _shown(inner, depth + 1)) for name, inner in others)
    return [(role, _said(turn["content"], depth + 1)), *shown]


def _said(content: object, depth: int) -> str:
    """The text of a message: as it is, or that of its parts."""
    if not isinstance(content, list):
        return _shown(content, depth)
    return "\n\n".join(filter(None, (_part(part, depth + 1) for part in content)))


def _part(part: object, depth: int) -> str:
    """A part of a message: its text; nothing of pictures and other files."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    is_file = isinstance(part, dict) and str(part.get("type")).startswith(_FILES)
    return "" if is_file else _shown(part, depth)


def _shown(value: object, depth: int) -> str:
    """A value as text; empty for a missing one."""
    if value is None or isinstance(value, str):
        return value or ""
    if depth > _DEEPEST_VALUE or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if depth <= _DEEPEST_VALUE else "..."
    if isinstance(value, list):
        return _listed([shown for inner in value if (shown := _shown(inner, depth + 1))])
    inner = _message(value, depth) if _is_message(value) else [(n, _shown(v, depth + 1)) for n, v in value.items()]
    return _listed([f"{name}: {shown}" for name, shown in inner if shown])


def _listed(parts: list[str]) -> str:
    """Short parts on one line, long ones apart."""
    is_short: Callable[[str], bool] = lambda part: "\n" not in part and len(part) <= _MAX_TITLE  # noqa: E731
    return ", ".join(parts) if all(map(is_short, parts)) else "\n\n".join(parts)
