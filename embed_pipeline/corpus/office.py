"""Word and PowerPoint files: Word by mammoth through HTML, PowerPoint by markitdown.

What they would drop or misread is first changed in the file's XML.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any

import mammoth
from lxml import etree
from markitdown import StreamInfo
from markitdown.converter_utils.docx.math.omml import OMML_NS, oMath2Latex
from markitdown.converter_utils.docx.pre_process import pre_process_docx
from markitdown.converters import PptxConverter

from embed_pipeline.corpus.decoding import without_data
from embed_pipeline.corpus.pages import read_html
from embed_pipeline.text.blocks import ParsedDocument, clean_text, clean_title, first_heading
from embed_pipeline.text.markdown import markdown_blocks

_TITLE_CLASS = "document-title"
_STYLES = "\n".join(
    [
        f"p[style-name='Title'] => h1.{_TITLE_CLASS}:fresh", "p[style-name='Subtitle'] => p:fresh",
        "br[type='page'] => br", "br[type='column'] => br",
    ]
)  # fmt: skip
_STYLE_PART = "word/styles.xml"
_HEADING_NAME = re.compile(r"heading ([1-9])", re.IGNORECASE)
_BODY_LEVEL = 9
_TITLES = frozenset({"title", "subtitle"})
_COMMENTS = "comment-reference => sup"
_CORE = "docProps/core.xml"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_UNTITLED = re.compile(
    r"\W*(?:word document|document ?\d*|title|untitled|presentation ?\d*|powerpoint.*)\W*", re.IGNORECASE
)
_SLIDE = re.compile(r"^<!-- Slide number: \d+ -->$", re.MULTILINE)
_IMAGE = re.compile(r"!\[([^\[\]]{0,1000})\]\([^()\n]{0,1000}\)")
_WORD_PARTS = re.compile(r"word/(?:document|footnotes|endnotes|comments)\d*\.xml")
_SLIDE_PARTS = re.compile(r"ppt/(?:slides|notesSlides|charts)/\w+\.xml")
_DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_COMPATIBLE = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_CHART = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_PRESENTATION = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_TITLE_PLACES = frozenset({"title", "ctrTitle"})
# Parts of a formula that the conversion to LaTeX looks up the properties of.
_WITH_PROPERTIES = ("acc", "bar", "d", "f", "groupChr")
_MARKUP = re.compile(r"#{1,6}(?:\s|$)|(?:=+|-+)\s*$|```|~~~|>|<[A-Za-z/!?]")


class UnpackedSizeError(ValueError):
    """An archive unpacks to more than may be unpacked."""


def read_word(content: bytes, most_bytes: int, *, comments: bool) -> ParsedDocument:
    """Kept text and blocks; the title is what has the style Title, that of its properties, or the first heading.

    Args:
        content: the file.
        most_bytes: it may unpack to.
        comments: have the reviewers' comments at the end.

    Raises:
        UnpackedSizeError: it unpacks to more.
    """
    _check_size(content, most_bytes)
    styles = "\n".join([_STYLES, *_heading_styles(content), *([_COMMENTS] if comments else [])])
    stream = _changed(pre_process_docx(io.BytesIO(content)), _WORD_PARTS, _change_word)  # formulas to text
    html = mammoth.convert_to_html(stream, style_map=styles, convert_image=mammoth.images.img_element(lambda _: {}))
    read = read_html(html.value)
    is_titled = f'class="{_TITLE_CLASS}"' in html.value
    title = read.title if is_titled else _core_title(content) or first_heading(read.blocks)
    return ParsedDocument(title, read.text, read.blocks)


def read_slides(content: bytes, most_bytes: int) -> ParsedDocument:
    """Kept text and blocks of a presentation, each slide's title a heading before all else on it.

    Raises:
        UnpackedSizeError: it unpacks to more than ``most_bytes``.
    """
    _check_size(content, most_bytes)
    stream = _changed(io.BytesIO(content), _SLIDE_PARTS, _change_slide)
    converted = _Slides().convert(stream, StreamInfo(extension=".pptx"))  # type: ignore[no-untyped-call]
    # A soft line break may stand in a title, and a tokenizer joins the words around its sign.
    markdown = converted.markdown.replace("\v", " ").replace("\n### Notes:\n", "\nNotes:\n")
    slides = filter(None, map(_title_first, _SLIDE.split(markdown)))
    text = clean_text(without_data(_IMAGE.sub(r"\1", "\n\n".join(slides)))).strip() + "\n"
    blocks = markdown_blocks(text)
    return ParsedDocument(first_heading(blocks) or _core_title(content), text, blocks)


class _Slides(PptxConverter):
    """markitdown's, with a chart's name as text, and with blank lines that end a table where the next text begins."""

    def _convert_table_to_markdown(self, table: Any, **kwargs: Any) -> str:  # noqa: ANN401 - python-pptx's
        return f"\n{super()._convert_table_to_markdown(table, **kwargs)}\n"  # type: ignore[no-untyped-call]

    def _convert_chart_to_markdown(self, chart: Any) -> str:  # noqa: ANN401
        said = super()._convert_chart_to_markdown(chart) or ""  # type: ignore[no-untyped-call]
        return f"\n{said.strip().removeprefix('### ')}\n\n"


def _title_first(slide: str) -> str:
    """The slide with its title before what is placed above it; text that is no title never begins with its mark."""
    return "\n".join(sorted(slide.strip().split("\n"), key=lambda line: not line.startswith("# ")))


def _heading_styles(content: bytes) -> list[str]:
    """Mappings for mammoth of the styles that are headings by their outline level or by the style they are based on."""
    root = _part(content, _STYLE_PART)
    if root is None:
        return []
    word = f"{{{etree.QName(root).namespace}}}"
    styles = {
        style.get(f"{word}styleId"): style
        for style in root.iter(f"{word}style")
        if style.get(f"{word}type") == "paragraph"
    }

    def said(style: Any, path: str) -> str:  # noqa: ANN401 - lxml's
        found = style.find("/".join(f"{word}{name}" for name in path.split("/")))
        return "" if found is None else str(found.get(f"{word}val") or "")

    mappings = []
    for style in styles.values():
        name, level, seen = said(style, "name"), "", style
        for _ in range(len(styles)):
            numbered = _HEADING_NAME.fullmatch(said(seen, "name"))
            level = said(seen, "pPr/outlineLvl") or (str(int(numbered[1]) - 1) if numbered else "")
            seen = styles.get(said(seen, "basedOn"))
            if level or seen is None:
                break
        # Level 9 is that of the body.
        if level.isdecimal() and int(level) < _BODY_LEVEL and name and name.lower() not in _TITLES:
            quoted = name.replace("\\", "\\\\").replace("'", "\\'")
            mappings.append(f"p[style-name='{quoted}'] => h{min(int(level) + 1, 6)}:fresh")
    return mappings


def _check_size(content: bytes, most_bytes: int) -> None:
    """Refuse an archive by what its directory says: no more than that is ever unpacked."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > most_bytes:
        raise UnpackedSizeError(f"it unpacks to {size} bytes, over corpus.max_unpacked_bytes = {most_bytes}")


def _part(content: bytes, name: str) -> Any:  # noqa: ANN401 - lxml's
    """The root of an entry's XML; None where there is no such entry, or it is damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if name not in archive.namelist():
            return None
        try:
            return etree.fromstring(archive.read(name), etree.XMLParser(resolve_entities=False, no_network=True))
        except etree.XMLSyntaxError:
            return None


def _changed(stream: Any, parts: re.Pattern[str], change: Callable[[Any], None]) -> io.BytesIO:  # noqa: ANN401
    """The archive with ``change`` applied to the XML of the entries whose names match ``parts``."""
    changed = io.BytesIO()
    target = zipfile.ZipFile(changed, "w")  # as a context it would hide that memory ran out
    with zipfile.ZipFile(stream) as source:
        for name in dict.fromkeys(source.namelist()):
            content = source.read(name)
            if parts.fullmatch(name):
                content = _changed_part(content, change)
            target.writestr(name, content)
    target.close()
    changed.seek(0)
    return changed


def _changed_part(content: bytes, change: Callable[[Any], None]) -> bytes:
    """The XML after ``change``; damaged XML stays as it is, for the converter to refuse."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError:
        return content
    change(root)
    return bytes(etree.tostring(root, encoding="UTF-8", xml_declaration=True, standalone=True))


def _change_word(root: Any) -> None:  # noqa: ANN401 - lxml's
    """Change what mammoth drops: fields, text with a direction, text boxes, ruby, and the formulas that are left."""
    word = f"{{{etree.QName(root).namespace}}}"
    _choose_text(root)
    for old, new in (("cr", "br"), ("ptab", "tab")):
        for element in list(root.iter(f"{word}{old}")):
            element.tag = f"{word}{new}"
    drawn = f"{word}drawing", f"{word}pict"
    for drawing in list(root.iter(*drawn)):
        boxes = drawing.iter(f"{word}txbxContent")
        own = [box for box in boxes if next(box.iterancestors(*drawn)) is drawing]
        drawing.addnext(etree.Element(f"{word}pict"))
        drawing.getnext().extend(own)
    etree.strip_elements(root, f"{word}rt", with_tail=False)  # readings, which would part the words that people search
    for formula in list(root.iterfind(f".//{OMML_NS}oMath")):
        mark = "$$" if formula.getparent().tag == f"{OMML_NS}oMathPara" else "$"
        run = etree.Element(f"{word}r")
        etree.SubElement(run, f"{word}t").text = f"{mark}{_latex(formula)}{mark}"
        formula.getparent().replace(formula, run)
    etree.strip_tags(
        root, f"{OMML_NS}oMathPara", f"{word}fldSimple", f"{word}dir", f"{word}bdo", f"{word}ruby", f"{word}rubyBase"
    )


def _choose_text(root: Any) -> None:  # noqa: ANN401
    """Put what says something in place of content that is there in several forms, the simplest form before all."""
    for content in list(root.iter(f"{_COMPATIBLE}AlternateContent")):
        forms = [*content.findall(f"{_COMPATIBLE}Fallback"), *content.findall(f"{_COMPATIBLE}Choice")]
        form = next((form for form in forms if any((text.text or "").strip() for text in form.iter("{*}t"))), None)
        if form is not None:
            for part in list(form):
                content.addprevious(part)
            content.getparent().remove(content)


def _latex(formula: Any) -> str:  # noqa: ANN401
    """The formula in LaTeX; its characters alone where it holds what the conversion does not know."""
    for name in _WITH_PROPERTIES:
        for part in formula.iter(f"{OMML_NS}{name}"):
            if part.find(f"{OMML_NS}{name}Pr") is None:
                part.insert(0, etree.Element(f"{OMML_NS}{name}Pr"))
    try:
        return str(oMath2Latex(formula).latex)  # type: ignore[no-untyped-call]
    except (LookupError, TypeError, AttributeError, ValueError, NotImplementedError):
        return " ".join(text for text in formula.itertext(f"{OMML_NS}t", with_tail=False))


def _change_slide(root: Any) -> None:  # noqa: ANN401
    """Put titles on one line, and escape what is Markdown to a parser but not to the reader of a slide."""
    _choose_text(root)
    for shape in root.iter(f"{_PRESENTATION}sp"):
        place = shape.find(f"{_PRESENTATION}nvSpPr/{_PRESENTATION}nvPr/{_PRESENTATION}ph")
        if place is not None and place.get("type") in _TITLE_PLACES:
            _join_paragraphs(shape.find(f"{_PRESENTATION}txBody"))
    for paragraph in root.iterfind(f".//{_PRESENTATION}txBody/{_DRAWING}p"):
        if _MARKUP.match("".join(paragraph.itertext(f"{_DRAWING}t", with_tail=False)).lstrip()):
            first = next(text for text in paragraph.iter(f"{_DRAWING}t") if (text.text or "").strip())
            first.text = f"\\{first.text.lstrip()}"
    for title in root.iter(f"{_CHART}rich"):
        _join_paragraphs(title)
    for text in (*root.iterfind(f".//{_DRAWING}tc//{_DRAWING}t"), *root.iter(f"{_CHART}v")):
        text.text = " ".join((text.text or "").replace("|", r"\|").split("\n"))


def _join_paragraphs(body: Any) -> None:  # noqa: ANN401
    """Move the runs of all paragraphs into the first one, with a space between the paragraphs and for line breaks."""
    paragraphs = [] if body is None else body.findall(f"{_DRAWING}p")
    if not paragraphs:
        return
    first, *others = paragraphs
    for paragraph in others:
        etree.SubElement(first, f"{_DRAWING}br")
        first.extend(part for part in paragraph if part.tag in {f"{_DRAWING}r", f"{_DRAWING}br", f"{_DRAWING}fld"})
        body.remove(paragraph)
    for line_break in list(first.iter(f"{_DRAWING}br")):
        run = etree.Element(f"{_DRAWING}r")
        etree.SubElement(run, f"{_DRAWING}t").text = " "
        first.replace(line_break, run)


def _core_title(content: bytes) -> str:
    """The title in the file's properties; empty where there is none, or one that a program made up."""
    root = _part(content, _CORE)
    title = clean_title("" if root is None else root.findtext(_TITLE) or "")
    return "" if _UNTITLED.fullmatch(title) else title
