"""Headings and titles of real files, those that installed packages carry, are those of the reference parsers' trees."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

import pytest
from docutils import frontend, nodes, utils
from docutils.parsers.rst import Parser
from docutils.transforms.references import Substitutions
from markdown_it import MarkdownIt
from markdown_it.token import Token

from embed_pipeline.corpus.decoding import decode
from embed_pipeline.corpus.formats import read_markdown, split_front_matter, title_of
from embed_pipeline.corpus.restructured import read_restructured

PACKAGES = Path(sysconfig.get_path("purelib"))
MOST = 150
LARGEST = 60_000
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


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["md", "rst"])
def test_headings_and_titles_are_those_of_the_reference(ending: str) -> None:
    read, reference = (read_markdown, _commonmark) if ending == "md" else (read_restructured, _docutils)
    texts = [pair for pair, _ in zip(_texts(ending), range(MOST), strict=False)]
    assert len(texts) > 20
    wrong = {}
    for name, text in texts:
        found = read(text)
        headings = [(block.level, block.text) for block in found.blocks if block.kind == "heading"]
        expected = reference(text)
        title = title_of(split_front_matter(text)[0]) or (expected[0][1] if expected else "")
        if headings != expected or found.title != title:
            wrong[name] = [pair for pair in [*headings, *expected] if (pair in headings) != (pair in expected)][:4]
    assert wrong == {}
