"""A file's bytes to its kept text and blocks, by the parser of its format.

Runs in the process of :mod:`.conversion`, within its limits; a parser is loaded with the first file that needs it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from embed_pipeline.corpus.decoding import decode, without_data
from embed_pipeline.corpus.front_matter import split_front_matter, title_of
from embed_pipeline.text.blocks import Reading, first_heading
from embed_pipeline.text.markdown import markdown_blocks, seen_markdown

_PART_OF_TIME = 0.8
# What East Asian keyboards write after the mark of a heading.
_WIDE_SPACE = re.compile(r"^(#{1,6})\u3000", re.MULTILINE)


class UnreadableError(Exception):
    """A file that no text can be had from; ``reason`` is that of table ``rejected_documents``."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Limits:
    """What reading one file may take, and what is asked of it; the fields are those of settings ``corpus``."""

    max_unpacked_bytes: int
    conversion_megabytes: int
    conversion_seconds: float
    word_comments: bool


def read_markdown(text: str) -> Reading:
    """Markdown without its metadata, comments and badges; the title is that of the metadata, or the first heading."""
    metadata, body = split_front_matter(text)
    body = _WIDE_SPACE.sub(r"\1 ", without_data(body))
    kept, blocks = seen_markdown(body)
    return Reading(title_of(metadata) or first_heading(blocks), kept, blocks)


def read_plain(text: str) -> Reading:
    """Plain text as it is; what CommonMark takes for a heading in it is one to a reader too."""
    text = without_data(text)
    blocks = markdown_blocks(text)
    return Reading(first_heading(blocks), text, blocks)


def _markdown(content: bytes, _: Limits) -> Reading:
    return read_markdown(decode(content))


def _plain(content: bytes, _: Limits) -> Reading:
    return read_plain(decode(content))


def _restructured(content: bytes, _: Limits) -> Reading:
    from embed_pipeline.corpus.restructured import read_restructured

    return read_restructured(without_data(decode(content)))


def _html(content: bytes, _: Limits) -> Reading:
    from embed_pipeline.corpus.pages import read_html

    return read_html(decode(content, is_html=True))


def _notebook(content: bytes, _: Limits) -> Reading:
    from embed_pipeline.corpus.notebooks import read_notebook

    return read_notebook(decode(content))


def _csv(content: bytes, _: Limits) -> Reading:
    from embed_pipeline.corpus.rows import read_csv

    return read_csv(decode(content))


def _json_lines(content: bytes, _: Limits) -> Reading:
    from embed_pipeline.corpus.rows import read_json_lines

    return read_json_lines(decode(content))


def _pdf(content: bytes, limits: Limits) -> Reading:
    from embed_pipeline.corpus.pdf import read_pdf

    return read_pdf(content, _PART_OF_TIME * limits.conversion_seconds)


def _word(content: bytes, limits: Limits) -> Reading:
    from embed_pipeline.corpus.office import read_word

    return read_word(content, limits.max_unpacked_bytes, comments=limits.word_comments)


def _slides(content: bytes, limits: Limits) -> Reading:
    from embed_pipeline.corpus.office import read_slides

    return read_slides(content, limits.max_unpacked_bytes)


Reader = Callable[[bytes, Limits], Reading]

READERS: dict[str, Reader] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".mdx": _markdown,
    ".txt": _plain,
    ".rst": _restructured,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".ipynb": _notebook,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".pdf": _pdf,
    ".docx": _word,
    ".pptx": _slides,
}
"""The reader of every file name ending; those of settings ``corpus.suffixes`` are among them."""


def load_parser(suffix: str) -> None:
    """Load what the reader of an ending needs, so that its size counts for no file."""
    from importlib import import_module

    modules: dict[Reader, str] = {
        _restructured: "restructured",
        _html: "pages",
        _notebook: "notebooks",
        _csv: "rows",
        _json_lines: "rows",
        _pdf: "pdf",
        _word: "office",
        _slides: "office",
    }
    if READERS[suffix] in modules:
        import_module(f"embed_pipeline.corpus.{modules[READERS[suffix]]}")


def read_file(suffix: str, content: bytes, limits: Limits) -> Reading:
    """What the reader of an ending makes of a file.

    Raises:
        UnreadableError: it is not what its ending says, damaged, protected, or too large.
    """
    try:
        return READERS[suffix](content, limits)
    except ValueError as error:
        reason = "too_large" if type(error).__name__ == "UnpackedSizeError" else "not_text"
        raise UnreadableError(reason, str(error)[:500]) from error
    except zipfile.BadZipFile as error:
        raise UnreadableError("not_text", f"it is no {suffix} file: {error}") from error
    except RecursionError as error:
        raise UnreadableError("not_text", "it is nested too deeply") from error
