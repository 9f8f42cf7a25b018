"""Single features of PDF files, each in a file drawn for it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest

pytest.importorskip("pypdfium2")

from embed_pipeline.corpus.pdf import read_pdf

# A font that has the ligatures which typesetters write.
_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding << /Differences [174 /fi 175 /fl] >> >>"
_NAMELESS = (
    b"<< /Type /Font /Subtype /Type0 /BaseFont /ABCDEF+Own /Encoding /Identity-H /DescendantFonts [<< /Type /Font "
    b"/Subtype /CIDFontType2 /BaseFont /ABCDEF+Own /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) "
    b"/Supplement 0 >> >>] >>"
)
LEFT = [f"left line {number} of the story that goes down" for number in range(8)]
RIGHT = [f"right line {number} of the story that goes on" for number in range(8)]


def text(x: float, y: float, said: str, size: float = 10) -> str:
    """Drawing a line of text."""
    return f"BT /F1 {size} Tf {x} {y} Td ({said}) Tj ET"


def lines(x: float, top: float, said: Sequence[str]) -> list[str]:
    return [text(x, top - 12 * number, line) for number, line in enumerate(said)]


def pdf(
    *pages: Sequence[str], title: str = "", outline: Sequence[tuple[str, int, int]] = (), font: bytes = _FONT
) -> bytes:
    """A file of pages that are drawn; ``outline``: title, page and number of the entry above it, -1 for none."""
    objects: dict[int, bytes] = {1: b"", 2: b"", 3: font, 4: f"<< /Title ({title}) >>".encode()}
    kids = []
    for drawn in pages:
        content = zlib.compress("\n".join(drawn).encode("latin-1"))
        number = len(objects) + 1
        objects[number] = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
        objects[number + 1] = (
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % number
        )
        kids.append(number + 1)
    objects[2] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(b"%d 0 R" % kid for kid in kids))
    root, first = len(objects) + 1, len(objects) + 2
    places = [first + number for number in range(len(outline))]
    for number, (name, page, above) in enumerate(outline):
        parent = places[above] if above >= 0 else root
        brothers = [n for n, (_, _, other) in enumerate(outline) if other == above]
        after = [n for n in brothers if n > number]
        below = [n for n, (_, _, other) in enumerate(outline) if other == number]
        links = b"/Next %d 0 R " % places[after[0]] if after else b""
        links += (
            b"/First %d 0 R /Last %d 0 R /Count %d " % (places[below[0]], places[below[-1]], len(below))
            if below
            else b""
        )
        objects[places[number]] = b"<< /Title (%s) /Parent %d 0 R /Dest [%d 0 R /Fit] %s>>" % (
            name.encode(), parent, kids[page], links,
        )  # fmt: skip
    top = [places[n] for n, (_, _, above) in enumerate(outline) if above < 0]
    objects[root] = b"<< /Type /Outlines /First %d 0 R /Last %d 0 R >>" % (top[0], top[-1]) if top else b"null"
    named = b"/Outlines %d 0 R " % root if top else b""
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R %s>>" % named
    body, offsets = b"%PDF-1.7\n", []
    for number in sorted(objects):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, objects[number])
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    tail = (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    )
    return body + tail % (size, table, size, len(body))


def said(content: bytes) -> str:
    return " ".join(read_pdf(content, 60).text.split())


def test_of_two_columns_the_left_one_is_read_first() -> None:
    rows = [one for pair in zip(lines(72, 700, LEFT), lines(330, 700, RIGHT), strict=True) for one in pair]
    head = text(72, 740, "A heading that goes over both of the columns of this page and more", 14)
    foot = text(72, 560, "A line below both of the columns that goes over the page to its end, and on")
    found = said(pdf([foot, *rows, head]))
    order = [found.index(part) for part in ("A heading", LEFT[0], LEFT[7], RIGHT[0], RIGHT[7], "A line below")]
    assert order == sorted(order)


def test_short_cells_side_by_side_are_rows() -> None:
    cells = [text(72 + 160 * column, 700 - 12 * row, f"r{row}c{column}") for column in range(3) for row in range(6)]
    assert said(pdf(cells)) == " ".join(f"r{row}c{column}" for row in range(6) for column in range(3))


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (["The con\xaeguration of the \xafoat is a wide line"], "The configuration of the float is a wide line"),
        (["A reading of the instru-", "mentation is nine bar."], "A reading of the instrumentation is nine bar."),
        (["It is described on pages 3-", "5 of the manual."], "It is described on pages 3-5 of the manual."),
        (["The valve was named after Jean-", "Luc, who drew it."], "The valve was named after Jean-Luc, who drew it."),
        (["The valve opens early -", "or does not open at all."], "The valve opens early - or does not open at all."),
    ],
)  # fmt: skip
def test_words_are_whole(drawn: list[str], expected: str) -> None:
    assert said(pdf(lines(72, 700, drawn))) == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("The pump handbook", "The pump handbook"),
        ("Microsoft Word - draft3.doc", "Care"),
        ("untitled", "Care"),
        ("report_final.indd", "Care"),
        ("", "Care"),
    ],
)
def test_the_title_is_that_of_the_metadata_unless_a_program_made_it_up(title: str, expected: str) -> None:
    page = [text(72, 740, "Care", 16), *lines(72, 700, LEFT)]
    assert read_pdf(pdf(page, title=title, outline=[("Care", 0, -1)]), 60).title == expected


def test_headings_are_those_of_the_outline_with_its_levels() -> None:
    first = [text(72, 740, "Care of pumps", 16), text(72, 712, "Cleaning", 12), *lines(72, 690, LEFT)]
    second = [text(72, 740, "44.98", 20), text(72, 700, "Parts", 16), *lines(72, 670, RIGHT)]
    outline = [("Care of pumps", 0, -1), ("Cleaning", 0, 0), ("Parts", 1, -1)]
    read = read_pdf(pdf(first, second, outline=outline), 60)
    headings = [(block.level, block.text) for block in read.blocks if block.kind == "heading"]
    assert headings == [(1, "Care of pumps"), (2, "Cleaning"), (1, "Parts")]
    assert "44.98" in read.text


def test_a_table_with_rules_keeps_its_rows() -> None:
    rows = [["part", "bar", "note"], ["valve", "3", "opens | closes"], ["pump", "9", "runs"]]
    rules = [f"{72 + 120 * n} 700 m {72 + 120 * n} 640 l S" for n in range(4)]
    rules += [f"72 {700 - 20 * n} m 432 {700 - 20 * n} l S" for n in range(4)]
    cells = [text(76 + 120 * column, 686 - 20 * row, rows[row][column]) for column in range(3) for row in range(3)]
    read = read_pdf(pdf([*rules, *cells, *lines(72, 600, LEFT)]), 60)
    expected = "| part | bar | note |\n| --- | --- | --- |\n| valve | 3 | opens \\| closes |\n| pump | 9 | runs |\n"
    assert read.text.startswith(expected)
    assert read.blocks[0].kind == "table"


def test_numbers_of_glyphs_are_no_text() -> None:
    drawn = ["BT /F1 10 Tf 72 700 Td <00390044004500460047004800490050> Tj ET"]
    with pytest.raises(ValueError, match="do not say what their characters are"):
        read_pdf(pdf(drawn, font=_NAMELESS), 60)
    listed = lines(72, 700, ["\\(cid:57\\)\\(cid:68\\)\\(cid:12\\) " * 4] * 9)
    with pytest.raises(ValueError, match=r"\(cid:\.\.\.\)"):
        read_pdf(pdf(listed), 60)


def test_pages_beyond_the_time_are_named() -> None:
    read = read_pdf(pdf(lines(72, 700, LEFT), lines(72, 700, RIGHT)), -1)
    assert (read.text, read.left_out) == ("", ("pages 1 to 2: over corpus.conversion_seconds",))
