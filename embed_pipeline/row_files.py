"""Files of rows as people bring them: JSON Lines, JSON, CSV, TSV and Parquet, each packed (gzip, bzip2, xz) or not."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from embed_pipeline.delimited import delimited_rows, table_text
from embed_pipeline.text.blocks import whole_characters

logger = logging.getLogger(__name__)

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
"""Endings of the files whose rows :func:`read_rows` reads, before that of the packing; the preferred ones first."""
_PACKED: Mapping[str, Callable[[Path], BufferedIOBase]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PLACE = re.compile(r"(line|row) [0-9]+: ")
_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


class LabelsError(ValueError):
    """A file of labelled questions is missing, malformed, or names something that does not exist."""


def name_and_ending(path: Path) -> tuple[str, str]:
    """``test`` and ``.jsonl`` for ``test.jsonl`` and ``test.jsonl.gz``; the ending in small letters."""
    plain = path.with_suffix("") if path.suffix.lower() in _PACKED else path
    return plain.stem, plain.suffix.lower()


def files_of_rows(folder: Path, endings: Sequence[str] = ENDINGS) -> list[Path]:
    """The files of a folder with these endings, packed or not, by name; of a file and its packed form, the plain file.

    A folder that does not exist has none.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.glob("*"), key=lambda path: (path.suffix.lower() in _PACKED, path.name)):
        if name_and_ending(path)[1] in endings and path.is_file():
            found.setdefault(name_and_ending(path), path)
    return sorted(found.values())


def names_in(folder: Path) -> list[str]:
    """What a folder holds, pages about it and hidden files apart; a folder that does not exist holds nothing."""
    return sorted(path.name for path in folder.glob("[!.]*") if path.suffix.lower() != ".md")


def name_the_unread(folder: Path, read: Sequence[Path]) -> None:
    """Name in the log what nothing was read from, in a folder and in those of its folders that were read."""
    inside = [path.relative_to(folder) for path in read if path.is_relative_to(folder)]
    for place in sorted({Path(), *(path.parent for path in inside)}):
        used = {path.relative_to(place).parts[0] for path in inside if path.is_relative_to(place)}
        if unread := [name for name in names_in(folder / place) if name not in used]:
            logger.warning("%s: passed over: %s", folder / place, ", ".join(unread))


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file by its ending, each with its place (file and line or row) for messages.

    The cells of CSV and TSV are texts, or None where they are empty, or lists where columns have one name.

    Raises:
        LabelsError: the file has none of :data:`ENDINGS`, cannot be read, or holds something other than rows.
    """
    ending = name_and_ending(path)[1]
    if ending in {".jsonl", ".ndjson"}:
        return read_json_lines(path)
    if ending == ".json":
        return _json_rows(path)
    if ending in {".csv", ".tsv", ".parquet"}:
        return _table_rows(path, ending)
    message = f"{path}: expected a file named {', '.join(ENDINGS)}, packed ({', '.join(_PACKED)}) or not"
    raise LabelsError(message)


def read_json(text: str) -> Any:  # noqa: ANN401 - any JSON
    """The value of a JSON text that people wrote; half of a surrogate pair becomes U+FFFD.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        value = json.loads(text)
        if not _SURROGATE.search(text):
            return value
        written = json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return json.loads(whole_characters(written))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object of every line that is not blank, each with its place (file and line) for messages.

    Raises:
        LabelsError: the file cannot be read, or a line is no JSON object.
    """
    for place, line in lines_of(path):
        try:
            row = read_json(line)
        except ValueError as error:
            message = f"{place}: not JSON: {getattr(error, 'msg', error)}"
            raise LabelsError(message) from error
        yield place, _object(place, row)


def id_text(value: object) -> str | None:
    """An id as it is compared: text, and whole numbers as written, 7.0 of pandas too; None: it is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else str(value) if type(value) is int else None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not blank; only line feeds end a line, so that JSON may hold U+2028."""
    try:
        with _unpacked(path) as stream:
            for number, raw in enumerate(stream, start=1):
                place = f"{path}, line {number}"
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if line.strip():
                    yield place, line.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{place}: not UTF-8 at byte {error.start}"
        raise LabelsError(message) from error


def lines_of_table(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every line of a table that is not blank, whichever way Excel wrote it."""
    with _malformed(path):
        text = table_text(_content(path))
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


@contextmanager
def _unpacked(path: Path) -> Iterator[BufferedIOBase]:
    try:
        unpack = _PACKED.get(path.suffix.lower())
        with unpack(path) if unpack else path.open("rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        message = f"{path}: {getattr(error, 'strerror', None) or error}"
        raise LabelsError(message) from error


def _content(path: Path) -> bytes:
    with _unpacked(path) as stream:
        return stream.read()


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of an array, one object alone, or JSON Lines, which are often named .json."""
    try:
        found = read_json(_content(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 at byte {error.start}"
        raise LabelsError(message) from error
    except ValueError as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from read_json_lines(path)
            return
        line = getattr(error, "lineno", 1)
        message = f"{path}, line {line}: not JSON: {getattr(error, 'msg', error)}"
        raise LabelsError(message) from error
    for number, row in enumerate(found if isinstance(found, list) else [found], start=1):
        place = f"{path}, row {number}"
        yield place, _object(place, row)


def _table_rows(path: Path, ending: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if ending == ".parquet":
        yield from _parquet_rows(path)
        return
    with _malformed(path):
        for number, row in delimited_rows(_content(path)):
            yield f"{path}, row {number}", row


@contextmanager
def _malformed(path: Path) -> Iterator[None]:
    """Name the file in what is wrong with a table of text."""
    try:
        yield
    except ValueError as error:
        at = ", " if _PLACE.match(str(error)) else ": "
        message = f"{path}{at}{error}"
        raise LabelsError(message) from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import polars as pl

    try:
        frame = pl.read_parquet(_content(path))
    except pl.exceptions.PolarsError as error:
        message = f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}"
        raise LabelsError(message) from error
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield f"{path}, row {number}", row


def _object(place: str, row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        message = f"{place}: expected an object"
        raise LabelsError(message)
    return row
