"""Folders in the form of the BEIR benchmark (Thakur et al. 2021): queries, passages, and which passages answer what.

``queries.jsonl``
    an object for each query: the strings ``_id`` and ``text``;
``qrels/{train,dev,test}.tsv``
    a line for each judgement: query id, passage id and grade, a whole number, separated by tabs; a header is allowed;
``corpus.jsonl``
    an object for each passage, as for queries, with a ``title`` where there is one; the file may be missing.

Other keys are ignored, and so is a byte order mark. A passage's text is title and text joined by a space, as BEIR joins
them, without white space around it. A passage judged more than once for a query has its highest grade.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed_pipeline.enumerations import SIDES, Side

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEADERS = frozenset({"query-id", "query_id", "qid"})
_COLUMNS = ("query-id", "corpus-id", "score")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+(\.0+)?")


class LabelsError(ValueError):
    """A file of labelled questions is missing, malformed, or names something that does not exist."""


@dataclass(frozen=True)
class Judgements:
    """What people said of one query.

    Attributes:
        place: file and line of the first judgement, for messages.
        grades: passage id to grade, in the order of the file; 1 and more: the passage answers the query.
    """

    place: str
    grades: dict[str, int]

    @property
    def positives(self) -> list[str]:
        """Ids of the passages that answer the query."""
        return [passage for passage, grade in self.grades.items() if grade > 0]

    @property
    def negatives(self) -> list[str]:
        """Ids of the passages that do not."""
        return [passage for passage, grade in self.grades.items() if grade <= 0]


@dataclass(frozen=True)
class BeirFolder:
    """A BEIR folder as read.

    Attributes:
        queries: query id to text.
        passages: passage id to text; None where the folder has no ``corpus.jsonl``.
        judged: for each side that has a file, query id to its judgements.
    """

    queries: dict[str, str]
    passages: dict[str, str] | None
    judged: dict[Side, dict[str, Judgements]]


def read_beir(folder: Path, sides: Sequence[Side] = SIDES) -> BeirFolder:
    """Read a BEIR folder.

    Args:
        folder: the folder.
        sides: whose judgements to read; at least one of their files must be there.

    Raises:
        LabelsError: naming the file that is missing, or the file and line that is malformed.
    """
    queries = {row["_id"]: row["text"] for _, row in _texts(folder / "queries.jsonl")}
    files = {side: folder / "qrels" / f"{side}.tsv" for side in sides}
    judged = {side: _read_judgements(path, queries) for side, path in files.items() if path.exists()}
    if not judged:
        message = f"{folder}: there is no {' or '.join(f'qrels/{path.name}' for path in files.values())}"
        raise LabelsError(message)
    corpus = folder / "corpus.jsonl"
    return BeirFolder(queries, _read_passages(corpus) if corpus.exists() else None, judged)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object of every line that is not blank, each with its place (file and line) for messages.

    Raises:
        LabelsError: the file cannot be read, or a line is no JSON object.
    """
    for place, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            message = f"{place}: not JSON: {error.msg}"
            raise LabelsError(message) from error
        if not isinstance(row, dict):
            message = f"{place}: expected an object"
            raise LabelsError(message)
        yield place, row


def _read_passages(path: Path) -> dict[str, str]:
    return {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for _, row in _texts(path)}


def _texts(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of queries or passages, each id once."""
    seen: set[str] = set()
    for place, row in read_json_lines(path):
        if not isinstance(row.get("_id"), str) or not isinstance(row.get("text"), str):
            message = f"{place}: expected the strings _id and text"
            raise LabelsError(message)
        if not isinstance(row.get("title") or "", str):
            message = f"{place}: title is {row['title']!r}, expected a string"
            raise LabelsError(message)
        if row["_id"] in seen:
            message = f"{place}: _id {row['_id']!r} occurs twice"
            raise LabelsError(message)
        seen.add(row["_id"])
        yield place, row


def _read_judgements(path: Path, queries: Mapping[str, str]) -> dict[str, Judgements]:
    judged: dict[str, Judgements] = {}
    for number, (place, line) in enumerate(_lines(path)):
        cells = [cell.strip() for cell in line.split("\t")]
        if number == 0 and cells[0].lower() in _HEADERS:
            continue
        if len(cells) != len(_COLUMNS):
            message = f"{place}: expected {', '.join(_COLUMNS)} separated by tabs, got {len(cells)} columns"
            raise LabelsError(message)
        query, passage, score = cells
        if not _WHOLE_NUMBER.fullmatch(score):
            message = f"{place}: score {score!r} is not a whole number"
            raise LabelsError(message)
        if query not in queries:
            message = f"{place}: query {query!r} is not in queries.jsonl"
            raise LabelsError(message)
        grades = judged.setdefault(query, Judgements(place, {})).grades
        grade = int(score.partition(".")[0])
        grades[passage] = max(grade, grades.get(passage, grade))
    return judged


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of every line that is not blank; only line feeds end a line, so that JSON may hold U+2028."""
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                place = f"{path}, line {number}"
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if line.strip():
                    yield place, line.decode("utf-8")
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise LabelsError(message) from error
    except UnicodeDecodeError as error:
        message = f"{place}: not UTF-8 at byte {error.start}"
        raise LabelsError(message) from error
