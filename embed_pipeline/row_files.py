"""Files of rows as people bring them: JSON Lines, packed or not, and Parquet."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_pipeline.text.blocks import whole_characters

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


class LabelsError(ValueError):
    """A file of labelled questions is missing, malformed, or names something that does not exist."""


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, each with its place (file and row) for messages.

    Raises:
        LabelsError: the file cannot be read.
    """
    import polars as pl

    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = f"{path}: not a readable Parquet file: {error}"
        raise LabelsError(message) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(frame.iter_rows(named=True), start=1))


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
        if not isinstance(row, dict):
            message = f"{place}: expected an object"
            raise LabelsError(message)
        yield place, row


def id_text(value: object) -> str | None:
    """An id as it is compared: text, and whole numbers as written, 7.0 of pandas too; None: it is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else str(value) if type(value) is int else None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not blank; only line feeds end a line, so that JSON may hold U+2028."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                place = f"{path}, line {number}"
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if line.strip():
                    yield place, line.decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path}: {getattr(error, 'strerror', None) or error}"
        raise LabelsError(message) from error
    except UnicodeDecodeError as error:
        message = f"{place}: not UTF-8 at byte {error.start}"
        raise LabelsError(message) from error
