"""The present corpus: the newest version of every document that is still there."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.files import CorpusError


def current_corpus(documents: Mapping[str, pl.DataFrame], segments: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Segments of the newest version of every present document.

    A path's newest row (batches in name order) decides: a tombstone removes it. Documents of the same text
    under several paths are one, the first path's.

    Args:
        documents: frame of :data:`tables.DOCUMENTS` for each batch.
        segments: frame of :data:`tables.SEGMENTS` for each batch.

    Returns:
        Frame of :data:`tables.CORPUS`, sorted by path and position.

    Raises:
        CorpusError: no document is present, or the segments of one are missing.
    """
    ordered = [documents[batch] for batch in sorted(documents)]
    everything = pl.concat(ordered) if ordered else tables.DOCUMENTS.empty()
    newest = everything.unique("path", keep="last", maintain_order=True).filter(~pl.col("deleted"))
    if newest.is_empty():
        message = f"no usable document in any of {len(documents)} batches; see the table rejected_documents"
        raise CorpusError(message)
    present = newest.sort("path").unique("document_id", keep="first", maintain_order=True)
    pieces = pl.concat([tables.SEGMENTS.empty(), *(segments[batch] for batch in sorted(segments))])
    uncut = present.join(pieces, on=["document_id", "batch"], how="anti")
    if uncut.height:
        message = f"{uncut.height} documents have no segments, first {uncut['path'][0]} of batch {uncut['batch'][0]}"
        raise CorpusError(message)
    joined = pieces.join(present.select("document_id", "batch", "path", "title"), on=["document_id", "batch"])
    return tables.validate(joined.select(tables.CORPUS.schema.names()).sort("path", "position"), tables.CORPUS)
