"""Questions with known answers: held-out generated questions, labelled questions in BEIR folders, and slices."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from embed_pipeline.beir import read_beir
from embed_pipeline.document_paths import DocumentPaths

logger = logging.getLogger(__name__)
Unit = Literal["segment", "document"]
Qrels = dict[str, dict[str, int]]
GENERATED = "generated"
SLICES = ("hop_count", "query_type", "reasoning_type")
AGE, LENGTH = "document_age", "document_length"
_AGES = ("oldest third", "middle third", "newest third")
_LENGTHS = ("shortest third", "middle third", "longest third")
_THIRDS = 3


class EvaluationError(ValueError):
    """There is nothing to evaluate, or query sets and passages do not fit each other."""


@dataclass(frozen=True)
class Passages:
    """What is searched, in one order.

    Attributes:
        ids: ids of the passages.
        texts: their texts as they are searched.
        said: their texts without context, by which copies are known; empty: ``texts``.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    said: tuple[str, ...] = ()


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
        itself: query id to the passage that is the query itself, where one is: it is not ranked for that query.
        copies: item to the judged item whose text it repeats: finding one of them is finding both.
    """

    name: str
    queries: dict[str, str]
    qrels: Qrels
    unit: Unit = "segment"
    slices: dict[str, dict[str, str]] = field(default_factory=dict)
    corpus: Passages | None = None
    itself: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)

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
    return _of_pairs(GENERATED if side == "test" else side, qa.join(chosen, on="qa_id", how="semi").sort("qa_id"))


def sampled_set(qa: pl.DataFrame, most: int = 2_000) -> QuerySet:
    """At most ``most`` questions of ``qa_dataset``, the first by id, which is a hash; from every side of the split.

    They are for comparing two forms of one model, of which neither has seen more than the other: by a hundred test
    questions alone, changes of nDCG@10 of 0.005 are told from none no better than by chance.
    """
    return _of_pairs("sampled", qa.sort("qa_id").head(most))


def _of_pairs(name: str, pairs: pl.DataFrame) -> QuerySet:
    rows = pairs.to_dicts()
    return QuerySet(
        name=name,
        queries={row["qa_id"]: row["question"] for row in rows},
        qrels={row["qa_id"]: dict.fromkeys(row["segment_ids"], 1) for row in rows},
        slices={
            dimension: {row["qa_id"]: str(row[dimension]) for row in rows if row[dimension] is not None}
            for dimension in SLICES
        },
    )


def known_sets(
    qa: pl.DataFrame, split: pl.DataFrame, corpus: pl.DataFrame, left_out: pl.DataFrame, folders: Sequence[Path]
) -> list[QuerySet]:
    """The generated test questions, and people's own sets that judge documents of the corpus.

    Args:
        qa: table ``qa_dataset``.
        split: table ``dataset_split``.
        corpus: table ``corpus``.
        left_out: table ``left_out_documents``.
        folders: ``evaluation.query_sets``.

    Raises:
        LabelsError: as :func:`labelled_set`.
    """
    own = (labelled_set(folder, corpus, left_out) for folder in folders)
    return [generated_set(qa, split, "test"), *(found for found in own if found is not None)]


def labelled_set(folder: Path, corpus: pl.DataFrame, left_out: pl.DataFrame | None = None) -> QuerySet | None:
    """The test questions of a BEIR folder (:mod:`embed_pipeline.beir`).

    Without ``corpus.jsonl`` the judged ids are paths of documents in ``corpus``, or of copies that it leaves out, whose
    judgements hold for the document that stayed; judgements on missing documents are left out and counted
    in the log.

    Args:
        folder: the BEIR folder; its name is the set's name.
        corpus: table ``corpus``.
        left_out: table ``left_out_documents``; None: nothing was left out.

    Returns:
        The set, or None (and a line in the log) where the folder is absent or judges no document of the corpus.

    Raises:
        LabelsError: naming the file that is missing, or the file and line that is malformed.
    """
    if not folder.is_dir():
        logger.warning("labelled queries: there is no folder %s; the set is left out", folder)
        return None
    found = read_beir(folder, ("test",))
    passages = None if found.passages is None else Passages(tuple(found.passages), tuple(found.passages.values()))
    documents = None if passages else DocumentPaths(corpus["path"].unique().to_list(), left_out)
    known = set(corpus["path"]) if found.passages is None else found.passages.keys()
    judged: Qrels = {}
    for query, judgements in found.judged["test"].items():
        grades = judged.setdefault(query, {})
        for item, grade in judgements.grades.items():
            if grade > 0:
                kept = (documents and documents.find(item)) or item
                grades[kept] = max(grade, grades.get(kept, grade))
    qrels, unknown = _judgements_on(known, judged)
    if unknown:
        first = next(item for rel in judged.values() for item in rel if item not in known)
        message = "labelled queries %s: %d judgements are on documents not in the corpus, first %r"
        logger.warning(message, folder.name, unknown, first)
    if not qrels:
        logger.warning("labelled queries %s: no judged document is in the corpus; the set is left out", folder.name)
        return None
    queries = {query: found.queries[query] for query in sorted(qrels)}
    itself = _passages_that_ask(queries, found.passages or {}, qrels)
    if itself:
        logger.info("labelled queries %s: %d are passages, which are not ranked for them", folder.name, len(itself))
    return QuerySet(
        name=folder.name,
        queries=queries,
        qrels=qrels,
        unit="segment" if passages else "document",
        corpus=passages,
        itself=itself,
    )


def _passages_that_ask(queries: Mapping[str, str], passages: Mapping[str, str], qrels: Qrels) -> dict[str, str]:
    """Query id to passage id of the queries that are passages of the set, as in ArguAna: of one id and one text.

    Ids alone prove nothing: sets often number queries and passages from 1. A passage's title may stand before the text.
    """
    found = {}
    for query, asked in queries.items():
        text, said = asked.strip(), passages.get(query, "")
        if said.endswith(text) and 2 * len(text) >= len(said) and query not in qrels[query]:
            found[query] = query
    return found


def _judgements_on(known: AbstractSet[str], judged: Qrels) -> tuple[Qrels, int]:
    """The judgements on known ids, without queries that have none left, and how many judgements were dropped."""
    on_known = {query: {item: grade for item, grade in rel.items() if item in known} for query, rel in judged.items()}
    unknown = sum(len(rel) for rel in judged.values()) - sum(len(rel) for rel in on_known.values())
    return {query: rel for query, rel in on_known.items() if rel}, unknown


def with_document_slices(
    query_set: QuerySet, corpus: pl.DataFrame, modified: Mapping[str, datetime] | None = None
) -> QuerySet:
    """``query_set`` with slices by age and by length of the answering documents, in thirds of the corpus's documents.

    A question with several answering documents is sliced by the newest, and by the longest, of them. A set with a
    corpus of its own gets no slices, and a dimension with a single slice is left out, such as the age of documents
    that were all checked out at once.

    Args:
        query_set: a set answered by segments or documents of ``corpus``.
        corpus: table ``corpus``.
        modified: document id to the modification time of its file; None: not known.
    """
    if query_set.corpus is not None:
        return query_set
    key = "path" if query_set.unit == "document" else "segment_id"
    document_of = dict(corpus.select(key, "document_id").unique().iter_rows())
    lengths = dict(corpus.group_by("document_id").agg(pl.col("token_count").sum()).iter_rows())
    files = modified or {}
    times = {document: files[document].timestamp() for document in lengths if document in files}
    slices = dict(query_set.slices)
    for dimension, values, names in ((AGE, times, _AGES), (LENGTH, lengths, _LENGTHS)):
        thirds = _thirds(values, names)
        third_of = {}
        for query, answers in query_set.qrels.items():
            known = [document_of[item] for item in answers if document_of.get(item) in thirds]
            if known:
                third_of[query] = thirds[max(known, key=values.__getitem__)]
        if len(set(third_of.values())) > 1:
            slices[dimension] = third_of
    return replace(query_set, slices=slices)


def modification_times(documents: Mapping[str, pl.DataFrame]) -> dict[str, datetime]:
    """Document id to the modification time of its file, the latest where several files hold the same.

    Args:
        documents: batch to its table ``documents``.
    """
    times: dict[str, datetime] = {}
    for batch in sorted(documents):
        for document, time in (
            documents[batch].filter(~pl.col("deleted")).select("document_id", "modified_at").iter_rows()
        ):
            times[document] = max(time, times.get(document, time))
    return times


def _thirds(values: Mapping[str, float], names: tuple[str, ...]) -> dict[str, str]:
    """Each document's third of the range of ranks; documents of equal value are in one third."""
    if len(set(values.values())) < _THIRDS:
        return {}
    bounds = np.quantile(list(values.values()), [1 / _THIRDS, 2 / _THIRDS], method="lower")
    return {document: names[int(np.searchsorted(bounds, value))] for document, value in values.items()}
