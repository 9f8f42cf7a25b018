"""Headings and titles of real files, those that installed packages carry, are those of the reference parsers' trees."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Callable, Iterator
from email.parser import HeaderParser
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from docutils import frontend, nodes, utils
from docutils.parsers.rst import Parser
from docutils.transforms.references import Substitutions
from markdown_it import MarkdownIt
from markdown_it.token import Token

from embed_pipeline.corpus.decoding import decode
from embed_pipeline.corpus.formats import read_markdown, split_front_matter, title_of
from embed_pipeline.corpus.pages import read_html
from embed_pipeline.corpus.restructured import read_restructured

PACKAGES = Path(sysconfig.get_path("purelib"))
MOST = 150
LEAST = 200
"""Files that are compared in all; fewer would say that the packages at hand carry no texts."""
LARGEST = 60_000
FURNITURE = (
    "<html><head><title>Site</title></head><body><nav><h2>Menu</h2><a href=x>x</a></nav><header><h2>Top</h2></header>"
    "<main>{}</main><aside><h3>Related</h3><a href=y>y</a></aside><footer><h2>About</h2></footer></body></html>"
)
PARSER = MarkdownIt("commonmark").enable("table")


def _texts(ending: str) -> Iterator[tuple[str, str]]:
    """Files of an ending, and the descriptions of packages that are written in it."""
    for path in sorted(PACKAGES.rglob(f"*.{ending}")):
        if path.stat().st_size < LARGEST:
            yield str(path.relative_to(PACKAGES)), decode(path.read_bytes())
    for path in sorted(PACKAGES.glob("*.dist-info/METADATA")):
        message = HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        is_markdown = "markdown" in message.get("Description-Content-Type", "")
        if is_markdown == (ending == "md") and len(message.get_payload()) < LARGEST:
            yield str(path.relative_to(PACKAGES)), str(message.get_payload())


def _shown(tokens: list[Token]) -> str:
    spaces = {"softbreak", "hardbreak"}
    return "".join(
        " " if token.type in spaces else _shown(token.children or []) if token.type == "image" else token.content
        for token in tokens
        if token.type != "html_inline"
    )


def _commonmark(text: str) -> list[tuple[int, str]]:
    """Headings outside of quotes."""
    found, quotes = [], 0
    tokens = PARSER.parse(split_front_matter(text)[1])
    for token, inline in zip(tokens, [*tokens[1:], None], strict=True):
        quotes += token.nesting if token.type.startswith("blockquote") else 0
        if token.type == "heading_open" and not quotes and inline is not None:
            shown = " ".join(_shown(inline.children or []).split())
            found += [(int(token.tag[1]), shown)] if shown else []
    return found


def _docutils(text: str) -> list[tuple[int, str]]:
    settings = frontend.get_default_settings(Parser)
    settings.report_level = settings.halt_level = 6
    settings.file_insertion_enabled = settings.raw_enabled = False
    document = utils.new_document("", settings)
    Parser().parse(text, document)
    Substitutions(document).apply()
    sections = [title for title in document.findall(nodes.title) if isinstance(title.parent, nodes.section)]
    return [(_depth(title), " ".join(title.astext().split())) for title in sections]


def _depth(node: nodes.Node) -> int:
    above = node.parent
    return 0 if above is None else _depth(above) + isinstance(above, nodes.section)


class _Outline(HTMLParser):
    """Headings as the standard library's parser meets them, outside of quotes and of what frames a page."""

    FRAMES = frozenset({"nav", "header", "footer", "aside", "blockquote", "template", "button", "svg", "noscript"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[int, str]] = []
        self._frames = 0
        self._open: tuple[int, list[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._frames += tag in self.FRAMES
        if re.fullmatch("h[1-6]", tag) and not self._frames:
            self._open = (int(tag[1]), [])
        elif self._open and tag == "br":
            self._open[1].append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._frames -= tag in self.FRAMES
        if self._open and tag == f"h{self._open[0]}":
            shown = " ".join("".join(self._open[1]).split())
            self.found += [(self._open[0], shown)] if shown else []
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[1].append(data)


def _outline(page: str) -> list[tuple[int, str]]:
    parser = _Outline()
    parser.feed(page)
    parser.close()
    return parser.found


def _pages() -> Iterator[tuple[str, str]]:
    """The Markdown files as pages with menus around them, and the pages that packages carry."""
    for name, text in _texts("md"):
        yield name, FURNITURE.format(PARSER.render(split_front_matter(text)[1]))
    for path in sorted(PACKAGES.rglob("*.html")):
        if path.stat().st_size < LARGEST:
            yield str(path.relative_to(PACKAGES)), decode(path.read_bytes(), is_html=True)


SETS: dict[str, tuple[Callable[[], Iterator[tuple[str, str]]], Any, Any]] = {
    "md": (partial(_texts, "md"), read_markdown, _commonmark),
    "rst": (partial(_texts, "rst"), read_restructured, _docutils),
    "html": (_pages, read_html, _outline),
}


@pytest.mark.slow
def test_the_packages_at_hand_carry_enough_to_compare() -> None:
    counts = {ending: sum(1 for _ in zip(texts(), range(MOST), strict=False)) for ending, (texts, _, _) in SETS.items()}
    assert sum(counts.values()) >= LEAST
    assert min(counts.values()) > 20


def _title(ending: str, text: str, headings: list[tuple[int, str]]) -> str:
    """What the format's rule says: of a page its first heading of the first level, else what its head says.

    Of Markdown a first-level heading in HTML, where it stands before the others and none of them is first-level.
    """
    first = headings[0][1] if headings else ""
    if ending != "html":
        metadata, body = split_front_matter(text)
        shown = _outline(PARSER.render(body)) if ending == "md" and headings[:1] != [(1, first)] else []
        before = shown[: shown.index(headings[0]) if headings and headings[0] in shown else len(shown)]
        return title_of(metadata) or next((said for level, said in before if level == 1), first)
    named = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL)
    own = next((shown for level, shown in headings if level == 1), "")
    return own or " ".join(unescape(named[1]).split() if named else []) or first


@pytest.mark.slow
@pytest.mark.parametrize("ending", SETS)
def test_headings_and_titles_are_those_of_the_reference(ending: str) -> None:
    source, read, reference = SETS[ending]
    texts = [pair for pair, _ in zip(source(), range(MOST), strict=False)]
    wrong = {}
    seen = 0
    for name, text in texts:
        found = read(text)
        headings = [(block.level, block.text) for block in found.blocks if block.kind == "heading"]
        expected = reference(text)
        seen += len(expected)
        title = _title(ending, text, expected)
        if headings != expected or found.title != title:
            wrong[name] = [pair for pair in [*headings, *expected] if (pair in headings) != (pair in expected)][:4]
    assert wrong == {}
    assert seen > len(texts), "files without headings prove nothing"
