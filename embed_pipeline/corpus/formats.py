"""A file's bytes to its kept text and blocks, by the parser of its format.

Runs in the process of :mod:`.conversion`, within its limits; a parser is loaded with the first file that needs it.
"""

from __future__ import annotations

import json
import re
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from embed_pipeline.corpus.decoding import decode, is_utf8, without_data
from embed_pipeline.text.blocks import Draft, ParsedDocument, clean_text, first_heading
from embed_pipeline.text.markdown import html_title, markdown_blocks, plain_line_ends, plain_title, seen_markdown

_METADATA_MARKS = {"---": ("---", "..."), "+++": ("+++",)}
_MOST_METADATA = 64_000
# What MultiMarkdown, Pandoc and the generators of sites name in their metadata.
_METADATA_KEYS = frozenset((
    "affiliation", "aliases", "author", "authors", "baseheaderlevel", "bibliography", "categories", "category",
    "comments", "copyright", "created", "css", "date", "description", "draft", "email", "excerpt", "featured", "globs",
    "hidden", "id", "image", "jupytext", "kernelspec", "keywords", "lang", "language", "lastmod", "layout", "license",
    "marp", "menu", "modified", "nav", "order", "orphan", "output", "owner", "paginate", "parent", "permalink",
    "published", "revision", "saveas", "series", "sidebar", "sidebarlabel", "sidebarposition", "slug", "status",
    "subject", "subtitle", "summary", "tag", "tags", "template", "theme", "title", "toc", "translation", "type",
    "updated", "url", "uuid", "version", "weight",
))  # fmt: skip
_PROGRAM_NAME = re.compile(r"[a-z_][\w.-]*")
_SENTENCE = re.compile(r"\S+\s.*[.!?]", re.DOTALL)
_LONGEST_VALUE_WORDS = 4
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


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The metadata that a text starts with, and the rest.

    YAML between ``---``, TOML between ``+++``, Hugo's JSON object, MultiMarkdown's lines from ``Title:`` on, or
    Pandoc's lines that begin with ``%``. What stands between the marks and is no mapping is text: a rule, or a heading
    that is underlined. So is a mapping of sentences under names that no metadata has. A mapping that its library cannot
    read, as templates leave it, is metadata all the same; of it only plain ``key: value`` lines count.
    """
    lines = text[:_MOST_METADATA].split("\n")
    mark = lines[0].rstrip()
    if mark not in _METADATA_MARKS:
        return _json(text) or _unmarked(lines, text) or ({}, text)
    ends = _METADATA_MARKS.get(mark, ())
    close = next((number for number, line in enumerate(lines[1:], start=1) if line.rstrip() in ends), 0)
    if not close:
        return {}, text
    inner = lines[1:close]
    values = _toml(inner) if mark == "+++" else _yaml(inner)
    is_apart = inner and not inner[0].strip()
    if values is None or (not any(map(_is_known, values)) and (is_apart or _is_prose(values))):
        return {}, text
    rest = text[sum(len(line) + 1 for line in lines[: close + 1]) :]
    return values, rest.lstrip("\n")


def _json(text: str) -> tuple[dict[str, Any], str] | None:
    """An object with a title and the text after it."""
    if not text.startswith("{"):
        return None
    try:
        found, end = json.JSONDecoder().raw_decode(text[:_MOST_METADATA])
    except (ValueError, RecursionError):
        return None
    is_alone = text[end : end + 1] in {"", "\n"}
    return (found, text[end:].lstrip("\n")) if isinstance(found, dict) and "title" in found and is_alone else None


def _unmarked(lines: list[str], text: str) -> tuple[dict[str, Any], str] | None:
    """Metadata that no mark encloses: it ends with the first lines."""
    if lines[0].startswith("% "):
        size = next((number for number, line in enumerate(lines) if not line.startswith(("%", " "))), len(lines))
        found: dict[str, Any] | None = {"title": " ".join(part.strip("% ") for part in _titled(lines[:size]))}
    else:
        size = next((number for number, line in enumerate(lines) if not line.strip()), len(lines))
        is_titled = size > 1 and lines[0].lower().startswith("title:")
        pairs = _plain_pairs(lines[:size], ":") if is_titled else None
        found = {name.lower(): value for name, value in pairs.items()} if pairs else None
        if found and (not any(map(str.strip, lines[size:])) or not _looks_like_metadata(found)):
            return None
    rest = text[sum(len(line) + 1 for line in lines[:size]) :]
    return (found, rest.lstrip("\n")) if found else None


def _looks_like_metadata(pairs: dict[str, Any]) -> bool:
    """True where a name besides the title's is one of metadata, and what is under all others is short."""
    others = [str(value) for name, value in pairs.items() if not _is_known(name)]
    is_short = all(len(value.split()) <= _LONGEST_VALUE_WORDS and value[-1:] not in ".!?" for value in others)
    return is_short and any(_is_known(name) for name in pairs if name != "title")


def _is_known(name: object) -> bool:
    return str(name).lower().replace("-", "").replace("_", "") in _METADATA_KEYS


def _is_prose(pairs: dict[str, Any]) -> bool:
    """True where a name is not written as one of a program, or a value is a sentence or long."""
    if not all(_PROGRAM_NAME.fullmatch(str(name)) for name in pairs):
        return True
    words = [value.strip() for value in pairs.values() if isinstance(value, str)]
    return any(_SENTENCE.fullmatch(value) or len(value.split()) > _LONGEST_VALUE_WORDS for value in words)


def _titled(lines: list[str]) -> list[str]:
    """The first of Pandoc's lines, with the indented ones that continue it."""
    size = next((number for number, line in enumerate(lines) if number and line.startswith("%")), len(lines))
    return lines[:size]


def title_of(metadata: dict[str, Any]) -> str:
    """The title in it, on one line; empty where there is none."""
    title = metadata.get("title", "")
    return plain_title(str(title)) if isinstance(title, str | int | float) and not isinstance(title, bool) else ""


def _toml(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return _damaged(lines, "=")


def _yaml(lines: list[str]) -> dict[str, Any] | None:
    import yaml

    try:
        # Without its tags and numbers: a title of 2024-01-01 or 1.10 stays as it was written.
        found = yaml.BaseLoader("\n".join(lines)).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError):
        return _damaged(lines, ":")
    if found in (None, ""):
        return {} if _damaged([line.lstrip("# ") for line in lines], ":") else None
    return found if isinstance(found, dict) else None


def _damaged(lines: list[str], separator: str) -> dict[str, Any] | None:
    """What of the lines is plain, where a name in it is one of metadata."""
    pairs = _plain_pairs(lines, separator)
    return pairs if pairs and any(map(_is_known, pairs)) else None


def _plain_pairs(lines: list[str], separator: str) -> dict[str, Any] | None:
    """Lines of ``key: value``, where every line at the margin is one, a list item, a bracket or a comment."""
    found: dict[str, Any] = {}
    for line in lines:
        if not line.strip() or line[0] in " \t#-[]{}":
            continue
        key, sign, value = line.partition(separator)
        if not sign or not key.strip().replace("-", "").replace("_", "").replace(".", "").isalnum():
            return None
        found.setdefault(key.strip(), value.strip().strip("\"'"))
    return found or None


def read_markdown(text: str, described: dict[str, Any] | None = None) -> ParsedDocument:
    """Markdown without its metadata, which may be known (``described``), comments and badges.

    The title is that of the metadata, or a first-level heading in HTML before all others, or the first heading.
    """
    metadata, body = split_front_matter(text) if described is None else (described, text)
    body = _WIDE_SPACE.sub(r"\1 ", without_data(body))
    kept, blocks = seen_markdown(body)
    return ParsedDocument(title_of(metadata) or html_title(kept, blocks) or first_heading(blocks), kept, blocks)


def read_plain(text: str) -> ParsedDocument:
    """Plain text as it is; what CommonMark takes for a heading in it is one to a reader too."""
    text = without_data(text)
    blocks = markdown_blocks(text)
    return ParsedDocument(first_heading(blocks), text, blocks)


def read_notebook(text: str) -> ParsedDocument:
    """Kept text and blocks; the title is that of its metadata, or the first heading.

    Notebooks of all versions of the format are read, and those that lack what is no text, as programs write them.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no notebook: {error}") from error
    cells = _cells(notebook)
    described = notebook["metadata"] if isinstance(notebook.get("metadata"), dict) else {}
    draft = Draft()
    title = title_of(described)
    language = _notebook_language(described)
    for kind, source in cells:
        if kind == "code":
            draft.add_code(source, language)
        else:
            metadata, kept = split_front_matter(source) if draft.is_empty else ({}, source)
            title, kept = title or title_of(metadata), without_data(kept)
            if kept.strip() and (kind != "raw" or not metadata):
                draft.add_parsed(kept, markdown_blocks(kept))
    read = draft.reading()
    return ParsedDocument(title or first_heading(read.blocks), read.text, read.blocks)


def _cells(notebook: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - any JSON
    """Kind and text of each cell; up to version 3 they are in worksheets, and their names are others."""
    sheets = notebook.get("worksheets") or [notebook] if isinstance(notebook, dict) else []
    lists = [sheet["cells"] for sheet in sheets if isinstance(sheet, dict) and isinstance(sheet.get("cells"), list)]
    if not lists:
        raise ValueError("it is no notebook: it has no list of cells")
    found = []
    for cell in (cell for cells in lists for cell in cells if isinstance(cell, dict)):
        source = next((cell[name] for name in ("source", "input", "code", "text") if cell.get(name)), "")
        parts = source if isinstance(source, list) else [source]
        text = clean_text(plain_line_ends("".join(part for part in parts if isinstance(part, str))))
        kind = str(cell.get("cell_type") or ("code" if "outputs" in cell else "markdown"))
        if kind == "heading":
            level = cell.get("level")
            text = f"{'#' * (min(max(level, 1), 6) if isinstance(level, int) else 1)} {' '.join(text.split())}"
        found.append((kind, text))
    return found


def _notebook_language(metadata: dict[str, Any]) -> str:
    """The language of a notebook's code: its kernel's, else the one that its files have."""
    for part, name in (("kernelspec", "language"), ("language_info", "name")):
        found = metadata.get(part)
        if isinstance(found, dict) and found.get(name):
            return str(found[name])
    return "python"


def _markdown(content: bytes, _: Limits) -> ParsedDocument:
    return read_markdown(decode(content))


def _mdx(content: bytes, _: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.mdx import without_code

    metadata, body = split_front_matter(decode(content))
    return read_markdown(without_code(body), metadata)


def _plain(content: bytes, _: Limits) -> ParsedDocument:
    return read_plain(decode(content))


def _restructured(content: bytes, _: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.restructured import read_restructured

    return read_restructured(without_data(decode(content)))


def _html(content: bytes, _: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.pages import read_html

    return read_html(decode(content, is_html=True))


def _notebook(content: bytes, _: Limits) -> ParsedDocument:
    return read_notebook(decode(content))


def _csv(content: bytes, _: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.rows import read_csv

    return read_csv(decode(content, is_rows=True))


def _json_lines(content: bytes, _: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.rows import read_json_lines

    return read_json_lines(decode(content, is_rows=True))


def _pdf(content: bytes, limits: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.pdf import read_pdf

    return read_pdf(content, _PART_OF_TIME * limits.conversion_seconds)


def _word(content: bytes, limits: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.office import read_word

    return read_word(content, limits.max_unpacked_bytes, comments=limits.word_comments)


def _slides(content: bytes, limits: Limits) -> ParsedDocument:
    from embed_pipeline.corpus.office import read_slides

    return read_slides(content, limits.max_unpacked_bytes)


Reader = Callable[[bytes, Limits], ParsedDocument]

READERS: dict[str, Reader] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".mdx": _mdx,
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
_PACKED = frozenset({_pdf, _word, _slides})


def load_parser(suffix: str) -> None:
    """Load what the reader of an ending needs, so that its size counts for no file."""
    from importlib import import_module

    modules: dict[Reader, str] = {
        _mdx: "mdx",
        _restructured: "restructured",
        _html: "pages",
        _csv: "rows",
        _json_lines: "rows",
        _pdf: "pdf",
        _word: "office",
        _slides: "office",
    }
    if READERS[suffix] in modules:
        import_module(f"embed_pipeline.corpus.{modules[READERS[suffix]]}")


def read_file(suffix: str, content: bytes, limits: Limits) -> ParsedDocument:
    """What the reader of an ending makes of a file.

    Raises:
        UnreadableError: it is not what its ending says, damaged, protected, or too large.
    """
    try:
        read = READERS[suffix](content, limits)
    except ValueError as error:
        reason = "too_large" if type(error).__name__ == "UnpackedSizeError" else "not_text"
        raise UnreadableError(reason, str(error)[:500]) from error
    except zipfile.BadZipFile as error:
        raise UnreadableError("not_text", f"it is no {suffix} file: {error}") from error
    except RecursionError as error:
        raise UnreadableError("not_text", "it is nested too deeply") from error
    damages = read.text.count("\ufffd")
    if not damages or READERS[suffix] in _PACKED or is_utf8(content):
        return read
    problem = f"bytes that are not of its encoding: {damages}, each U+FFFD in the text"
    return replace(read, left_out=(*read.left_out, problem))
