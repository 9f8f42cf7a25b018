"""Folders in the form of the BEIR benchmark (Thakur et al. 2021): queries, passages, and which passages answer what.

``queries.jsonl``
    an object for each query: ``_id``, a string or a whole number, and the string ``text``;
``qrels/{train,dev,test}.tsv``
    a line for each judgement: query id, passage id and grade, a whole number, separated by tabs; where a header names
    the columns, they may be in any order;
``corpus.jsonl``
    an object for each passage, as for queries, with a ``title`` where there is one; the file may be missing.

Queries and passages may be in any form of :mod:`embed_pipeline.row_files` instead, with the same columns, or in a
folder ``queries`` or ``corpus`` of parts. So may judgements, with the columns ``query-id``, ``corpus-id`` and
``score``, and separated by commas: a file or parts named for their side in ``qrels``, ``data`` or ``default``
(:mod:`embed_pipeline.qrels`).

Every file may be packed (``.jsonl.gz``, ``.tsv.gz``). Judgements may be without a grade, which is 1 then, or in TREC's
form, whose second column is not read. Other keys are ignored, and so is a byte order mark. A passage's text is title
and text joined by a space, as BEIR joins them, without white space around it; passages and queries without a text are
left out, and so are judgements on queries that are left out or missing. A passage judged more than once for a query has
its highest grade. What is left out is counted in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from embed_pipeline.enumerations import SIDES, Side
from embed_pipeline.qrels import judgement_files, judgement_rows
from embed_pipeline.row_files import (
    ENDINGS,
    LabelsError,
    files_of_rows,
    id_text,
    name_and_ending,
    name_the_unread,
    names_in,
    read_rows,
)
from embed_pipeline.text.blocks import is_blank

logger = logging.getLogger(__name__)


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
        passages: passage id to text; None where the folder has no corpus.
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
    queries = _read_queries(folder)
    files = {side: judgement_files(folder, side) for side in SIDES}
    found = {side: list(chain.from_iterable(map(judgement_rows, files[side]))) for side in sides}
    read = [*_files_named(folder, "queries"), *_files_named(folder, "corpus"), *chain.from_iterable(files.values())]
    name_the_unread(folder, read)
    judged = {side: _read_judgements(rows, queries, folder) for side, rows in found.items() if rows}
    for side, by_query in judged.items():
        if not any(each.positives for each in by_query.values()):
            logger.warning("%s: no grade of %s is 1 or more, so no passage answers a query of it", folder, side)
    if not judged:
        wanted = " or ".join(f"qrels/{side}.tsv" for side in sides)
        message = f"{folder}: there is no {wanted} with a judgement in it"
        if held := names_in(folder / "qrels"):
            message += f"; qrels holds {', '.join(held)}"
        others = [side for side in SIDES if side not in sides and any(map(any, map(judgement_rows, files[side])))]
        if others:
            message += f"; there are those of {' and '.join(others)}, which a copy named {sides[0]} would judge by"
        raise LabelsError(message)
    return BeirFolder(queries, _read_passages(folder), judged)


def _read_queries(folder: Path) -> dict[str, str]:
    found = {row["_id"]: row["text"] for _, row in _texts(folder, "queries")}
    return _with_text(found, folder, "queries")


def _read_passages(folder: Path) -> dict[str, str] | None:
    if not _files_named(folder, "corpus"):
        return None
    passages = {row["_id"]: f"{row['title']} {row['text']}".strip() for _, row in _texts(folder, "corpus")}
    return _with_text(passages, folder, "passages")


def _with_text(texts: Mapping[str, str], folder: Path, kind: str) -> dict[str, str]:
    said = {key: text for key, text in texts.items() if not is_blank(text)}
    if len(said) < len(texts):
        logger.warning("%s: %s without a text are left out: %d", folder, kind, len(texts) - len(said))
    return said


def holds_queries(folder: Path) -> bool:
    """Whether a folder is one of BEIR's form."""
    return bool(_files_named(folder, "queries"))


def _files_named(folder: Path, name: str) -> list[Path]:
    """The file that holds ``name``, in the first of its forms, or a folder of its parts."""
    whole = [path for path in files_of_rows(folder) if name_and_ending(path)[0] == name]
    return sorted(whole, key=lambda path: ENDINGS.index(name_and_ending(path)[1]))[:1] or files_of_rows(folder / name)


def _texts(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of queries or passages, each id once and a string."""
    files = _files_named(folder, name)
    if not files:
        message = f"{folder / name}.jsonl: No such file, nor one of another form; the folder holds {names_in(folder)}"
        raise LabelsError(message)
    rows = chain.from_iterable(map(read_rows, files))
    seen: dict[str, str] = {}
    for place, row in rows:
        key = id_text(row.get("_id", row.get("id")))
        text = "" if row.get("text") is None and "text" in row else row.get("text")
        if key is None or not isinstance(text, str):
            message = f"{place}: expected _id, a string or a whole number, and the string text"
            raise LabelsError(message)
        title = row.get("title") or ""
        if not isinstance(title, str) and id_text(title) is None:
            message = f"{place}: title is {title!r}, expected a string or a whole number"
            raise LabelsError(message)
        if seen.setdefault(key, text) != text:
            message = f"{place}: _id {key!r} occurs twice, with another text before"
            raise LabelsError(message)
        yield place, {"_id": key, "title": id_text(title), "text": text}


def _read_judgements(
    rows: Iterable[tuple[str, tuple[str, str, int]]], queries: Mapping[str, str], folder: Path
) -> dict[str, Judgements]:
    judged: dict[str, Judgements] = {}
    unknown: list[str] = []
    for place, (query, passage, grade) in rows:
        if query not in queries:
            unknown.append(f"{query!r} ({place})")
            continue
        grades = judged.setdefault(query, Judgements(place, {})).grades
        grades[passage] = max(grade, grades.get(passage, grade))
    if unknown and not judged:
        message = f"{folder}: no judged query is in its queries with a text, first {unknown[0]}"
        raise LabelsError(message)
    if unknown:
        logger.warning(
            "%s: judgements on queries that are missing or have no text are left out: %d, first %s",
            folder,
            len(unknown),
            unknown[0],
        )
    return judged
