"""Slices by what the answering documents are like: how old, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import numpy as np
import polars as pl

from embed_pipeline.evaluation.query_sets import QuerySet

AGE, LENGTH = "document_age", "document_length"
_AGES = ("oldest third", "middle third", "newest third")
_LENGTHS = ("shortest third", "middle third", "longest third")
_THIRDS = 3


def with_document_slices(
    query_set: QuerySet, corpus: pl.DataFrame, modified: Mapping[str, datetime] | None = None
) -> QuerySet:
    """``query_set`` with slices by age and length of the documents that answer; thirds of the corpus's documents.

    A question with several answering documents is sliced by the newest, and by the longest, of them. A set that
    brings its own corpus is left as it is, and so is a slicing of documents that are all alike, as files of one
    checkout are of one age.

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
        found = {}
        for query, answers in query_set.qrels.items():
            known = [document_of[item] for item in answers if document_of.get(item) in thirds]
            if known:
                found[query] = thirds[max(known, key=values.__getitem__)]
        if len(set(found.values())) > 1:
            slices[dimension] = found
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
