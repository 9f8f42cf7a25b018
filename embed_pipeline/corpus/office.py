"""Word and PowerPoint files: Word by mammoth through HTML, PowerPoint by markitdown.

What they would drop or misread is first changed in the file's XML.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from html import escape
from typing import Any

import mammoth
from lxml import etree
from markitdown import StreamInfo
from markitdown.converter_utils.docx.math.omml import OMML_NS, oMath2Latex
from markitdown.converter_utils.docx.pre_process import pre_process_docx
from markitdown.converters import PptxConverter

from embed_pipeline.corpus.decoding import decode, without_data
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
_NUMBERED_SLIDE = re.compile(r"Slide \d+")
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


_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_RELATIONS = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)
# A paragraph in the place of an included file.
_INCLUDED_MARK = "\ue000{}\ue000"
_INCLUDED = re.compile("<p>\ue000([0-9a-f]*)\ue000</p>")


@dataclass(frozen=True)
class _Related:
    """An entry of an archive that a part refers to."""

    name: str
    archive: zipfile.ZipFile


_Change = Callable[[Any, Mapping[str, _Related]], None]


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
    html = _word_html(content, styles, most_bytes)
    read = read_html(html)
    is_titled = f'class="{_TITLE_CLASS}"' in html
    title = read.title if is_titled else _core_title(content) or first_heading(read.blocks)
    return ParsedDocument(title, read.text, read.blocks)


def _word_html(content: bytes, styles: str, most_bytes: int) -> str:
    """The document as HTML, with the files that it includes in their places."""
    stream = _changed(pre_process_docx(io.BytesIO(content)), _WORD_PARTS, _change_word)  # formulas to text
    html = mammoth.convert_to_html(stream, style_map=styles, convert_image=mammoth.images.img_element(lambda _: {}))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:

        def included(found: re.Match[str]) -> str:
            name = bytes.fromhex(found[1]).decode()
            return _included_html(name, archive.read(name), styles, most_bytes) if name in archive.namelist() else ""

        return _INCLUDED.sub(included, str(html.value))


def _included_html(name: str, content: bytes, styles: str, most_bytes: int) -> str:
    """A file that a Word document includes, as HTML; empty for forms that are not read."""
    ending = name.rpartition(".")[2].lower()
    if ending in {"htm", "html", "xhtml"}:
        return decode(content, is_html=True)
    if ending in {"mht", "mhtml"}:
        pages = (part for part in message_from_bytes(content).walk() if part.get_content_type() == "text/html")
        return "".join(decode(bytes(part.get_payload(decode=True) or b""), is_html=True) for part in pages)
    if ending == "docx":
        _check_size(content, most_bytes)
        return _word_html(content, styles, most_bytes)
    return f"<pre>{escape(decode(content))}</pre>" if ending == "txt" else ""


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
    slides = filter(None, (_title_first(slide, number) for number, slide in enumerate(_SLIDE.split(markdown))))
    text = clean_text(without_data(_IMAGE.sub(r"\1", "\n\n".join(slides)))).strip() + "\n"
    blocks = markdown_blocks(text)
    headed = first_heading(blocks)
    title = "" if _NUMBERED_SLIDE.fullmatch(headed) else headed
    return ParsedDocument(title or _core_title(content), text, blocks)


class _Slides(PptxConverter):
    """markitdown's, with a chart's name as text, and with blank lines that end a table where the next text begins."""

    def _convert_table_to_markdown(self, table: Any, **kwargs: Any) -> str:  # noqa: ANN401 - python-pptx's
        return f"\n{super()._convert_table_to_markdown(table, **kwargs)}\n"  # type: ignore[no-untyped-call]

    def _convert_chart_to_markdown(self, chart: Any) -> str:  # noqa: ANN401
        points = [_points(series) for series in chart.series]
        if any(points):
            titled = chart.has_title and chart.chart_title.has_text_frame
            name = f"Chart: {chart.chart_title.text_frame.text}" if titled else "Chart"
            heads = (f"| x | {series.name} |\n|---|---|" for series in chart.series)
            tables = ("\n".join([head, *rows]) for head, rows in zip(heads, points, strict=True))
            return "\n" + "\n\n".join([name, *tables]) + "\n\n"
        said = super()._convert_chart_to_markdown(chart) or ""  # type: ignore[no-untyped-call]
        return f"\n{said.strip().removeprefix('### ')}\n\n"


def _points(series: Any) -> list[str]:  # noqa: ANN401 - python-pptx's
    """The points of a series of a scatter chart, as rows of a table; none of any other chart."""
    element = series._element  # noqa: SLF001 - the values of x have no other way out
    across, along = (
        {point.get("idx"): point.findtext(f"{_CHART}v") for point in element.iterfind(f"{_CHART}{name}//{_CHART}pt")}
        for name in ("xVal", "yVal")
    )
    return [f"| {across[place]} | {value} |" for place, value in along.items() if place in across]


def _title_first(slide: str, number: int) -> str:
    """The slide with its title before what is placed above it; text that is no title never begins with its mark.

    After another slide, one without a title gets its number as one: its text would stand under the title before.
    """
    lines = sorted(slide.strip().split("\n"), key=lambda line: not line.startswith("# "))
    is_untitled = number > 1 and lines != [""] and not lines[0].startswith("# ")
    return "\n".join([f"# Slide {number}", "", *lines] if is_untitled else lines)


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
        return _xml(archive, name)


def _xml(archive: zipfile.ZipFile, name: str) -> Any:  # noqa: ANN401 - as above
    if name not in archive.namelist():
        return None
    try:
        return etree.fromstring(archive.read(name), _PARSER)
    except etree.XMLSyntaxError:
        return None


def _changed(stream: Any, parts: re.Pattern[str], change: _Change) -> io.BytesIO:  # noqa: ANN401
    """The archive with ``change`` applied to the XML of the entries whose names match ``parts``.

    A change is given the root, and the entries that the relationships of the part lead to, by id.
    """
    changed = io.BytesIO()
    target = zipfile.ZipFile(changed, "w")  # as a context it would hide that memory ran out
    with zipfile.ZipFile(stream) as source:
        for name in dict.fromkeys(source.namelist()):
            content = source.read(name)
            if parts.fullmatch(name):
                content = _changed_part(content, change, _related(source, name))
            target.writestr(name, content)
    target.close()
    changed.seek(0)
    return changed


def _related(archive: zipfile.ZipFile, name: str) -> Mapping[str, _Related]:
    """Id of each relationship of a part to the entry that it leads to."""
    folder, _, base = name.rpartition("/")
    relations = _xml(archive, f"{folder}/_rels/{base}.rels")
    found = {}
    for relation in () if relations is None else relations:
        target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target") or "")).lstrip("/")
        if target in archive.namelist():
            found[str(relation.get("Id"))] = _Related(target, archive)
    return found


def _drawn_texts(element: Any, related: Mapping[str, _Related]) -> list[str]:  # noqa: ANN401 - lxml's
    """The texts of the diagrams (SmartArt) in an element, one for each paragraph."""
    files = (related.get(diagram.get(f"{_RELATIONS}dm")) for diagram in element.iter(f"{_DIAGRAM}relIds"))
    roots = (_xml(file.archive, file.name) for file in files if file is not None)
    paragraphs = (part for root in roots if root is not None for part in root.iterfind(f".//{_DIAGRAM}t/{_DRAWING}p"))
    texts = ("".join(part.itertext(f"{_DRAWING}t", with_tail=False)).strip() for part in paragraphs)
    return [text for text in texts if text]


def _changed_part(content: bytes, change: _Change, related: Mapping[str, _Related]) -> bytes:
    """The XML after ``change``; damaged XML stays as it is, for the converter to refuse."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError:
        return content
    change(root, related)
    return bytes(etree.tostring(root, encoding="UTF-8", xml_declaration=True, standalone=True))


def _change_word(root: Any, related: Mapping[str, _Related]) -> None:  # noqa: ANN401 - lxml's
    """Change what mammoth drops.

    That is fields, text with a direction, text boxes, diagrams, included files, ruby, and the formulas that are left.
    """
    word = f"{{{etree.QName(root).namespace}}}"
    _choose_text(root)
    for chunk in list(root.iter(f"{word}altChunk")):
        file = related.get(chunk.get(f"{_RELATIONS}id"))
        if file is not None:
            chunk.addnext(_word_paragraph(word, _INCLUDED_MARK.format(file.name.encode().hex())))
    for old, new in (("cr", "br"), ("ptab", "tab")):
        for element in list(root.iter(f"{word}{old}")):
            element.tag = f"{word}{new}"
    drawn = f"{word}drawing", f"{word}pict"
    for drawing in list(root.iter(*drawn)):
        boxes = drawing.iter(f"{word}txbxContent")
        own = [box for box in boxes if next(box.iterancestors(*drawn)) is drawing]
        if texts := _drawn_texts(drawing, related):
            own.append(etree.Element(f"{word}txbxContent"))
            own[-1].extend(_word_paragraph(word, text) for text in texts)
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


def _word_paragraph(word: str, text: str) -> Any:  # noqa: ANN401 - lxml's
    paragraph = etree.Element(f"{word}p")
    etree.SubElement(etree.SubElement(paragraph, f"{word}r"), f"{word}t").text = text
    return paragraph


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


def _change_slide(root: Any, related: Mapping[str, _Related]) -> None:  # noqa: ANN401
    """Put titles on one line, diagrams into boxes of text, and escape what is Markdown but to the reader of a slide."""
    _choose_text(root)
    for frame in list(root.iter(f"{_PRESENTATION}graphicFrame")):
        if texts := _drawn_texts(frame, related):
            frame.getparent().replace(frame, _text_box(frame, texts))
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


def _text_box(frame: Any, texts: Sequence[str]) -> Any:  # noqa: ANN401
    """A box of text in the place of a diagram's frame."""
    box = etree.Element(f"{_PRESENTATION}sp")
    named = etree.SubElement(box, f"{_PRESENTATION}nvSpPr")
    etree.SubElement(named, f"{_PRESENTATION}cNvPr", id="0", name="diagram")
    etree.SubElement(named, f"{_PRESENTATION}cNvSpPr", txBox="1")
    etree.SubElement(named, f"{_PRESENTATION}nvPr")
    place = etree.SubElement(etree.SubElement(box, f"{_PRESENTATION}spPr"), f"{_DRAWING}xfrm")
    placed = frame.find(f"{_PRESENTATION}xfrm")
    place.extend([] if placed is None else placed)
    body = etree.SubElement(box, f"{_PRESENTATION}txBody")
    etree.SubElement(body, f"{_DRAWING}bodyPr")
    for text in texts:
        run = etree.SubElement(etree.SubElement(body, f"{_DRAWING}p"), f"{_DRAWING}r")
        etree.SubElement(run, f"{_DRAWING}t").text = text
    return box


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
