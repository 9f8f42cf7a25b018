"""Word and PowerPoint files: Word by mammoth through HTML, PowerPoint by markitdown."""

from __future__ import annotations

import io
import re
import zipfile

import mammoth
from lxml import etree
from markitdown import StreamInfo
from markitdown.converter_utils.docx.pre_process import pre_process_docx
from markitdown.converters import PptxConverter

from embed_pipeline.corpus.pages import read_html
from embed_pipeline.text.blocks import ParsedDocument, clean_text, clean_title, first_heading
from embed_pipeline.text.markdown import markdown_blocks

_TITLE_CLASS = "document-title"
_STYLES = f"p[style-name='Title'] => h1.{_TITLE_CLASS}:fresh\np[style-name='Subtitle'] => p:fresh"
_COMMENTS = "comment-reference => sup"
_CORE = "docProps/core.xml"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_UNTITLED = re.compile(
    r"\W*(?:word document|document ?\d*|title|untitled|presentation ?\d*|powerpoint.*)\W*", re.IGNORECASE
)
_SLIDE = re.compile(r"<!-- Slide number: \d+ -->")
_IMAGE = re.compile(r"!\[([^\[\]]{0,1000})\]\([^()\n]{0,1000}\)")


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
    styles = f"{_STYLES}\n{_COMMENTS}" if comments else _STYLES
    stream = pre_process_docx(io.BytesIO(content))  # formulas to text
    html = mammoth.convert_to_html(stream, style_map=styles, convert_image=mammoth.images.img_element(lambda _: {}))
    read = read_html(html.value)
    is_titled = f'class="{_TITLE_CLASS}"' in html.value
    title = read.title if is_titled else _core_title(content) or first_heading(read.blocks)
    return ParsedDocument(title, read.text, read.blocks)


def read_slides(content: bytes, most_bytes: int) -> ParsedDocument:
    """Kept text and blocks of a presentation, each slide's title a heading.

    Raises:
        UnpackedSizeError: it unpacks to more than ``most_bytes``.
    """
    _check_size(content, most_bytes)
    converted = PptxConverter().convert(io.BytesIO(content), StreamInfo(extension=".pptx"))  # type: ignore[no-untyped-call]
    text = clean_text(_IMAGE.sub(r"\1", _SLIDE.sub("", converted.markdown))).strip() + "\n"
    blocks = markdown_blocks(text)
    return ParsedDocument(first_heading(blocks) or _core_title(content), text, blocks)


def _check_size(content: bytes, most_bytes: int) -> None:
    """Refuse an archive by what its directory says: no more than that is ever unpacked."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > most_bytes:
        raise UnpackedSizeError(f"it unpacks to {size} bytes, over corpus.max_unpacked_bytes = {most_bytes}")


def _core_title(content: bytes) -> str:
    """The title in the file's properties; empty where there is none, or one that a program made up."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if _CORE not in archive.namelist():
            return ""
        parser = etree.XMLParser(resolve_entities=False, no_network=True)
        try:
            found = etree.fromstring(archive.read(_CORE), parser).findtext(_TITLE)
        except etree.XMLSyntaxError:
            return ""
    title = clean_title(found or "")
    return "" if _UNTITLED.fullmatch(title) else title
