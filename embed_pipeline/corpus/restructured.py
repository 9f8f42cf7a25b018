"""reStructuredText to Markdown, from the tree that docutils makes of it.

What Sphinx and other tools add is unknown to docutils: an unknown role is its text, an unknown directive its argument
and its content, so that no word is lost. Files are never included, and nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from docutils import frontend, nodes, utils
from docutils.parsers.rst import Directive, Parser, directives, roles, states
from docutils.parsers.rst.languages import en

from embed_pipeline.text.blocks import Draft, ParsedDocument, first_heading, table_rows
from embed_pipeline.text.markdown import markdown_blocks, superscript

_DIRECTIVE_NAMES = re.compile(r"^[ \t]*\.\.[ \t](?:\|[^|\n]{1,200}\|[ \t])?[ \t]{0,9}([\w.+:-]{1,80})::", re.MULTILINE)
_ROLE_NAMES = re.compile(r":([\w.+-]{1,60}(?::[\w.+-]{1,60}){0,3}):`|`:([\w.+-]{1,60}(?::[\w.+-]{1,60}){0,3}):")
_EXPLICIT_TARGET = re.compile(r"([^<]{1,400})<([^<>]{1,400})>")
# Up to the end of a sentence where there is one, else to the end of a word.
_PIECES = re.compile(r"(?s).{1,1500}(?:$|(?<=[.!?;])\s)|.{1,1500}(?:$|(?<=\s))|.{1,1500}")
_CODE_DIRECTIVES = frozenset((
    "code", "code-block", "sourcecode", "highlight", "prompt", "doctest", "testcode", "testoutput", "testsetup",
    "testcleanup", "ipython", "ipython2", "ipython3", "jupyter-execute", "jupyter-input", "jupyter-output", "exec",
    "exec_code", "math", "parsed-literal", "productionlist", "graphviz", "digraph", "graph", "mermaid", "plantuml",
    "uml", "tikz", "plot", "command-output", "program-output", "console", "terminal", "literal",
))  # fmt: skip
_DROPPED_DIRECTIVES = frozenset((
    "include", "literalinclude", "raw", "contents", "sectnum", "section-numbering", "header", "footer", "meta",
    "default-domain", "currentmodule", "py:currentmodule", "module", "index", "highlight",
    "tabularcolumns", "role", "default-role", "target-notes", "image-map",
))  # fmt: skip
_UNTITLED_DIRECTIVES = frozenset((
    "only", "ifconfig", "container", "cssclass", "grid", "grid-item", "tab-set", "div", "card-carousel",
))  # fmt: skip
"""Their arguments are conditions, classes and sizes."""
_CLASS_DIRECTIVES = frozenset(["class", "rst-class"])
_CLASS_NAMES = re.compile(r"[a-z][\w-]*(?:\s+[a-z][\w-]*)*")
"""Arguments that style what follows; Python's documentation describes classes under the same directive."""
_VERSIONS = {
    "versionadded": "Added in version",
    "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
    "versionremoved": "Removed in version",
}
_TEXT_ROLES = frozenset((
    "ref", "doc", "numref", "term", "guilabel", "menuselection", "abbr", "dfn", "any", "download", "keyword",
    "index", "pep", "rfc", "eq", "cite", "cite:p", "cite:t", "sub", "sup", "issue", "user", "pr",
))  # fmt: skip
_LINK_ROLES = frozenset(["doc", "any", "download", "std:doc"])
_FILE_METADATA = frozenset(
    ["orphan", "tocdepth", "nocomments", "no-comments", "nosearch", "no-search", "allow-toctree"]
)
_ADMONITIONS = (
    nodes.attention, nodes.caution, nodes.danger, nodes.error, nodes.hint, nodes.important, nodes.note, nodes.tip,
    nodes.warning,
)  # fmt: skip
_UNSEEN = (nodes.comment, nodes.substitution_definition, nodes.pending, nodes.raw, nodes.target, nodes.decoration)
_MOST_LINE = 10**9
_NEVER = 6
_ERROR = 3


def read_restructured(text: str) -> ParsedDocument:
    """Kept text and blocks; the title is the ``title`` of its metadata, or the first heading."""
    document = utils.new_document("", _settings())
    _make_known(text, document)
    Parser(inliner=_inliner()).parse(text, document)
    _replace_messages(document)
    writer = _Writer(document)
    writer.write_all(document.children, 0)
    draft = writer.draft.reading()
    return ParsedDocument(writer.title or first_heading(draft.blocks), draft.text, draft.blocks)


@cache
def _settings() -> Any:  # noqa: ANN401 - docutils has no types
    settings = frontend.get_default_settings(Parser)
    settings.file_insertion_enabled = False
    settings.raw_enabled = False
    settings.report_level = settings.halt_level = _NEVER
    settings.warning_stream = ""
    settings.syntax_highlight = "none"
    settings.line_length_limit = _MOST_LINE
    return settings


def _inliner() -> states.Inliner:
    """Docutils' parser of inline markup, which takes the square of a text's length, on a long text piece by piece.

    Markup that continues after the end of a piece is text. The parser reads its own class's attributes, so that a
    subclass would not do.
    """
    inliner = states.Inliner()
    whole = inliner.parse

    def parse(text: str, *place: Any) -> tuple[list[nodes.Node], list[nodes.Node]]:  # noqa: ANN401 - as above
        parsed = [whole(piece, *place) for piece in _PIECES.findall(text)]
        return [node for found, _ in parsed for node in found], [message for _, said in parsed for message in said]

    inliner.parse = parse
    return inliner


class _AnyOptions(dict[str, Callable[[str], str]]):
    """Every option that a directive may be given."""

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, _: str) -> Callable[[str], str]:
        return _as_given


def _as_given(value: str | None) -> str:
    return value or ""


class _Unknown(Directive):  # type: ignore[misc]  # docutils has no types
    """A directive that docutils has not, or reads more strictly than Sphinx: its argument, then its content."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec = _AnyOptions()

    def run(self) -> list[nodes.Node]:
        name = self.name.lower()
        argument = self.arguments[0] if self.arguments else ""
        if name in _DROPPED_DIRECTIVES:
            return []
        if name in _CODE_DIRECTIVES:
            return self._code(name, argument)
        if name == "toctree":
            return self._entries()
        found: list[nodes.Node] = []
        caption = self.options.get("caption") or self.options.get("title") or ""
        styles = name in _CLASS_DIRECTIVES and (name != "class" or _CLASS_NAMES.fullmatch(argument))
        said = "" if name in _UNTITLED_DIRECTIVES or styles else argument
        shown = " ".join(part for part in (_VERSIONS.get(name, ""), said) if part)
        for line in (shown, caption):
            if line:
                children, messages = self.state.inline_text(line, self.lineno)
                is_object = (":" in name or name == "class") and line is shown
                paragraph = nodes.paragraph(line, "", *children)
                found += [nodes.paragraph("", "", nodes.literal(line, line)) if is_object else paragraph, *messages]
        box = nodes.container()
        self.state.nested_parse(self.content, self.content_offset, box)
        return [*found, *box.children]

    def _code(self, name: str, argument: str) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        if self.options.get("caption"):
            found.append(nodes.paragraph("", "", nodes.Text(self.options["caption"])))
        lines = list(self.content)
        language = argument.split(maxsplit=1)[0] if argument else ""
        if argument and (not lines or name == "math"):
            lines, language = [argument, *lines], ""
        body = "\n".join(lines)
        block = nodes.literal_block(body, body)
        block["language"] = language if language.replace("-", "").replace("+", "").isalnum() else ""
        return [*found, block]

    def _entries(self) -> list[nodes.Node]:
        """What a table of contents lists, titles where it has them."""
        entries = nodes.bullet_list()
        for line in self.content:
            if line.strip():
                titled = _EXPLICIT_TARGET.fullmatch(line.strip())
                name = nodes.Text((titled[1] if titled else line).strip())
                entries += nodes.list_item("", nodes.paragraph("", "", name))
        return [entries] if entries.children else []


def _unknown_role(  # noqa: PLR0917 - docutils' signature
    name: str,
    rawtext: str,
    text: str,
    lineno: int,  # noqa: ARG001
    inliner: Any,  # noqa: ANN401, ARG001
    options: dict[str, Any] | None = None,  # noqa: ARG001
    content: Sequence[str] | None = None,  # noqa: ARG001
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """What Sphinx shows of a role: the title given, or the target without its marks."""
    text = utils.unescape(text)
    titled = _EXPLICIT_TARGET.fullmatch(text)
    title, target = (titled[1].strip(), titled[2].strip()) if titled else (text, text)
    if not titled:
        title = title.removeprefix("!")
        title = title[1:].rpartition(".")[2] if title.startswith("~") else title
    if name in _LINK_ROLES:
        return [nodes.reference(rawtext, title, refuri=target)], []
    if name in _TEXT_ROLES or titled:
        return [nodes.inline(rawtext, title)], []
    return [nodes.literal(rawtext, title)], []


def _make_known(text: str, document: nodes.document) -> None:
    """Give docutils what it does not know of the names in a text, and its own directives that are strict or unsafe."""
    ours = _CODE_DIRECTIVES | _DROPPED_DIRECTIVES | _CLASS_DIRECTIVES
    for name in {*(found.lower() for found in _DIRECTIVE_NAMES.findall(text)), *ours}:
        is_ours = name in ours
        if is_ours or directives.directive(name, en, document)[0] is None:
            directives.register_directive(name, _Unknown)
    for pair in _ROLE_NAMES.findall(text):
        name = (pair[0] or pair[1]).lower()
        if roles.role(name, en, 0, document.reporter)[0] is None:
            roles.register_local_role(name, _unknown_role)


def _replace_messages(document: nodes.document) -> None:
    """Put what docutils could not read in place of its messages, as the file has it; a warning's text was read."""
    for message in list(document.findall(nodes.system_message)):
        unread = list(message.findall(nodes.literal_block)) if message["level"] >= _ERROR else []
        shown = [
            node if node.astext().startswith(".. ") else nodes.paragraph("", "", nodes.Text(node.astext()))
            for node in unread
        ]
        message.parent.replace(message, shown)


@dataclass
class _Writer:
    """Writes a tree as Markdown."""

    document: nodes.document
    draft: Draft = field(default_factory=Draft)
    title: str = ""
    _depth: int = 0

    def __post_init__(self) -> None:
        self._substitutes = {
            name: node for node in self.document.findall(nodes.substitution_definition) for name in node["names"]
        }
        self._targets = {
            name: node["refuri"]
            for node in self.document.findall(nodes.target)
            if "refuri" in node
            for name in node["names"]
        }
        self._targets |= {
            name: self._targets[node["refname"]]
            for node in self.document.findall(nodes.target)
            if node.get("refname") in self._targets
            for name in node["names"]
        }

    def write_all(self, children: Iterable[nodes.Node], depth: int) -> None:
        """Write body elements; sections are headings of one level more."""
        for node in children:
            self._write(node, depth)

    def _write(self, node: nodes.Node, depth: int) -> None:  # noqa: C901 - a case for each kind of node
        if isinstance(node, _UNSEEN):
            return
        if isinstance(node, nodes.section):
            self.write_all(node.children, depth + 1)
        elif isinstance(node, nodes.title) and isinstance(node.parent, nodes.section):
            shown = self._inline(node)
            self.draft.add("heading", f"{'#' * min(depth, 6)} {shown}", level=depth, title=self._plain(node))
        elif isinstance(node, nodes.literal_block | nodes.doctest_block | nodes.math_block):
            self.draft.add_code(node.astext(), node.get("language", "") or _class_language(node))
        elif isinstance(node, nodes.table):
            self._write_table(node)
        elif isinstance(node, nodes.field_list) and self.draft.is_empty:
            self._write_metadata(node)
        elif isinstance(node, nodes.Sequential | nodes.definition_list | nodes.block_quote | nodes.line_block) and not (
            isinstance(node, nodes.Admonition)
        ):
            self._write_parsed("\n".join(self._lines(node)), "quote" if isinstance(node, nodes.block_quote) else "list")
        elif isinstance(node, _ADMONITIONS):
            self._write_labelled(f"{type(node).__name__.capitalize()}:", node.children, depth)
        elif isinstance(node, nodes.footnote | nodes.citation):
            label = next((child.astext() for child in node.children if isinstance(child, nodes.label)), "*")
            self._write_labelled(f"[{label}]", [c for c in node.children if not isinstance(c, nodes.label)], depth)
        elif isinstance(node, nodes.image):
            self.draft.add("paragraph", self._inline_node(node))
        elif isinstance(node, nodes.TextElement):
            self.draft.add("paragraph", self._inline(node))
        elif isinstance(node, nodes.Element):
            self.write_all(node.children, depth)

    def _write_labelled(self, label: str, children: Sequence[nodes.Node], depth: int) -> None:
        """Write body elements, the first after a label on its line."""
        first = children[0] if children else None
        if isinstance(first, nodes.paragraph):
            self.draft.add("paragraph", f"{label} {self._inline(first)}")
            children = children[1:]
        else:
            self.draft.add("paragraph", label)
        self.write_all(children, depth)

    def _write_metadata(self, fields: nodes.field_list) -> None:
        """Fields before any text: what directs a tool is dropped, the title kept, the rest shown."""
        lines = []
        for node in fields.children:
            name, body = (child.astext() for child in node.children)
            if name.lower() == "title":
                self.title = body
            elif name.lower() not in _FILE_METADATA and body and ":" not in name:
                lines.append(f"- {name}: {' '.join(body.split())}")
        self.draft.add("metadata", "\n".join(lines))

    def _write_parsed(self, text: str, kind: str) -> None:
        """Write a list or quote, its code and tables as blocks of their own."""
        part = Draft()
        part.add("list" if kind == "list" else "quote", text)
        kept = part.reading().text
        blocks = [block for block in markdown_blocks(kept) if block.kind in {"list", "quote", "code", "table"}]
        whole = [
            block for block in part.reading().blocks if not any(inner.kind in {"code", "table"} for inner in blocks)
        ]
        self.draft.add_parsed(kept, whole or blocks)

    def _write_table(self, table: nodes.table) -> None:
        for title in table.findall(nodes.title):
            self.draft.add("paragraph", self._inline(title))
        for group in table.findall(nodes.tgroup):
            width = len(list(group.findall(nodes.colspec, descend=False))) or int(group.get("cols", 1))
            width = int(group.get("cols", width))
            heads = [row for head in group.findall(nodes.thead) for row in head.children]
            rows = [row for body in group.findall(nodes.tbody) for row in body.children]
            named: list[list[str]] = table_rows(map(self._cells, heads)) or [[]]
            shown = [*named, *table_rows(map(self._cells, rows))]
            lines = [_line([*row, *[""] * (width - len(row))]) for row in shown]
            lines.insert(1, _line(["---"] * width))  # Markdown has one row of heads
            self.draft.add("table", "\n".join(lines))

    def _cells(self, row: nodes.Element) -> Iterator[tuple[str, int, int]]:
        """Text of each cell, and how many columns and rows it spans."""
        for entry in row.children:
            text = " ".join(part for child in entry.children for part in self._lines(child) if part.strip())
            shown = " ".join(text.split()).replace("|", r"\|")
            yield shown, int(entry.get("morecols", 0)) + 1, int(entry.get("morerows", 0)) + 1

    def _lines(self, node: nodes.Node) -> list[str]:  # noqa: PLR0911 - a case for each kind of node
        """A body element inside of another, as lines of Markdown."""
        if isinstance(node, _UNSEEN) or not isinstance(node, nodes.Element):
            return []
        if isinstance(node, nodes.bullet_list | nodes.enumerated_list):
            first = int(node.get("start", 1)) if isinstance(node, nodes.enumerated_list) else 0
            items = [child for child in node.children if isinstance(child, nodes.list_item)]
            marks = [f"{first + number}. " if first else "- " for number in range(len(items))]
            return [line for mark, item in zip(marks, items, strict=True) for line in self._item(mark, item.children)]
        if isinstance(node, nodes.definition_list):
            return [line for item in node.children for line in self._definition(item)]
        if isinstance(node, nodes.field_list | nodes.option_list):
            return [line for item in node.children for line in self._named(item)]
        if isinstance(node, nodes.literal_block | nodes.doctest_block | nodes.math_block):
            part = Draft()
            part.add_code(node.astext(), node.get("language", "") or _class_language(node))
            return part.reading().text.split("\n")[:-1]
        if isinstance(node, nodes.block_quote):
            return [f"> {line}".rstrip() for line in self._stacked(node.children)]
        if isinstance(node, nodes.table):
            inner = _Writer(self.document)
            inner._write_table(node)
            return inner.draft.reading().text.split("\n")[:-1]
        if isinstance(node, _ADMONITIONS):
            return [f"{type(node).__name__.capitalize()}:", *self._stacked(node.children)]
        if isinstance(node, nodes.TextElement | nodes.image):
            shown = self._inline_node(node) if isinstance(node, nodes.image) else self._inline(node)
            return shown.split("\n")
        return self._stacked(node.children)

    def _stacked(self, children: Iterable[nodes.Node]) -> list[str]:
        """Body elements with a blank line between two."""
        lines: list[str] = []
        for child in children:
            found = self._lines(child)
            tight = isinstance(child, nodes.bullet_list | nodes.enumerated_list | nodes.line)
            lines += ["", *found] if lines and found and not tight else found
        return lines

    def _item(self, mark: str, children: Iterable[nodes.Node]) -> list[str]:
        lines = self._stacked(children) or [""]
        indent = " " * len(mark)
        return [f"{mark}{lines[0]}", *(f"{indent}{line}" if line else "" for line in lines[1:])]

    def _definition(self, item: nodes.Node) -> list[str]:
        terms = [self._inline(child) for child in item.children if isinstance(child, nodes.term)]
        kinds = [self._inline(child) for child in item.children if isinstance(child, nodes.classifier)]
        bodies = [child for child in item.children if isinstance(child, nodes.definition)]
        return self._headed(" : ".join([*terms, *kinds]), [part for body in bodies for part in body.children])

    def _named(self, item: nodes.Node) -> list[str]:
        """A field or an option, and what is said about it."""
        name, body = item.children[0], item.children[1]
        shown = f"`{name.astext()}`" if isinstance(name, nodes.option_group) else self._inline(name)
        return self._headed(shown, body.children)

    def _headed(self, head: str, children: Sequence[nodes.Node]) -> list[str]:
        lines = self._stacked(children)
        if children and isinstance(children[0], nodes.paragraph):
            lines = [f"{head}: {lines[0]}", *lines[1:]]
        else:
            lines = [head, *(["", *lines] if lines else [])]
        return [f"- {lines[0]}", *(f"  {line}" if line else "" for line in lines[1:])]

    def _inline(self, node: nodes.Node) -> str:
        return "".join(self._inline_node(child) for child in node.children)

    def _plain(self, node: nodes.Node) -> str:
        """Inline elements as their readers see them."""
        if isinstance(node, nodes.Text):
            return str(node.astext())
        if isinstance(node, nodes.image):
            return str(node.get("alt", ""))
        if isinstance(node, nodes.substitution_reference):
            return "".join(self._plain(child) for child in self._substitute(node))
        shown = "".join(self._plain(child) for child in node.children if not isinstance(child, nodes.target))
        return superscript(_before(node), shown) if isinstance(node, nodes.superscript) else shown

    def _inline_node(self, node: nodes.Node) -> str:  # noqa: PLR0911 - a case for each kind of node
        if isinstance(node, nodes.Text):
            return str(node.astext())
        if isinstance(node, nodes.literal | nodes.math):
            text = node.astext()
            return f"`` {text} ``" if "`" in text else f"`{text}`"
        if isinstance(node, nodes.image):
            return f"![{node.get('alt', '')}]({node.get('uri', '')})" if node.get("alt") else ""
        if isinstance(node, nodes.substitution_reference):
            return "".join(self._inline_node(child) for child in self._substitute(node))
        if isinstance(node, nodes.footnote_reference | nodes.citation_reference):
            return f"[{node.astext() or '*'}]"
        if isinstance(node, nodes.target | nodes.raw) or not isinstance(node, nodes.Element):
            return "" if not isinstance(node, nodes.target) else self._inline(node)
        text = self._inline(node)
        if isinstance(node, nodes.superscript):
            return superscript(_before(node), text)
        if isinstance(node, nodes.reference):
            address = node.get("refuri") or self._targets.get(node.get("refname", ""), "")
            return f"[{text}]({address})" if address and address != text else text
        if isinstance(node, nodes.strong | nodes.emphasis) and text.strip():
            return f"**{text}**" if isinstance(node, nodes.strong) else f"*{text}*"
        return text

    def _substitute(self, node: nodes.substitution_reference) -> list[nodes.Node]:
        """What a substitution stands for; its name where the file does not say, or it stands for itself."""
        found = self._substitutes.get(node.get("refname", "")) or self._substitutes.get(node.astext())
        if found is None or any(found.findall(nodes.substitution_reference)):
            return [nodes.Text(node.astext())]
        return list(found.children)


def _before(node: nodes.Element) -> str:
    """The text right before an inline element."""
    before = node.parent.children[: node.parent.index(node)][-1:]
    return before[0].astext() if before else ""


def _class_language(node: nodes.Element) -> str:
    classes = [name for name in node.get("classes", ()) if name != "code"]
    return classes[0] if classes and "code" in node["classes"] else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
