"""Questions with known answers: the held-out generated ones, and the user's own in BEIR folders."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

logger = logging.getLogger(__name__)

Unit = Literal["segment", "document"]
Qrels = dict[str, dict[str, int]]

GENERATED = "generated"
SLICES = ("hop_count", "query_type", "reasoning_type")
_QRELS_COLUMNS = 3


class EvaluationError(ValueError):
    """A query set or an evaluation input is malformed."""


@dataclass(frozen=True)
class Passages:
    """What is searched: ids and texts, in the same order."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class QuerySet:
    """Queries and the passages or documents that answer them.

    Attributes:
        name: as it appears in tables and reports.
        queries: query id to text.
        qrels: query id to the ids that answer it, each with its grade (1 or more).
        unit: what the ids of ``qrels`` are: segments, or documents named by their path, which are scored by their
            best segment (MaxP; Dai and Callan 2019).
        slices: dimension to query id to value, such as ``hop_count`` to ``{"q1": "2"}``.
        corpus: passages of the set's own; None: the pipeline's corpus is searched.
    """

    name: str
    queries: dict[str, str]
    qrels: Qrels
    unit: Unit = "segment"
    slices: dict[str, dict[str, str]] = field(default_factory=dict)
    corpus: Passages | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def ids(self) -> list[str]:
        """Query ids, sorted: the order of every per-query array."""
        return sorted(self.queries)


def generated_set(qa: pl.DataFrame, split: pl.DataFrame, side: str) -> QuerySet:
    """The generated questions of one side of the split, each answered by its source segments.

    Args:
        qa: table ``qa_dataset``.
        split: table ``dataset_split``.
        side: ``train``, ``dev`` or ``test``; the test side is named ``generated``, others by their side.
    """
    chosen = split.filter(pl.col("split") == side).select("qa_id")
    rows = qa.join(chosen, on="qa_id", how="semi").sort("qa_id").to_dicts()
    return QuerySet(
        name=GENERATED if side == "test" else side,
        queries={row["qa_id"]: row["question"] for row in rows},
        qrels={row["qa_id"]: dict.fromkeys(row["segment_ids"], 1) for row in rows},
        slices={dimension: {row["qa_id"]: str(row[dimension]) for row in rows} for dimension in SLICES},
    )


def labelled_set(folder: Path, corpus: pl.DataFrame) -> QuerySet | None:
    """Read a BEIR folder: ``queries.jsonl``, ``qrels/test.tsv`` and, where the set has one, ``corpus.jsonl``.

    Without ``corpus.jsonl`` the judged ids are paths of documents in ``corpus``; judgements on documents that are not
    there are left out and counted in the log.

    Args:
        folder: the BEIR folder; its name is the set's name.
        corpus: table ``corpus``.

    Returns:
        The set, or None (and a line in the log) where the folder is absent or judges no document of the corpus.

    Raises:
        EvaluationError: naming the file and the line that is malformed.
    """
    if not folder.is_dir():
        logger.warning("labelled queries: no folder %s; left out", folder)
        return None
    queries = {row: text for row, text, _ in _read_texts(folder / "queries.jsonl")}
    judged = _read_qrels(folder / "qrels" / "test.tsv", queries)
    own = folder / "corpus.jsonl"
    passages = _read_passages(own) if own.exists() else None
    known = set(passages.ids) if passages else set(corpus["path"].unique().to_list())
    qrels, unknown = _keep_known(judged, known)
    if unknown:
        logger.warning("labelled queries %s: %d judgements are on documents not in the corpus", folder.name, unknown)
    if not qrels:
        logger.warning("labelled queries %s: no judged document is in the corpus; left out", folder.name)
        return None
    return QuerySet(
        name=folder.name,
        queries={query: queries[query] for query in sorted(qrels)},
        qrels=qrels,
        unit="segment" if passages else "document",
        corpus=passages,
    )


def _keep_known(judged: Qrels, known: set[str]) -> tuple[Qrels, int]:
    """The judgements on known ids, queries without any left out, and how many judgements went."""
    kept = {query: {item: grade for item, grade in rel.items() if item in known} for query, rel in judged.items()}
    unknown = sum(len(rel) for rel in judged.values()) - sum(len(rel) for rel in kept.values())
    return {query: rel for query, rel in kept.items() if rel}, unknown


def _read_passages(path: Path) -> Passages:
    rows = [(row, f"{title} {text}".strip() if title else text) for row, text, title in _read_texts(path)]
    return Passages(ids=tuple(row for row, _ in rows), texts=tuple(text for _, text in rows))


def _read_texts(path: Path) -> Iterator[tuple[str, str, str]]:
    """Id, text and title of every line of a BEIR JSONL file."""
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise _malformed(path, number, f"not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not isinstance(row.get("_id"), str) or not isinstance(row.get("text"), str):
            raise _malformed(path, number, "expected an object with the strings _id and text")
        if row["_id"] in seen:
            raise _malformed(path, number, f"_id {row['_id']!r} occurs twice")
        seen.add(row["_id"])
        title = row.get("title") or ""
        if not isinstance(title, str):
            raise _malformed(path, number, f"title is {title!r}, expected a string")
        yield row["_id"], row["text"], title


def _read_qrels(path: Path, queries: dict[str, str]) -> Qrels:
    """Judgements of grade 1 and more; lower ones say that a document does not answer."""
    qrels: Qrels = {}
    for number, line in _lines(path):
        parts = line.rstrip("\r\n").split("\t")
        if number == 1 and parts[0].strip().lower() in {"query-id", "query_id", "qid"}:
            continue
        if len(parts) != _QRELS_COLUMNS:
            raise _malformed(path, number, f"expected query-id, corpus-id and score, got {len(parts)} columns")
        query, item, score = (part.strip() for part in parts)
        try:
            grade = int(score)
        except ValueError as error:
            raise _malformed(path, number, f"score {score!r} is not a whole number") from error
        if query not in queries:
            raise _malformed(path, number, f"query {query!r} is not in queries.jsonl")
        if grade > 0:
            qrels.setdefault(query, {})[item] = grade
    return qrels


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise EvaluationError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 at byte {error.start}"
        raise EvaluationError(message) from error


def _malformed(path: Path, line: int, problem: str) -> EvaluationError:
    return EvaluationError(f"{path}, line {line}: {problem}")
