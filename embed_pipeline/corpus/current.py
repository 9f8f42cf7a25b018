"""The present corpus: the newest version of every document that is still there."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.settings import Corpus
from embed_pipeline.text.shingles import find_copies


def current_corpus(
    documents: Mapping[str, pl.DataFrame], segments: Mapping[str, pl.DataFrame], corpus: Corpus
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Segments of the newest version of every present document, each text once.

    A path's newest row (batches in name order) decides: a tombstone removes it. Documents of the same text
    under several paths are one, the first path's. Of near-duplicates the one of the earliest batch stays, so that a
    new copy does not take the place of what questions were written about already.

    Of mappings that read a batch when it is asked for, one batch is in memory at a time, next to the result.

    Args:
        documents: frame of :data:`tables.DOCUMENTS` for each batch.
        segments: frame of :data:`tables.SEGMENTS` for each batch.
        corpus: ``near_duplicates``: the resemblance from which on a document is left out.

    Returns:
        Frames of :data:`tables.CORPUS`, sorted by path and position, and :data:`tables.LEFT_OUT_DOCUMENTS`.

    Raises:
        CorpusError: no document is present, or the segments of one are missing.
    """
    newest = present_documents(documents)
    if newest.is_empty():
        message = f"no usable document in any of {len(documents)} batches; see the table rejected_documents"
        raise CorpusError(message)
    distinct = newest.unique("document_id", keep="first", maintain_order=True)
    copies = _copies(newest, distinct, documents, corpus)
    present = distinct.join(copies, on="path", how="anti")
    pieces = _present_segments(present, segments)
    uncut = present.join(pieces, on=["document_id", "batch"], how="anti")
    if uncut.height:
        message = f"{uncut.height} documents have no segments, first {uncut['path'][0]} of batch {uncut['batch'][0]}"
        raise CorpusError(message)
    frame = pieces.sort("path", "position").with_columns(label_set=pl.lit(None, pl.String))
    return tables.validate(frame.select(tables.CORPUS.schema.names()), tables.CORPUS), copies


def _present_segments(present: pl.DataFrame, segments: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The segments of the documents in ``present``, with their path and title, batch by batch."""
    named = ("document_id", "batch")
    columns = [name for name in tables.CORPUS.schema if name in tables.SEGMENTS.schema]
    pieces = [tables.SEGMENTS.empty().select(columns).join(present.clear(), on=named)]
    for batch in sorted(segments):
        pieces.append(segments[batch].select(columns).join(present.filter(batch=batch), on=named))  # noqa: PERF401 - one batch at a time
    return pl.concat(pieces)


def unknown_words(corpus: pl.DataFrame, segments: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Tokens of each document of the corpus, and those that stand for words which the encoder does not know.

    Returns:
        Frame (path, token_count, unknown_tokens), the largest count of unknown tokens first.
    """
    columns = ("segment_id", "token_count", "unknown_tokens")
    pieces = pl.concat(frame.select(columns) for frame in (tables.SEGMENTS.empty(), *segments.values()))
    found = corpus.select("segment_id", "path").join(pieces, on="segment_id")
    counts = found.group_by("path").agg(pl.col("token_count", "unknown_tokens").sum())
    return counts.sort("unknown_tokens", "path", descending=[True, False])


def lost_titles(corpus: pl.DataFrame) -> int:
    """Documents whose title is in none of their segments or headings, so that nothing of it is embedded.

    Titles that are the file's name count for none, nor do passages of labels.
    """
    title = pl.col("title").str.to_lowercase()
    stem = pl.col("path").str.split("/").list.last().str.replace(r"\.[^.]*$", "").str.to_lowercase()
    left = corpus.filter(pl.col("label_set").is_null() & (title != stem) & (title != ""))
    # Headings say most titles, so few texts are copied to be searched.
    for column in ("heading_path", "text"):
        said = left.filter(pl.col(column).str.to_lowercase().str.contains(title, literal=True))
        left = left.join(said, on="document_id", how="anti")
    return left["document_id"].n_unique()


def present_documents(documents: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The newest row of every path that is still there: document_id, path, title and batch, sorted by path."""
    columns = ("document_id", "path", "title", "batch", "deleted")
    frames = [tables.DOCUMENTS.empty().select(columns)]
    frames += [documents[batch].select(columns) for batch in sorted(documents)]
    newest = pl.concat(frames).unique("path", keep="last")
    return newest.filter(~pl.col("deleted")).drop("deleted").sort("path")


class _TextsOfBatches:
    """Texts of documents, of which one batch is in memory at a time."""

    def __init__(self, found: pl.DataFrame, documents: Mapping[str, pl.DataFrame]) -> None:
        """Take document_id and batch (as ``since``) of each, and the batches."""
        self._ids, self._batches = found["document_id"], found["since"]
        self._documents = documents
        self._batch, self._texts = "", dict[str, str]()

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self._ids)

    def __getitem__(self, index: int) -> str:
        """One text."""
        if self._batches[index] != self._batch:
            self._batch = self._batches[index]
            self._texts = dict(self._documents[self._batch].select("document_id", "text").iter_rows())
        return self._texts[self._ids[index]]


def _copies(
    newest: pl.DataFrame, distinct: pl.DataFrame, documents: Mapping[str, pl.DataFrame], corpus: Corpus
) -> pl.DataFrame:
    """Frame of :data:`tables.LEFT_OUT_DOCUMENTS`."""
    first_seen = newest.group_by("document_id").agg(pl.col("batch").min().alias("since"))
    ordered = distinct.select("document_id", "path").join(first_seen, on="document_id").sort("since", "path")
    paths, ids = ordered["path"].to_list(), ordered["document_id"].to_list()
    near = find_copies(_TextsOfBatches(ordered, documents), bound) if (bound := corpus.near_duplicates) != "off" else {}
    first = {ids[index]: paths[near[index][0] if index in near else index] for index in range(len(ids))}
    alike = {paths[index]: share for index, (_, share) in near.items()}
    rows = [
        {
            **row,
            "reason": "near_duplicate" if row["path"] in alike else "duplicate",
            "duplicate_of": first[row["document_id"]],
            "resemblance": alike.get(row["path"], 1.0),
        }
        for row in newest.select("path", "document_id", "batch").iter_rows(named=True)
        if first[row["document_id"]] != row["path"]
    ]
    return tables.LEFT_OUT_DOCUMENTS.frame(rows)
