"""PDF by pdfium: lines in reading order, paragraphs with their hyphens joined, tables with rules by pdfplumber.

Values of form fields and notes on a page are lines of it. Pages are turned until their letters are upright.

Headings are those of the file's outline: the size of letters says nothing that holds. What fonts do not map to letters
is no text.
"""

from __future__ import annotations

import ctypes
import io
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import pdfplumber
import pypdfium2
import pypdfium2.raw as pdfium

from embed_pipeline.corpus.pdf_repair import repaired_pdf
from embed_pipeline.text.blocks import Draft, ParsedDocument, clean_text, clean_title, first_heading
from embed_pipeline.text.markdown import superscript

_LEAST_RULES, _MOST_RULES = 4, 2000
_UNMAPPED_SHARE = 0.2
_SAMPLED_LETTERS = 300
_TURNED_LETTERS = 60
_OBLIQUE = 0.1
"""Share of a right angle; scans and slanted letters stand less askew."""
_SOFT_HYPHEN = "\u00ad"
# What pdfium gives for a hyphen at the end of a line, and the soft one.
_HYPHENS = ("\x02", "\ufffe", _SOFT_HYPHEN)
_CID = re.compile(r"\(cid:\d{1,6}\)")
_UNTITLED = re.compile(
    r"\W*(?:untitled|anonymous|unspecified|document ?\d*|title|slide 1|powerpoint presentation|microsoft word\b.*"
    r"|.*\.(?:docx?|pptx?|pdf|indd|tex|dvi|qxd|xlsx?|html?|md|rst))\W*",
    re.IGNORECASE,
)
_GUTTER_TRIES = 60
_LEAST_COLUMN_LINES = 4
_LEAST_COLUMN_LETTERS = 18
_MOST_SPANNING = 0.25
_MOST_RUNNING = 2
"""Paragraphs below or above the text of a page that may be its number, its running head or a note."""
_FULL_LINE = 0.85
_PARAGRAPH_GAP = 1.45
_OTHER_SIZE = 1.25
# Flags of annotations that are not shown, and of fields whose letters are not.
_HIDDEN = pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW
_PASSWORD = 1 << 13
_WRITTEN_FIELDS = (
    pdfium.FPDF_FORMFIELD_TEXTFIELD, pdfium.FPDF_FORMFIELD_COMBOBOX, pdfium.FPDF_FORMFIELD_LISTBOX
)  # fmt: skip
_NOTE_LINE = 14.0
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_WORD_END = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*$")
# Raised after digits and units it is a power; after words, a note.
_RAISED_AFTER = re.compile(r"\d$|(?:^|[\d\s(/·])[kcdmµμn]?[mMgs]$")
_CLOSING = ".,;:)]"
_SMALL, _RAISED, _TOUCHING, _SPACE = 0.75, 0.3, 0.25, 0.1
"""Shares of the height of letters next to each other: what is raised, and the gaps that touching letters leave."""
_COMPOUND = re.compile(r"[^\W\d_]-(?:[^\W\d_]+-)*[^\W\d_]{1,3}.$|\b(?:well|self|half).$", re.IGNORECASE)
_LIST_MARK = re.compile(r"(?:[-•‣▪*–]|\d{1,3}[.)]|[a-z][.)])\s")


@dataclass(frozen=True, slots=True)
class _Line:
    """A run of text, or a table as Markdown, and its box, in points from the lower left corner."""

    left: float
    bottom: float
    right: float
    top: float
    text: str
    is_table: bool = False

    @property
    def height(self) -> float:
        return self.top - self.bottom


_Part = list[_Line] | str
"""The lines of a paragraph, or a table."""


def read_pdf(content: bytes, seconds: float) -> ParsedDocument:
    """Kept text and blocks of the pages that ``seconds`` of the processor are enough for; the title is the metadata's.

    Raises:
        ValueError: it is damaged or protected, or its fonts do not say what their characters are.
    """
    started = time.process_time()
    left_out: list[str] = []
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise ValueError("it needs a password") from error
        content = repaired_pdf(content)
        if not content:
            raise ValueError(f"it is damaged: {error}") from error
        document = pypdfium2.PdfDocument(content)
        left_out.append(f"all but pages 1 to {len(document)}: the file is damaged")
    _open_form(document)
    tables = _Tables(content)
    read_pages: dict[int, list[_Part]] = {}
    outline = _outline(document)
    unmapped = 0
    pages = len(document)
    for number in range(pages):
        if time.process_time() - started > seconds:
            left_out.append(f"pages {number + 1} to {pages}: over corpus.conversion_seconds")
            break
        try:
            page = document[number]
            text = page.get_textpage()
            if _is_unmapped(text):
                unmapped += 1
                left_out.append(f"page {number + 1}: its fonts do not say what their characters are")
                continue
            turns = _turns(page, text)
            notes = [_turned(note, turns) for note in _notes(page, document.formenv)]
            drawn = tables.of(page, number, turns, notes)
            runs = [*(_turned(run, turns) for run in _runs(text)), *notes]
            free = [run for run in runs if not any(_is_within(run, table) for table in drawn)]
            read_pages[number] = _parts(_in_order([*free, *drawn]), outline.get(number, {}))
        except pypdfium2.PdfiumError as error:
            left_out.append(f"page {number + 1}: {error}")
    draft = _written(read_pages, outline)
    read = draft.reading()
    if unmapped and draft.is_empty:
        raise ValueError(f"the fonts of its {unmapped} pages do not say what their characters are")
    if len(_CID.findall(read.text)) * len("(cid:99)") > _UNMAPPED_SHARE * len(read.text) > 0:
        raise ValueError("its fonts do not say what their characters are: (cid:...)")
    named = clean_title(document.get_metadata_dict().get("Title") or "")
    title = "" if _UNTITLED.fullmatch(named) else named
    return ParsedDocument(title or first_heading(read.blocks), read.text, read.blocks, tuple(left_out))


def _open_form(document: Any) -> None:  # noqa: ANN401 - pypdfium2's
    """Have pdfium read the file's form, where it has one that is not damaged."""
    try:
        document.init_forms()
    except pypdfium2.PdfiumError:
        return


def _outline(document: Any) -> dict[int, dict[str, int]]:  # noqa: ANN401 - pypdfium2's
    """Titles in the outline with their levels, by page."""
    found: dict[int, dict[str, int]] = {}
    try:
        for entry in document.get_toc(max_depth=15):
            place = entry.get_dest()
            if place is not None and place.get_index() is not None:
                found.setdefault(place.get_index(), {}).setdefault(_letters(entry.get_title()), entry.level + 1)
    except (pypdfium2.PdfiumError, UnicodeDecodeError):
        return found
    return found


def _letters(text: str) -> str:
    return "".join(letter for letter in clean_text(text).lower() if letter.isalnum())


def _is_unmapped(text: Any) -> bool:  # noqa: ANN401
    """True where the characters of a page are numbers of glyphs."""
    size = text.count_chars()
    places = range(0, size, max(1, size // _SAMPLED_LETTERS))
    wrong = sum(pdfium.FPDFText_HasUnicodeMapError(text, place) == 1 for place in places)
    return bool(wrong > _UNMAPPED_SHARE * len(places))


def _turns(page: Any, text: Any) -> int:  # noqa: ANN401
    """How many quarters clockwise a page is turned for most of its letters to be upright."""
    size = text.count_chars()
    places = range(0, size, max(1, size // _TURNED_LETTERS))
    found: Counter[int] = Counter()
    for place in places:
        angle = pdfium.FPDFText_GetCharAngle(text, place)
        if angle >= 0 and chr(pdfium.FPDFText_GetUnicode(text, place)).isalnum():
            half = 2 if pdfium.FPDFText_GetFontSize(text, place) < 0 else 0  # a size below 0 is half a turn
            found[(half - round(angle / (math.pi / 2))) % 4] += 1
    return found.most_common(1)[0][0] if found else page.get_rotation() // 90


def _is_oblique(text: Any, box: tuple[float, float, float, float]) -> bool:  # noqa: ANN401
    """True where the letter in the middle of a box stands at no right angle to the page."""
    left, bottom, right, top = box
    place = text.get_index((left + right) / 2, (bottom + top) / 2, (right - left) / 2, (top - bottom) / 2)
    angle = pdfium.FPDFText_GetCharAngle(text, place) if place is not None else 0.0
    return bool(abs(angle / (math.pi / 2) - round(angle / (math.pi / 2))) > _OBLIQUE)


def _turned(box: _Line, turns: int) -> _Line:
    """The box with the page turned clockwise about the point 0, 0 by so many quarters."""
    for _ in range(turns):
        box = _Line(box.bottom, -box.right, box.top, -box.left, box.text)
    return box


def _notes(page: Any, form: Any) -> list[_Line]:  # noqa: ANN401
    """What is filled into the fields of a form, and notes written onto the page, where they are shown."""
    found = []
    for number in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, number)
        if not annotation:
            continue
        box = pdfium.FS_RECTF()
        if not pdfium.FPDFAnnot_GetFlags(annotation) & _HIDDEN and pdfium.FPDFAnnot_GetRect(annotation, box):
            lines = _note(annotation, form).split("\n")
            height = abs(box.top - box.bottom)
            is_one_line = len(lines) == 1 and height <= 2 * _NOTE_LINE
            size = height if is_one_line else min(height / len(lines), _NOTE_LINE)
            tops = [max(box.top, box.bottom) - size * place for place in range(len(lines))]
            found += [_Line(box.left, top - size, box.right, top, line) for top, line in zip(tops, lines, strict=True)]
        pdfium.FPDFPage_CloseAnnot(annotation)
    return [line for line in found if line.text.strip()]


def _note(annotation: Any, form: Any) -> str:  # noqa: ANN401
    """The text of a field or a note, with its line ends; empty for all others."""

    def string(key: bytes) -> str:
        return _utf16(lambda buffer, size: pdfium.FPDFAnnot_GetStringValue(annotation, key, buffer, size))

    kind = pdfium.FPDFAnnot_GetSubtype(annotation)
    said = ""
    if kind == pdfium.FPDF_ANNOT_FREETEXT:
        said = string(b"Contents")
    elif kind == pdfium.FPDF_ANNOT_WIDGET and form is None:  # a field that the file names no form for
        flags = ctypes.c_float()
        pdfium.FPDFAnnot_GetNumberValue(annotation, b"Ff", flags)
        is_text = pdfium.FPDFAnnot_GetValueType(annotation, b"V") == pdfium.FPDF_OBJECT_STRING
        said = string(b"V") if is_text and not int(flags.value) & _PASSWORD else ""
    elif kind == pdfium.FPDF_ANNOT_WIDGET:
        is_written = pdfium.FPDFAnnot_GetFormFieldType(form, annotation) in _WRITTEN_FIELDS
        if is_written and not pdfium.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD:
            said = _utf16(lambda buffer, size: pdfium.FPDFAnnot_GetFormFieldValue(form, annotation, buffer, size))
    return said.replace("\r\n", "\n").replace("\r", "\n")


def _utf16(read: Callable[[Any, int], int]) -> str:
    """What a function of pdfium writes into a buffer; without one it says the size that it needs."""
    size = read(None, 0)
    buffer = ctypes.create_string_buffer(size)
    read(ctypes.cast(buffer, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    return buffer.raw.decode("utf-16-le", "replace").rstrip("\0")


def _runs(text: Any) -> list[_Line]:  # noqa: ANN401
    """The runs of text on a page, without what stands across it, such as a watermark."""
    boxes = (box for box in map(text.get_rect, range(text.count_rects())) if not _is_oblique(text, box))
    runs = [
        _Line(box[0], box[1], box[2], box[3], text.get_text_bounded(*box).replace("\r\n", " ").strip("\t\r\n"))
        for box in boxes
    ]
    return [run for run in runs if run.text.strip()]


def _in_order(runs: list[_Line]) -> list[_Line]:
    """Lines as they are read: of columns the left one first, between what spans them."""
    gutter = _gutter(runs)
    if gutter is None:
        return _rows(runs)
    spanning = sorted((run for run in runs if run.left < gutter < run.right), key=lambda run: -run.top)
    ordered: list[_Line] = []
    rest = [run for run in runs if not run.left < gutter < run.right]
    for span in [*spanning, None]:
        above = [run for run in rest if span is None or run.bottom >= span.bottom]
        rest = [run for run in rest if span is not None and run.bottom < span.bottom]
        ordered += _in_order([run for run in above if run.right <= gutter])
        ordered += _in_order([run for run in above if run.left >= gutter])
        ordered += [span if span.is_table else _joined([span])] if span is not None else []
    return ordered


def _gutter(lines: Sequence[_Line]) -> float | None:
    """Where running text stands on both sides of a blank strip; None where it does not, as in a table."""
    runs = [line for line in lines if not line.is_table]
    if len(runs) < 2 * _LEAST_COLUMN_LINES:
        return None
    left, right = min(run.left for run in runs), max(run.right for run in runs)
    best, place = len(runs) * _MOST_SPANNING, None
    for step in range(_GUTTER_TRIES // 4, _GUTTER_TRIES * 3 // 4):
        x = left + (right - left) * step / _GUTTER_TRIES
        crossing = sum(line.left < x < line.right for line in lines)
        sides = [[run for run in runs if run.right <= x], [run for run in runs if run.left >= x]]
        if crossing < best and all(_is_column(side) for side in sides):
            best, place = crossing, x
    return place


def _is_column(runs: Sequence[_Line]) -> bool:
    return len(runs) >= _LEAST_COLUMN_LINES and median(len(run.text) for run in runs) >= _LEAST_COLUMN_LETTERS


def _rows(runs: Sequence[_Line]) -> list[_Line]:
    """Runs from top to bottom, those of one height joined from left to right."""
    rows: list[list[_Line]] = []
    for run in sorted(runs, key=lambda run: (-(run.top + run.bottom), run.left)):
        last = max(rows[-1], key=lambda other: other.height) if rows else None
        is_text = last is not None and not last.is_table and not run.is_table
        if last is not None and is_text and _is_level(*sorted((last, run), key=lambda other: other.height)):
            rows[-1].append(run)
        else:
            rows.append([run])
    return [row[0] if row[0].is_table else _joined(sorted(row, key=lambda run: run.left)) for row in rows]


def _is_level(small: _Line, tall: _Line) -> bool:
    return tall.bottom - 1 <= (small.top + small.bottom) / 2 <= tall.top + 1


def _joined(row: Sequence[_Line]) -> _Line:
    text = row[0].text
    for last, run in pairwise(row):
        raised = superscript(text, run.text.strip()) if _is_raised(run, last) and _RAISED_AFTER.search(text) else ""
        text = (
            f"{text}{raised or run.text}" if raised or _goes_on(last, run) else f"{text.rstrip()} {run.text.lstrip()}"
        )
    bottom, top = min(run.bottom for run in row), max(run.top for run in row)
    return _Line(row[0].left, bottom, max(run.right for run in row), top, text.strip())


def _goes_on(last: _Line, run: _Line) -> bool:
    """True where a run touches the one before it, as a letter in another font does, and no space parts them."""
    gap = run.left - last.right
    touches = abs(gap) < _SPACE * min(last.height, run.height) and not _is_raised(run, last)
    is_end = touches or (_is_raised(last, run) and run.text.lstrip()[0] in _CLOSING)
    return is_end and not last.text.endswith(" ") and not run.text.startswith(" ")


def _is_raised(run: _Line, other: _Line) -> bool:
    """True for small letters that touch another run, above its base line."""
    is_small = run.height < _SMALL * other.height and run.bottom > other.bottom + _RAISED * other.height
    gap = max(run.left, other.left) - min(run.right, other.right)
    return is_small and gap < _TOUCHING * other.height


def _parts(lines: list[_Line], outline: dict[str, int]) -> list[_Part]:
    """The paragraphs and tables of a page."""
    return [part[0].text if part[0].is_table else part for part in _paragraphs(lines, outline)]


def _written(pages: dict[int, list[_Part]], outline: dict[int, dict[str, int]]) -> Draft:
    """The parts of all pages; a word that a page's end divides is whole, on the first of the two pages."""
    for number in reversed(pages):
        _join_pages(pages.get(number - 1, []), pages[number])
    lines = (line.text for parts in pages.values() for part in parts if not isinstance(part, str) for line in part)
    words = {word for line in lines for word in _WORD.findall(line.lower())}
    draft = Draft()
    for number, part in ((number, part) for number, parts in pages.items() for part in parts):
        text = part if isinstance(part, str) else _text(part, words)
        level = 0 if isinstance(part, str) else outline.get(number, {}).get(_letters(text), 0)
        if level:
            draft.add_heading(level, text)
        else:
            draft.add("table" if isinstance(part, str) else "paragraph", text)
    return draft


def _join_pages(before: list[_Part], after: list[_Part]) -> None:
    """Move what goes on with a divided word to it; running heads and feet may be between the two."""
    for first in before[: -_MOST_RUNNING - 2 : -1]:
        for second in after[: _MOST_RUNNING + 1]:
            if not isinstance(first, str) and not isinstance(second, str) and _is_divided(first[-1], second[0]):
                first.extend(second)
                after.remove(second)
                return


def _is_divided(line: _Line, after: _Line) -> bool:
    """True where a line ends inside of a word that the one after it goes on with."""
    ends = line.text.endswith((*_HYPHENS, "-")) and line.text[-2:-1].isalpha()
    return ends and after.text[:1].islower() and not _LIST_MARK.match(after.text)


def _is_within(line: _Line, box: _Line) -> bool:
    x, y = (line.left + line.right) / 2, (line.bottom + line.top) / 2
    return box.left <= x <= box.right and box.bottom <= y <= box.top


def _paragraphs(lines: Sequence[_Line], outline: dict[str, int]) -> Iterator[list[_Line]]:
    """Lines that follow each other closely in letters of one size; a title of the outline stands alone."""
    current: list[_Line] = []
    inner = [(above, below) for above, below in pairwise(lines) if not above.is_table and not below.is_table]
    gaps = [above.bottom - below.bottom for above, below in inner]
    pitch = median([gap for gap in gaps if gap > 0] or [12])
    for line in lines:
        if current:
            last = current[-1]
            gap = last.bottom - line.bottom
            apart = not -pitch / 2 <= gap <= _PARAGRAPH_GAP * pitch and not _is_divided(last, line)
            sizes = sorted((max(line.height, 1), max(last.height, 1)))
            titled = _letters(line.text) in outline or _letters(last.text) in outline
            other = sizes[1] > _OTHER_SIZE**2 * sizes[0]
            alone = line.is_table or last.is_table
            if alone or apart or other or titled or _LIST_MARK.match(line.text):
                yield current
                current = []
        current.append(line)
    if current:
        yield current


def _text(lines: Sequence[_Line], words: Collection[str]) -> str:
    """A paragraph on one line where its lines fill the column; others stay lines.

    The hyphen of a divided word goes; one before a capital or a digit stays, as in ``Jean-Luc`` and ``pages 3-5``, and
    so does one in a word that has more of them, as in ``state-of-the-art``. The other ``words`` of the document decide
    where it has the word on a line elsewhere.
    """
    right = max(line.right for line in lines)
    left = min(line.left for line in lines)
    text, full = "", False
    for line in lines:
        said = line.text
        if text.endswith((*_HYPHENS, "-")):
            before = text[-2:-1]
            is_divided = text.endswith(_SOFT_HYPHEN) or (
                before.isalpha() and said[:1].islower() and _is_one_word(text, said, words)
            )
            text = text[:-1] + ("" if is_divided else "-" if before.isalnum() else "- ")
        elif text:
            text += " " if full else "\n"
        text += said
        full = line.right - left >= _FULL_LINE * (right - left)
    return text.rstrip("".join(_HYPHENS))


def _is_one_word(text: str, after: str, words: Collection[str]) -> bool:
    """True where the hyphen at the end of a text only divides a word that the text after it goes on with."""
    start, end = _WORD_END.search(text[:-1].lower()), _WORD.match(after.lower())
    if start is None or end is None:
        return False
    if f"{start[0]}-{end[0]}" in words:
        return False
    return start[0] + end[0] in words or not _COMPOUND.search(text)


class _Tables:
    """Tables that rules are drawn around; pdfplumber, which is slow, opens only what has rules."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._document: Any = None

    def of(self, page: Any, number: int, turns: int, notes: Sequence[_Line]) -> list[_Line]:  # noqa: ANN401
        """Each table as Markdown with the ``notes`` in its cells; none of what is shown askew."""
        rules = sum(1 for _ in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_PATH], max_depth=2))
        if not _LEAST_RULES <= rules <= _MOST_RULES or page.get_rotation() != 90 * turns:
            return []
        self._document = self._document or pdfplumber.open(io.BytesIO(self._content))
        drawn = self._document.pages[number]
        found = []
        for table in drawn.find_tables():
            rows = []
            for texts, row in zip(table.extract(), table.rows, strict=True):
                boxes = [box and _placed(drawn, box, turns) for box in row.cells]
                rows.append([_cell(said, box, notes) for said, box in zip(texts, boxes, strict=True)])
            width = max((len(row) for row in rows), default=0)
            filled = sum(bool(cell) for row in rows for cell in row)
            if width > 1 and len(rows) > 1 and 2 * filled >= width * len(rows):
                lines = [f"| {' | '.join(row)} |" for row in rows]
                markdown = "\n".join([lines[0], f"|{' --- |' * width}", *lines[1:]])
                found.append(replace(_placed(drawn, table.bbox, turns), text=markdown, is_table=True))
        drawn.close()
        return found


def _placed(drawn: Any, box: Sequence[float], turns: int) -> _Line:  # noqa: ANN401 - pdfplumber's
    """A box of pdfplumber's, from the upper left corner of the page as it is shown, where pdfium has it."""
    left, top, right, bottom = box
    x0, y0, x1, y1 = drawn.page_obj.mediabox
    corner = _turned(_Line(x0, y0, x1, y1, ""), turns)
    x, y = corner.left - drawn.bbox[0], corner.bottom + drawn.bbox[3]
    return _Line(x + left, y - bottom, x + right, y - top, "")


def _cell(said: str | None, box: _Line | None, notes: Sequence[_Line]) -> str:
    written = [note.text for note in notes if box and _is_within(note, box)]
    return " ".join(" ".join([said or "", *written]).split()).replace("|", r"\|")
