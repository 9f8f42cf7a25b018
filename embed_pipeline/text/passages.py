"""The text of a passage: a segment's text, and before it what the segment lacks, as ``embedding.context`` says.

This is what is embedded wherever passages are: in round trips, mining, training, evaluation, exports, deployments and
the search page. Clients that embed passages of their own follow the same rule, which docs/operations.md states.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from embed_pipeline.enumerations import Context

if TYPE_CHECKING:
    # An endpoint reads the rule but loads no dataframes.
    import polars as pl

PATH_SEPARATOR = " > "
"""What joins the headings of a heading path."""
SEPARATOR = "\n\n"
"""What stands between context and text."""
MOST_CHARACTERS = 120
"""A longer context is shortened."""


def passage_texts(segments: pl.DataFrame, context: Context) -> list[str]:
    """The text of each segment as it is embedded, in order.

    Args:
        segments: frame with the columns title, heading_path and text; of the first two only what ``context`` needs.
        context: ``embedding.context``.
    """
    if context == "none":
        return segments["text"].to_list()
    rows = segments.select("title", "heading_path", "text").iter_rows()
    return [with_context(context_of(title, path, context), text) for title, path, text in rows]


def with_titles(segments: pl.DataFrame, documents: pl.DataFrame) -> pl.DataFrame:
    """Segments with the column title, that of their document in the frame ``documents``."""
    titles = documents.select("document_id", "title").unique("document_id", keep="first", maintain_order=True)
    return segments.join(titles, on="document_id", how="left", maintain_order="left")


def passages_by_id(segments: pl.DataFrame, context: Context) -> dict[str, str]:
    """Segment id to the text that is embedded; arguments as of :func:`passage_texts`, and the column segment_id."""
    return dict(zip(segments["segment_id"], passage_texts(segments, context), strict=True))


def batch_of_passages(passages: Iterable[str], batches: Iterable[str | None]) -> dict[int, str]:
    """The hash of each text that is embedded to the document batch that it came with.

    Of several batches it is the first; a label set's is empty. The texts themselves would be a second corpus in memory.
    Two with one hash, in 64 bits, would share a batch, which decides where vectors are stored and no more.

    Args:
        passages: the text of each segment as it is embedded.
        batches: the batch of each segment, the column of the corpus.
    """
    found: dict[int, str] = {}
    for text, batch in zip(passages, batches, strict=True):
        found.setdefault(hash(text), batch or "")
    return found


def with_context(context: str, text: str) -> str:
    """The text after its context; where there is none, as it is."""
    return f"{context}{SEPARATOR}{text}" if context else text


def context_of(title: str, heading_path: str, context: Context) -> str:
    """What is put before a segment's text; empty: nothing.

    ``title`` is the document's title. ``path`` is the title and the headings above the segment, the title once where it
    is the first heading too. Of a path that is too long the headings after the title are left out, the outermost first;
    what is still too long is cut after a word.
    """
    if context == "none":
        return ""
    parts = [title] if title else []
    if context == "path":
        headings = heading_path.split(PATH_SEPARATOR) if heading_path else []
        parts += headings[1:] if headings[:1] == parts else headings
    while len(parts) > 2 and len(PATH_SEPARATOR.join(parts)) > MOST_CHARACTERS:  # noqa: PLR2004 - title and last heading
        del parts[1]
    whole = PATH_SEPARATOR.join(parts)
    if len(whole) <= MOST_CHARACTERS:
        return whole
    cut = whole[: MOST_CHARACTERS + 1]
    return (cut.rpartition(" ")[0].rstrip() or cut[:MOST_CHARACTERS]) if " " in cut else cut[:MOST_CHARACTERS]
