"""HTML to Markdown: BeautifulSoup parses, markdownify writes each block, and what is furniture goes.

The tree says what is a heading, a table, a list: each block is written from its own element, so that nothing in its
text is read as structure. Containers are walked without recursion, however deep they are nested.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from itertools import islice
from typing import Any

from bs4 import BeautifulSoup, CData, Tag
from bs4.element import NavigableString, PreformattedString
from markdownify import MarkdownConverter

from embed_pipeline.corpus.decoding import without_data
from embed_pipeline.text.blocks import Draft, Kind, ParsedDocument, clean_text, clean_title, table_rows
from embed_pipeline.text.markdown import markdown_blocks, plain_line_ends, superscript

_DROPPED = frozenset(
    {
        "title", "script", "style", "nav", "template", "noscript", "svg", "iframe", "select", "clipboard-copy",
        "rt", "rp", "rtc",  # readings, which would part the words that people search
    }
)  # fmt: skip
_DROPPED_ROLES = frozenset(
    {"navigation", "banner", "contentinfo", "search", "doc-toc", "menu", "menubar", "toolbar", "tablist"}
)
# Lists of a page's own headings and of the pages above it, and line numbers of code.
_CONTENTS = frozenset({"toc", "table-of-contents", "contents", "toc_container", "breadcrumb", "breadcrumbs"})
_LINE_NUMBERS = frozenset({"linenos", "lineno", "linenodiv", "blob-num", "line-numbers-rows"})
_NOT_READ = frozenset(
    {
        "mw-editsection", "katex-html", "page-metadata", "tabbed-labels", "md-source-file", "viewcode-link",
        "printfooter", "catlinks", "navbox",
    }
)  # fmt: skip
# What a click shows.
_OPENED_ROLES = frozenset({"tabpanel", "region"})
_FOOT = "footer"
_PERMALINKS = frozenset({"headerlink", "hash-link", "anchor", "anchorjs-link", "header-anchor"})
_PERMALINK_WORDS = re.compile(
    r"(?:(?:anchor|(?:perma|permanent |direct )?link)(?: (?:to|for)\b.{0,500})?|[\W_]{0,20})", re.IGNORECASE | re.DOTALL
)
_FRAMING = frozenset({"header", "aside", "footer"})
_CONTAINERS = frozenset(
    {
        "html", "head", "body", "main", "article", "section", "div", "header", "aside", "footer", "figure", "details",
        "center", "fieldset", "form", "hgroup", "address", "frameset", "summary", "figcaption", "dialog", "[document]",
    }
)  # fmt: skip
_BLOCKS: dict[str, Kind] = {
    "p": "paragraph", "pre": "code", "table": "table", "ul": "list", "ol": "list", "dl": "list", "menu": "list",
    "blockquote": "quote", "hr": "paragraph",
}  # fmt: skip
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_LINES = frozenset({"div", "p", "li", "tr"})
# Where a button alone is a heading, and where a sentence may name one.
_NAMING = _HEADINGS | {"dt", "summary", "legend"}
_SENTENCES = frozenset({"p", "li", "dd"})
_NEXT_TO_A_BUTTON = 20
_FIELDS = ["input", "textarea", "select"]
_UNSEEN_FIELDS = frozenset({"hidden", "submit", "button", "image", "reset"})
_LABELS = frozenset({"label", "legend", "option", "select", "textarea", "button", "script", "style"})
# Fewer characters for each field, without its labels: a form to fill in.
_TEXT_PER_FIELD = 60
_OPERATORS = {"mfrac": "/", "msup": "^"}
_ARTICLE = frozenset({"main", "article"})
_MOSTLY_LINKS = 0.5
_MARKS = "¶#§🔗"
_PARTS = frozenset({"list", "quote", "code", "table", "heading", "paragraph"})
_HIDING = re.compile(r"\b(?:display\s*:\s*none|visibility\s*:\s*hidden)\b", re.IGNORECASE)
_LEAST_HIDDEN_WORDS = 12
_DEEPEST_LAYOUT = 20
_WIDEST = 50
_SURROGATES = re.compile(r"&#(5[56]\d{3});&#(5[67]\d{3});")
# markdownify's own expressions take the square of a gap's width.
_WIDE_GAP = re.compile(r"([ \t]{80})[ \t]+")
# libxml2 ends a heading before a paragraph in it; browsers do not.
_PARAGRAPH_IN_HEADING = re.compile(r"(<h[1-6]\b[^<>]{0,500}>\s{0,100})<p\b[^<>]{0,500}>", re.IGNORECASE)
_LINE_ENDS = re.compile(r"[ \t]{1,80}\n")
_BLANK_LINES = re.compile(r"\n{3,}")


class _Converter(MarkdownConverter):
    """markdownify's, with pictures and links without the files that ``data:`` addresses hold."""

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        address = str(el.get("src") or "")
        if not address or address.strip().lower().startswith("data:"):
            return str(el.get("alt") or "")
        return str(super().convert_img(el, text, parent_tags))  # type: ignore[misc]

    def convert_a(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        if str(el.get("href") or "").strip().lower().startswith(("data:", "javascript:", "#")):
            return text
        return str(super().convert_a(el, text, parent_tags))  # type: ignore[misc]


_CONVERTER: Any = _Converter(
    heading_style="ATX", bullets="-", escape_asterisks=False, escape_underscores=False, newline_style="SPACES"
)


def read_html(text: str) -> ParsedDocument:
    """Kept text and blocks of a page; the title is its first-level heading, else what its ``title`` says."""
    text = _SURROGATES.sub(_joined, _without_sections(text))
    soup = BeautifulSoup(_PARAGRAPH_IN_HEADING.sub(r"\1", _WIDE_GAP.sub(r"\1", text)), "lxml")
    titles = (tag.get_text() for tag in soup.find_all("title") if tag.find_parent("svg") is None)
    named = clean_title(next(titles, ""))
    _drop_furniture(soup)
    _mark_title(soup)
    draft = Draft()
    _write_parts(_main_part(soup) or soup, draft)
    read = draft.reading()
    headings = [block for block in read.blocks if block.kind == "heading"]
    first = next((heading.text for heading in headings if heading.level == 1), "")
    title = first or named or (headings[0].text if headings else "")
    return ParsedDocument(title, read.text, read.blocks)


def _without_sections(text: str) -> str:
    """The text with what XHTML has in CDATA sections as other text; HTML's parser reads them as comments."""
    first, *sections = text.split("<![CDATA[")
    parts = (section.partition("]]>") for section in sections)
    return first + "".join(f"{escape(inner, quote=False)}{rest}" for inner, _, rest in parts)


def _joined(found: re.Match[str]) -> str:
    """A letter that a page writes as two surrogates."""
    return clean_text(chr(int(found[1])) + chr(int(found[2])))


def _drop_furniture(soup: BeautifulSoup) -> None:
    """Remove what is not the page's text: menus, page heads and feet, permalinks."""
    gone: dict[int, Any] = {}  # by identity, and kept until the end so that no identity comes twice
    framing: list[Tag] = []
    for node in list(soup.descendants):
        if id(node) not in gone and (not isinstance(node, NavigableString) or _is_hidden(node)):
            _look_at(node, gone, framing)
    has_article = soup.find(["main", "article"]) is not None or soup.select_one("[role=main]") is not None
    has_first_heading = any(heading.find_parent("header") is None for heading in soup.find_all("h1"))
    for element in framing:
        if id(element) not in gone and not _is_kept(element, has_article=has_article):
            headings = [] if has_first_heading or element.name != "header" else element.find_all("h1")
            if headings:
                element.insert_before(headings[0].extract())
            _take_out(element, gone)


def _mark_title(soup: BeautifulSoup) -> None:
    """Make a first-level heading of the title that Google Docs and LibreOffice write as the first paragraph."""
    first = next((text for text in (soup.body or soup).strings if text.strip() and not _is_hidden(text)), None)
    named = first.find_parent("p", class_="title") if first is not None else None
    if isinstance(named, Tag) and len(soup.find_all("p", class_="title")) == 1:
        named.name = "h1"


def _main_part(soup: BeautifulSoup) -> Tag | None:
    """The page's ``main`` where it is one and holds most of the text and a heading; what is around it is furniture."""
    mains = soup.find_all(lambda tag: tag.name == "main" or tag.get("role") == "main")
    if len(mains) != 1 or mains[0].find("h1") is None:
        return None
    return mains[0] if 2 * len(mains[0].get_text()) > len(soup.get_text()) else None


def _look_at(node: Any, gone: dict[int, Any], framing: list[Tag]) -> None:  # noqa: ANN401 - a tag or a comment
    """Remove a node that is no text in any place; note one that may frame the page."""
    if not isinstance(node, Tag):
        node.extract()
    elif node.name == "noframes":
        inner = BeautifulSoup(node.get_text(), "lxml")
        node.replace_with(inner.body or inner)
    elif node.name == "script" and str(node.get("type")).startswith("math/"):
        # A formula as MathJax and kramdown write it.
        _take_out(node, gone, node.get_text().strip())
    elif _is_dropped(node):
        _take_out(node, gone)
    elif node.name == "math" and isinstance(formula := node.find("annotation"), Tag):
        _take_out(node, gone, formula.get_text())
    elif node.name == "math":
        gone |= {id(part): part for part in node.descendants}
        _write_operators(node)
    elif node.name == "sup":
        _raise(node)
    elif node.get("role") == "heading" or "MsoTitle" in node.get_attribute_list("class"):
        level = str(node.get("aria-level") or ("1" if node.name == "p" else "2"))
        node.name = f"h{min(int(level), 6) if level.isdecimal() and int(level) else 2}"
    elif node.name in _FRAMING or "role" in node.attrs:
        framing.append(node)


def _write_operators(formula: Tag) -> None:
    """Put the sign of a fraction or a power between its parts, which stand one above the other on a page."""
    for part in reversed(formula.find_all(list(_OPERATORS))):
        terms = ["".join(term.get_text().split()) for term in part.find_all(recursive=False)]
        shown = [term if term.replace(".", "").isalnum() else f"({term})" for term in terms]
        is_sign = len(terms) > 1 and not any(map(str.isalnum, terms[-1]))  # a prime or an asterisk
        part.replace_with("".join(terms) if is_sign else _OPERATORS[part.name].join(shown))


def _raise(element: Tag) -> None:
    """Mark what is raised as such, but for a mark of a footnote; the innermost alone."""
    if element.find("sup") is not None:
        return
    before, sibling = element.previous_element, element.previous_sibling
    classes = " ".join(element.get_attribute_list("class")) if "class" in element.attrs else ""
    is_note = element.find("a") is not None or element.find_parent("a") is not None or "note" in classes
    follows = isinstance(sibling, NavigableString) or (isinstance(sibling, Tag) and not _is_block(sibling))
    if follows and isinstance(before, NavigableString) and not is_note:
        text = element.get_text()
        raised = superscript(str(before), text)
        if raised != text:
            element.string = raised


def _is_block(element: Tag) -> bool:
    return element.name in _CONTAINERS or element.name in _BLOCKS or element.name in _HEADINGS


def _is_hidden(text: NavigableString) -> bool:
    """True for a comment, a doctype or a processing instruction."""
    return isinstance(text, PreformattedString) and not isinstance(text, CData)


def _take_out(element: Tag, gone: dict[int, Any], instead: str = "") -> None:
    gone |= {id(node): node for node in element.descendants}
    if instead:
        element.replace_with(instead)
    else:
        element.extract()


def _is_dropped(element: Tag) -> bool:
    """True for what is no text in any place."""
    if element.name == "form":
        return _is_form_of_fields(element)
    if _is_unseen(element):
        return True
    if element.name == "button":
        return not _is_read(element)
    if element.name in _DROPPED:
        return element.find("rb") is None  # libxml2 puts the next letters into a reading that no tag ends
    classes = element.get_attribute_list("class") if "class" in element.attrs else []
    marks = _PERMALINKS if element.name == "a" else _PERMALINKS - {"anchor"}
    is_permalink = not marks.isdisjoint(classes) and element.find("a") is None
    if is_permalink and _PERMALINK_WORDS.fullmatch(_words(element)):
        return True
    names = {str(name) for key in ("class", "id") if key in element.attrs for name in element.get_attribute_list(key)}
    is_contents = not _CONTENTS.isdisjoint(names) and element.find("a") is not None and _is_mostly_links(element)
    is_foot = element.name == "div" and element.get("id") == _FOOT and element.find_parent(list(_ARTICLE)) is None
    # The sign next to a note of Asciidoctor would make a table of it.
    is_icon = element.name == "td" and "icon" in classes and not element.get_text(strip=True)
    return is_contents or is_foot or is_icon or not (_LINE_NUMBERS | _NOT_READ).isdisjoint(classes)


def _is_unseen(element: Tag) -> bool:
    """True for a few words that a page hides; a longer text is behind a tab or a click.

    What is hidden from those alone to whom a page is read is a sign, or is said to them in other words.
    """
    if element.get("role") in _OPENED_ROLES or element.get("hidden") == "until-found":
        return False
    hides = "hidden" in element.attrs or _HIDING.search(str(element.get("style") or "")) is not None
    is_sign = element.get("aria-hidden") == "true" and element.find_parent(list(_HEADINGS)) is None
    hides = hides or (is_sign and element.name not in _HEADINGS)
    return hides and element.name != "html" and len(element.get_text(" ").split()) < _LEAST_HIDDEN_WORDS


def _words(element: Tag) -> str:
    """The text of an element, without that of its icons."""
    return " ".join(text.strip() for text in element.strings if text.find_parent("svg") is None).strip()


def _is_form_of_fields(form: Tag) -> bool:
    """True for a form to fill in; one around the whole page, as some servers write it, is text."""
    if form.find(["form", "h1", "h2", "p"]) is not None:
        return False
    if form.parent is not None and form.parent.name == "body" and form.find(list(_HEADINGS)) is not None:
        return False
    fields = [field for field in form.find_all(_FIELDS) if str(field.get("type")).lower() not in _UNSEEN_FIELDS]
    enough = _TEXT_PER_FIELD * len(fields)
    pending: list[Any] = [form]
    while pending and enough > 0:
        node = pending.pop()
        if not isinstance(node, Tag):
            enough -= 0 if _is_hidden(node) else len(node.strip())
        elif node.name not in _LABELS:
            pending += node.children
    return enough > 0


def _is_read(button: Tag) -> bool:
    """True for a button that names what it opens, as in a heading of its own, or whose name a sentence uses."""
    around = {parent.name for parent in button.parents}
    if "pre" in around or not any(map(str.isalnum, button.get_text())):
        return False
    inner, parent = button, button.parent
    before = after = False
    while parent is not None:
        before = before or _has_text(inner.previous_siblings)
        after = after or _has_text(inner.next_siblings)
        if _is_block(parent) or parent.name in _SENTENCES or parent.name in {"dt", "td", "th"}:
            break
        inner, parent = parent, parent.parent
    if not _NAMING.isdisjoint(around):
        return not before and not after
    return (before or after) if parent is not None and parent.name in _SENTENCES else (before and after)


def _has_text(siblings: Iterable[Any]) -> bool:
    """True where a text is next to an element, with nothing but buttons and small pieces between."""
    for node in islice(siblings, _NEXT_TO_A_BUTTON):
        if isinstance(node, Tag) and (_is_block(node) or node.name == "br"):
            return False
        if isinstance(node, Tag):
            is_text = node.name not in _DROPPED and node.name != "button" and any(map(str.strip, node.strings))
        else:
            is_text = bool(node.strip()) and not _is_hidden(node)
        if is_text:
            return True
    return False


def _is_kept(element: Tag, *, has_article: bool) -> bool:
    role = str(element.get("role") or "")
    inside = element.find_parent(lambda tag: tag.name in _ARTICLE or tag.get("role") == "main") is not None
    if element.name == "footer":
        notes = "footnote" in " ".join(element.get_attribute_list("class")) or role == "doc-endnotes"
        return (inside and notes) or element.find_parent("blockquote") is not None
    if role in _DROPPED_ROLES:
        return False
    if element.name == "header":
        return inside
    if element.name == "aside":
        return inside or (not has_article and not _is_mostly_links(element))
    return True


def _is_mostly_links(element: Tag) -> bool:
    linked = sum(len(link.get_text(strip=True)) for link in element.find_all("a"))
    named = sum(len(heading.get_text(strip=True)) for heading in element.find_all(list(_HEADINGS)))
    return linked >= _MOSTLY_LINKS * (len(element.get_text(strip=True)) - named)


def _write_parts(root: Tag, draft: Draft, depth: int = 0) -> None:
    """Write block elements in order, and between them runs of inline ones as paragraphs."""
    around = _elements_around_blocks(root)
    inline: list[Any] = []
    pending: list[Any] = [root]
    while pending:
        node = pending.pop()
        name = node.name if isinstance(node, Tag) else ""
        opens = node is root or name in _CONTAINERS or id(node) in around
        if (opens or node is None or name in _BLOCKS or name in _HEADINGS) and inline:
            draft.add("paragraph", _markdown(inline))
            inline = []
        if node is not root and (name in _BLOCKS or name in _HEADINGS):
            _write(node, draft, depth)
            continue
        if opens:
            pending.append(None)  # where it ends
            pending += reversed(list(node.children))
        elif node is not None and (name or str(node).strip() or inline):
            inline.append(node)


def _elements_around_blocks(root: Tag) -> set[int]:
    """Elements that are inline or unknown and hold blocks all the same, as web components and old pages have them."""
    around: set[int] = set()
    for block in root.find_all([*_BLOCKS, *_HEADINGS, "div", "section", "article", "aside"]):
        for element in block.parents:
            if element is root or id(element) in around:
                break
            if element.name not in _BLOCKS and element.name not in _HEADINGS:
                around.add(id(element))
    return around


def _write(element: Tag, draft: Draft, depth: int) -> None:
    if element.name in _HEADINGS:
        for link in element.find_all("a"):
            if not link.get_text(strip=True).strip(_MARKS):
                link.replace_with(*link.find_all("img"))
        title = clean_title(element.get_text(" " if element.find("br") else "")).rstrip("¶🔗 ")
        pictured = " ".join(str(picture.get("alt") or "") for picture in element.find_all("img"))
        draft.add_heading(int(element.name[1]), title or clean_title(pictured))
    elif element.name == "pre":
        draft.add_code(plain_line_ends(_code(element)), _language(element))
    elif element.name == "table":
        _write_table(element, draft, depth)
    elif element.name != "hr":
        kind = _BLOCKS[element.name]
        part = Draft()
        part.add(kind, _markdown([element]))
        kept = part.reading()
        has_parts = kind in {"list", "quote"} and element.find(["pre", "table", *_HEADINGS]) is not None
        inner = [b for b in markdown_blocks(kept.text) if b.kind in _PARTS] if has_parts else []
        if not part.is_empty:
            draft.add_parsed(kept.text, inner or kept.blocks)


def _write_table(table: Tag, draft: Draft, depth: int) -> None:
    """Write a table of data as one; one that lays out a page cell by cell, or as text where they are nested deeply."""
    _put_in_rows(table)
    rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
    cells = [list(row.find_all(["td", "th"], recursive=False)) for row in rows]
    width = max((sum(_span(cell) for cell in row) for row in cells), default=0)
    caption = table.find("caption")
    if depth > _DEEPEST_LAYOUT:
        draft.add("paragraph", table.get_text(" ", strip=True))
    elif width < 2 or table.find(["table", "pre", *_HEADINGS]) is not None:  # noqa: PLR2004 - columns of a table
        for cell in (cell for row in cells for cell in row):
            _write_parts(cell, draft, depth + 1)
    else:
        if isinstance(caption, Tag):
            draft.add("paragraph", _markdown(list(caption.children)))
        shown = table_rows([(_cell(cell), _span(cell), _span(cell, "rowspan")) for cell in row] for row in cells if row)
        width = max(map(len, shown))
        lines = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in shown]
        draft.add("table", "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]]))


def _put_in_rows(table: Tag) -> None:
    """Put cells that are in no row into one, as browsers do."""
    for first in table.find_all(["td", "th"]):
        holder = first.parent
        if first.find_parent("table") is table and isinstance(holder, Tag) and holder.name != "tr":
            row = Tag(name="tr")
            first.insert_before(row)
            while isinstance(following := row.next_sibling, NavigableString) or (
                isinstance(following, Tag) and following.name in {"td", "th"}
            ):
                row.append(following.extract())


def _cell(cell: Tag) -> str:
    return " ".join(_markdown(list(cell.children)).split()).replace("|", "\\|")


def _span(cell: Tag, name: str = "colspan") -> int:
    span = str(cell.get(name) or "1")
    return min(int(span), _WIDEST) if span.isdecimal() and int(span) else 1


def _markdown(nodes: list[Any]) -> str:
    """Elements as Markdown; as plain text where they are nested too deeply."""
    try:
        text = "".join(
            str(_CONVERTER.process_tag(node, parent_tags=set()))
            if isinstance(node, Tag)
            else str(_CONVERTER.process_text(node, parent_tags=set()))
            for node in nodes
        )
    except RecursionError:
        text = " ".join(node.get_text(" ", strip=True) if isinstance(node, Tag) else str(node) for node in nodes)
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("\n", plain_line_ends(without_data(text)))).strip()


def _code(element: Tag) -> str:
    """The text of code whose lines may be elements of their own, or end in ``br``."""
    if element.find(["br", *_LINES]) is None:
        return element.get_text()
    pieces: list[str] = []
    pending: list[Any] = [element]
    while pending:
        node = pending.pop()
        if isinstance(node, Tag):
            if node.name == "br":
                pieces.append("\n")
            elif node.name in _LINES:
                pending.append(None)  # where it ends
            pending += reversed(list(node.children))
        elif node is not None:
            pieces.append(str(node))
        elif pieces and not pieces[-1].endswith("\n"):
            pieces.append("\n")
    return "".join(pieces)


def _language(element: Tag) -> str:
    """The language of code, from the classes that highlighters read."""
    marked = [element, element.find("code"), element.parent, element.parent.parent if element.parent else None]
    for tag in (tag for tag in marked if isinstance(tag, Tag)):
        for name in tag.get_attribute_list("class"):
            language = str(name or "").partition("language-")[2] or str(name or "").partition("highlight-")[2]
            if language and language != "default":
                return language if language.isalnum() else ""
    return ""
