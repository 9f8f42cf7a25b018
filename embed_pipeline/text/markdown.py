"""Blocks of Markdown, by the CommonMark parser with tables and ``:::`` containers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import unescape
from itertools import accumulate, groupby, pairwise
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.container import container_plugin

from embed_pipeline.text.blocks import Block, Kind, clean_title, without_spans

_LINES_AT_ONCE = 4000
_MAX_TITLE = 2000
_LIST_ITEM = "list_item_open"
_QUOTE = "blockquote_open"
_LEAVES: dict[str, Kind] = {
    "paragraph_open": "paragraph",
    "html_block": "paragraph",
    "heading_open": "heading",
    "fence": "code",
    "code_block": "code",
    "table_open": "table",
}
_BREAKS = frozenset({"softbreak", "hardbreak"})
_TAG = re.compile(r"<[^<>]*>")
# Tags that titles are marked up with, those that part words in a group; in ``List<String>`` there is none.
_TITLE_TAG = re.compile(
    r"</?(?:(br|div|h[1-6]|li|ol|p|ul)|a|abbr|b|big|cite|code|del|em|font|i|img|ins|kbd|mark|q|s|small|span|strike|strong"
    r"|sub|sup|tt|u)(?:\s[^<>]{0,500}=[^<>]{0,500})?\s?/?>",
    re.IGNORECASE,
)
_TITLE_BREAK = re.compile(r"(?<! )<br\s?/?>|<br\s?/?>(?! )", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z][a-z\d]{1,31});", re.IGNORECASE)
# The parser's own.
_LINE_END = re.compile(r"\r\n?|\n")
_ATTRIBUTES = re.compile(r"\{(?:[#.:][^{}]*|-)\}")
# Tags of GitBook, Jekyll and Hugo, and what MDX imports and exports, alone on their line.
_IMPORTED = r"(?:[\w$]{1,80}|\*\sas\s[\w$]{1,80}|\{[^{}\n]{0,300}\})"
_GENERATOR_LINE = re.compile(
    r"\s*(?:(?:\{%-?\s*/?\w[^{}%\n]{0,500}%\}|\{\{[<%]\s*/?\s*\w[^{}\n]{0,500}[>%]\}\})\s*)+"
    rf"|import\s(?:{_IMPORTED}(?:,\s?{_IMPORTED})?\sfrom\s)?['\"][^'\"\n]{{1,300}}['\"];?\s*"
    r"|export\s(?:const|let|default|function)\b[^\n]{0,500}\s*"
)
# The name in an opening tag, and those in a closing one of Hugo and of GitBook.
_PAIRED_TAG = re.compile(
    r"\{(?:\{[<%]|%-?)\s*(?:(?!end)([\w-]{1,80})\b[^{}%\n]{0,300}?|/\s*([\w-]{1,80})\s*|end([\w-]{1,80})\s*)(?:[>%]\}|-?%)\}"
)
_UNTOLD_IMAGE_WORDS = 4
_EXPONENT = re.compile(r"[-+\u2212]?\w+(?:[.,]\w+)*")
# They read well without a mark.
_ORDINAL_ENDINGS = frozenset({"st", "nd", "rd", "th", "er", "re", "e", "o", "a"})
_TRADEMARKS = frozenset({"tm", "sm"})


def _named_container(parameters: str, *_: object) -> bool:
    return bool(parameters.strip())


_BLOCKS = MarkdownIt("commonmark").enable("table").use(container_plugin, "any", validate=_named_container)
_BLOCKS.core.ruler.enableOnly(["normalize", "block"])
_INLINE = MarkdownIt("commonmark")


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A block by lines: from ``first`` up to ``last``; ``lists`` counts the list that it belongs to, 0 for none."""

    kind: Kind
    first: int
    last: int
    lists: int = 0
    level: int = 0
    content: str = ""
    form: str = ""
    references: tuple[tuple[str, dict[str, Any]], ...] = ()


def markdown_blocks(text: str) -> tuple[Block, ...]:
    """The blocks of a text, in order.

    Headings are those of CommonMark. One inside of a quote belongs to the quote, as in HTML's outline; one inside of a
    list or a ``:::`` container is a heading.
    """
    return _placed(text, list(_leaves(text)))


def seen_markdown(text: str) -> tuple[str, tuple[Block, ...]]:
    """The text without what a reader sees no word of, and its blocks.

    These are comments, badges, pictures without a word, and lines that only tell a site's generator what to do.
    """
    leaves = list(_leaves(text))
    starts = _line_starts(text)
    spans = []
    for leaf in leaves:
        is_empty = leaf.form == "html_block" and _says_nothing(leaf.content)
        is_badge = leaf.form == "paragraph_open" and "![" in leaf.content and _shows_pictures(leaf.content)
        if not leaf.lists and (is_empty or is_badge):
            end = min(starts[leaf.last], len(text))
            while end < len(text) and text[end] in "\r\n":
                end += 1
            spans.append((starts[leaf.first], end))
        elif leaf.form == "paragraph_open":
            for line in range(leaf.first, leaf.last):
                spans += _generator_spans(text, starts[line], min(starts[line + 1], len(text)))
    blocks = _placed(text, leaves)
    return without_spans(text, blocks, spans) if spans else (text, blocks)


def _generator_spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """What of a line only tells a site's generator what to do: the line, or the tags around a text on it."""
    if "{" not in text[start:end] and text[start : start + 6] not in {"import", "export"}:
        return []
    if _GENERATOR_LINE.fullmatch(text, start, end):
        return [(start, end)]
    if "`" in text[start:end]:
        return []
    tags = list(_PAIRED_TAG.finditer(text, start, end))
    closed = {tag[2] or tag[3] for tag in tags if tag[2] or tag[3]}
    return [tag.span() for tag in tags if tag[2] or tag[3] or (tag[1] in closed)]


def html_title(text: str, blocks: Sequence[Block]) -> str:
    """A first-level heading that is written in HTML before all of Markdown's, of which none is first; else empty."""
    first = next((block for block in blocks if block.kind == "heading"), None)
    before = text[: first.start if first else len(text)].lower()
    start = before.find("<h1")
    end = before.find("</h1", start)
    inside = [block.kind for block in blocks if block.start <= start < block.end]
    if start < 0 or end < 0 or inside != ["paragraph"] or (first and first.level == 1):
        return ""
    return clean_title(unescape(_TAG.sub(" ", text[start:end] + ">").rstrip(">")))


def _line_starts(text: str) -> list[int]:
    if "\r" not in text:
        return [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
    return [0, *(end.end() for end in _LINE_END.finditer(text)), len(text) + 1]


def _placed(text: str, leaves: Sequence[_Leaf]) -> tuple[Block, ...]:
    """Leaves as blocks, in characters."""
    starts = _line_starts(text)
    found = []
    references = {label: place for leaf in reversed(leaves) for label, place in leaf.references}
    for leaf in _joined(leaves):
        title = plain_inline(leaf.content, references) if leaf.kind == "heading" else ""
        if leaf.kind != "heading" or title:
            end = min(starts[leaf.last], len(text))
            found.append(Block(leaf.kind, starts[leaf.first], end, leaf.level, title))
    return tuple(found)


def plain_inline(content: str, references: Mapping[str, dict[str, Any]] | None = None) -> str:
    """A line of Markdown as its readers see it: without marks, escapes, tags and ``{#attributes}``.

    Args:
        content: the line.
        references: definitions of links, by label, as the parser keeps them.
    """
    content = " ".join(content.split())[:_MAX_TITLE]
    open_brace = content.rfind("{")
    if open_brace > 0 and _ATTRIBUTES.fullmatch(content[open_brace:].strip()):
        content = content[:open_brace]
    tokens = _INLINE.parseInline(content.strip(), {"references": dict(references or {})})[0].children or []
    return clean_title("".join(_shown(tokens)))


def plain_title(title: str) -> str:
    """A title of data on one line, without HTML's tags and entities.

    Other marks may be what it is about, and so may tags that none of them ends.
    """
    words = _TITLE_BREAK.sub(" ", title)
    if "</" in words:
        words = _TITLE_TAG.sub(lambda tag: " " if tag[1] else "", words)
    return clean_title(_ENTITY.sub(lambda entity: unescape(entity[0]), words))


def plain_line_ends(text: str) -> str:
    """The text with each line ended by a line feed."""
    return _LINE_END.sub("\n", text) if "\r" in text else text


def superscript(before: str, text: str) -> str:
    """What is raised after a text, with ``^`` before it where it would change what the text says, as in ``10^6``."""
    raised, last = text.strip(), before[-1:]
    is_ending = raised.lower() in _TRADEMARKS or (last.isdigit() and raised.lower() in _ORDINAL_ENDINGS)
    if is_ending or not (last.isalnum() or last in {")", "]"}) or not _EXPONENT.match(raised):
        return text
    return f"^{raised}" if _EXPONENT.fullmatch(raised) else f"^({raised})"


def replace_headings(text: str, *, keep: bool) -> str:
    """The text with each heading as its words alone, or without headings."""
    return _replaced(text, keep)


@lru_cache(maxsize=4096)
def _replaced(text: str, keep: bool) -> str:  # noqa: FBT001 - a key of the cache
    headings = [block for block in markdown_blocks(text) if block.kind == "heading"]
    ends = [0, *(heading.end for heading in headings)]
    starts = [*(heading.start for heading in headings), len(text)]
    words = [*(f"{heading.text if keep else ''}\n" for heading in headings), ""]
    return "".join(text[end:start] + word for end, start, word in zip(ends, starts, words, strict=True))


def _shown(tokens: Sequence[Token]) -> Iterator[str]:
    for token in tokens:
        if token.type in _BREAKS or (token.type == "html_inline" and token.content.lower().startswith("<br")):
            yield " "
        elif token.type == "image":
            yield "".join(_shown(token.children or []))
        elif token.type != "html_inline":
            yield token.content


def _leaves(text: str) -> Iterator[_Leaf]:
    """The parts of a text that have lines of their own, in order."""
    found: list[_Leaf] = []
    inside: list[str] = []
    lists, heads = 0, -1
    for token, line in _tokens(text):
        if token.nesting < 0:
            if inside and token.type.removesuffix("_close") == inside[-1].removesuffix("_open"):
                inside.pop()
            continue
        if token.type in _LEAVES and token.map and (not inside or inside[-1] != "table_open"):
            kind: Kind = _LEAVES[token.type]
            in_list, in_quote = _LIST_ITEM in inside, _QUOTE in inside
            if in_quote and kind in {"paragraph", "heading"}:
                kind = "quote"
            elif in_list and kind == "paragraph":
                kind = "list"
            number = lists if in_list else 0
            level = int(token.tag[1]) if kind == "heading" else 0
            first, last = token.map[0] + line, token.map[1] + line
            found.append(_Leaf(kind, first, last, number, level, token.content, token.type))
            heads = len(found) - 1
        elif token.type == "inline" and heads >= 0 and inside and inside[-1] in {"heading_open", "paragraph_open"}:
            leaf = found[heads]
            found[heads] = _Leaf(leaf.kind, leaf.first, leaf.last, leaf.lists, leaf.level, token.content, leaf.form)
        elif token.type == "definition":
            first, last = token.map or [0, 0]
            found.append(_Leaf("metadata", first + line, last + line, references=tuple(token.meta.items())))
        if token.nesting > 0:
            lists += token.type == _LIST_ITEM and _LIST_ITEM not in inside and token.meta.get("first", False)
            inside.append(token.type)
    yield from sorted(found, key=lambda leaf: leaf.first)


def _tokens(text: str) -> Iterator[tuple[Token, int]]:
    """Block tokens, each with the line that its map counts from.

    A long text is parsed a few thousand lines at a time, so that its tokens never fill the memory: what the last block
    of a piece is shows only with the next piece, which starts with it.
    """
    lines = plain_line_ends(text).split("\n")
    start, size = 0, _LINES_AT_ONCE
    while start < len(lines):
        environment: dict[str, Any] = {}
        piece = lines[start : start + size]
        tokens = _BLOCKS.parse("\n".join(piece), environment)
        rest = start + size < len(lines)
        opens = [number for number, token in enumerate(tokens) if token.level == 0 and token.nesting >= 0]
        cut = opens[-1] if rest and opens else len(tokens)
        done = (tokens[cut].map or [0])[0] if cut < len(tokens) else (0 if rest else len(piece))
        if rest and not done:
            size *= 2
            continue
        _mark_first_items(tokens[:cut])
        for definition in _definitions(environment):
            if (definition.map or [0, 0])[1] <= done:
                yield definition, start
        for token in tokens[:cut]:
            yield token, start
        start, size = start + done, _LINES_AT_ONCE


def _mark_first_items(tokens: Sequence[Token]) -> None:
    """Note which items are the first of a list that is in no other."""
    for before, token in pairwise(tokens):
        if token.type == _LIST_ITEM:
            token.meta["first"] = before.type in {"bullet_list_open", "ordered_list_open"}


def _definitions(environment: dict[str, Any]) -> Iterator[Token]:
    """Definitions of links, which the parser keeps apart from its tokens."""
    for label, reference in environment.get("references", {}).items():
        yield Token("definition", "", 0, map=list(reference["map"]), meta={label: reference})
    for reference in environment.get("duplicate_refs", ()):
        yield Token("definition", "", 0, map=list(reference["map"]))


def _joined(leaves: Iterable[_Leaf]) -> Iterator[_Leaf]:
    """Paragraphs of one list as one block, and those of one quote; what stands between them parts it."""
    for (kind, number), group in groupby(leaves, key=lambda leaf: (leaf.kind, leaf.lists)):
        members = list(group)
        if kind == "list" or (kind == "quote" and number):
            yield _Leaf(kind, members[0].first, members[-1].last, number)
        else:
            yield from members


def _says_nothing(html: str) -> bool:
    """True where tags and comments are all there is."""
    pieces, place = [], 0
    while (start := html.find("<!--", place)) >= 0:
        pieces.append(html[place:start])
        end = html.find("-->", start)
        place = end + 3 if end >= 0 else len(html)
    shown = "".join([*pieces, html[place:]]).strip()
    unseen = next((name for name in ("style", "script") if shown[: len(name) + 1].lower() == f"<{name}"), "")
    if unseen and shown.endswith(">") and shown.lower().find(f"</{unseen}") == shown.rfind("<"):
        return True
    return not _TAG.sub("", shown).strip() and not any(mark in shown for mark in ("alt=", "title=", "{"))


def _shows_pictures(content: str) -> bool:
    """True where a paragraph is pictures and nothing else, each in a link or hardly described."""
    children = _INLINE.parseInline(content[: 5 * _MAX_TITLE])[0].children or []
    links, pictures = 0, False
    for token in children:
        links += token.nesting if token.type in {"link_open", "link_close"} else 0
        if token.type == "image":
            pictures = True
            if not links and len(token.content.split()) >= _UNTOLD_IMAGE_WORDS:
                return False
        elif token.type in {"text", "code_inline"} and token.content.strip():
            return False
    return pictures
