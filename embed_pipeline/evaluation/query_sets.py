"""Questions with known answers: the held-out generated ones, and the user's own in BEIR folders."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import polars as pl

from embed_pipeline.beir import read_beir

logger = logging.getLogger(__name__)

Unit = Literal["segment", "document"]
Qrels = dict[str, dict[str, int]]

GENERATED = "generated"
SLICES = ("hop_count", "query_type", "reasoning_type")


class EvaluationError(ValueError):
    """There is nothing to evaluate, or query sets and passages do not fit each other."""


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
        slices={
            dimension: {row["qa_id"]: str(row[dimension]) for row in rows if row[dimension] is not None}
            for dimension in SLICES
        },
    )


def labelled_set(folder: Path, corpus: pl.DataFrame) -> QuerySet | None:
    """The test questions of a BEIR folder (:mod:`embed_pipeline.beir`).

    Without ``corpus.jsonl`` the judged ids are paths of documents in ``corpus``; judgements on documents that are not
    there are left out and counted in the log.

    Args:
        folder: the BEIR folder; its name is the set's name.
        corpus: table ``corpus``.

    Returns:
        The set, or None (and a line in the log) where the folder is absent or judges no document of the corpus.

    Raises:
        LabelsError: naming the file that is missing, or the file and line that is malformed.
    """
    if not folder.is_dir():
        logger.warning("labelled queries: no folder %s; left out", folder)
        return None
    found = read_beir(folder, ("test",))
    passages = None if found.passages is None else Passages(tuple(found.passages), tuple(found.passages.values()))
    known = set(corpus["path"].unique().to_list()) if found.passages is None else found.passages.keys()
    judged = {
        query: {item: grade for item, grade in judgements.grades.items() if grade > 0}
        for query, judgements in found.judged["test"].items()
    }
    qrels, unknown = _keep_known(judged, known)
    if unknown:
        logger.warning("labelled queries %s: %d judgements are on documents not in the corpus", folder.name, unknown)
    if not qrels:
        logger.warning("labelled queries %s: no judged document is in the corpus; left out", folder.name)
        return None
    return QuerySet(
        name=folder.name,
        queries={query: found.queries[query] for query in sorted(qrels)},
        qrels=qrels,
        unit="segment" if passages else "document",
        corpus=passages,
    )


def _keep_known(judged: Qrels, known: AbstractSet[str]) -> tuple[Qrels, int]:
    """The judgements on known ids, queries without any left out, and how many judgements went."""
    kept = {query: {item: grade for item, grade in rel.items() if item in known} for query, rel in judged.items()}
    unknown = sum(len(rel) for rel in judged.values()) - sum(len(rel) for rel in kept.values())
    return {query: rel for query, rel in kept.items() if rel}, unknown
