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
PARTS = [["part", "bar", "note"], ["valve", "3", "opens | closes"], ["pump", "9", "runs"]]
PARTS_TABLE = "| part | bar | note |\n| --- | --- | --- |\n| valve | 3 | opens \\| closes |\n| pump | 9 | runs |\n"
RIGHT = [f"right line {number} of the story that goes on" for number in range(8)]


def text(x: float, y: float, said: str, size: float = 10) -> str:
    """Drawing a line of text."""
    return f"BT /F1 {size} Tf {x} {y} Td ({said}) Tj ET"


def lines(x: float, top: float, said: Sequence[str]) -> list[str]:
    return [text(x, top - 12 * number, line) for number, line in enumerate(said)]


def pdf(
    *pages: Sequence[str],
    title: str = "",
    outline: Sequence[tuple[str, int, int]] = (),
    font: bytes = _FONT,
    box: str = "[0 0 612 792]",
    root_keys: str = "",
) -> bytes:
    """A file of pages that are drawn.

    Args:
        pages: what is drawn on each.
        title: of the metadata.
        outline: title, page and number of the entry above it, -1 for none.
        font: of all letters.
        box: the media box of each page, and what follows it in the page's dictionary.
        root_keys: what the catalog holds besides its own.
    """
    objects: dict[int, bytes] = {1: b"", 2: b"", 3: font, 4: f"<< /Title ({title}) >>".encode()}
    kids = []
    for drawn in pages:
        content = zlib.compress("\n".join(drawn).encode("latin-1"))
        number = len(objects) + 1
        objects[number] = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
        objects[number + 1] = (
            b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (box.encode(), number)
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
    objects[1] = b"<< /Type /Catalog /Pages 2 0 R %s%s >>" % (named, root_keys.encode())
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
        (["It is a state-of-the-", "art pump of its kind."], "It is a state-of-the-art pump of its kind."),
        (["This is a well-", "known fault of pumps."], "This is a well-known fault of pumps."),
        (["It has a long-stand-", "ing fault of the pump."], "It has a long-standing fault of the pump."),
        (["The valve opens early -", "or does not open at all."], "The valve opens early - or does not open at all."),
    ],
)  # fmt: skip
def test_words_are_whole(drawn: list[str], expected: str) -> None:
    assert said(pdf(lines(72, 700, drawn))) == expected


@pytest.mark.parametrize("frame", [[], [text(72, 750, "The pump handbook"), text(300, 40, "Page")]])
def test_a_word_that_a_page_ends_in_is_whole(frame: list[str]) -> None:
    first = lines(72, 700, [*LEFT, "and it ends with the instru-"])
    second = lines(72, 700, ["mentation of a pump", *RIGHT, "that has a con-"])
    third = lines(72, 700, ["troller, and with more of it.", *RIGHT])
    found = said(pdf(*([*frame, *page] for page in (first, second, third))))
    assert "it ends with the instrumentation of a pump right line 0" in found
    assert "that has a controller, and with more of it. right line 0" in found
    assert found.count("handbook") == found.count("Page") == (3 if frame else 0)


def test_a_word_that_a_column_ends_in_is_whole() -> None:
    left = lines(72, 700, [*LEFT, "the left column ends with instru-"])
    assert "instrumentation, and" in said(pdf([*left, *lines(330, 700, ["mentation, and the right one", *RIGHT])]))


@pytest.mark.parametrize(
    ("end", "start"), [("a pump-", "Valves"), ("a pump -", "valves"), ("a pump-", "a. valves"), ("a pump", "valves")]
)
def test_pages_without_a_divided_word_stay_apart(end: str, start: str) -> None:
    found = read_pdf(pdf(lines(72, 700, [*LEFT, end]), lines(72, 700, [start, *RIGHT])), 60).text
    assert f"{end}\n\n{start}\n" in found


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


def ruled(top: float, rows: Sequence[Sequence[str]]) -> list[str]:
    """Drawing a table of three rows and columns."""
    rules = [f"{72 + 120 * n} {top} m {72 + 120 * n} {top - 60} l S" for n in range(4)]
    rules += [f"72 {top - 20 * n} m 432 {top - 20 * n} l S" for n in range(4)]
    cells = [text(76 + 120 * column, top - 14 - 20 * row, rows[row][column]) for column in range(3) for row in range(3)]
    return [*rules, *cells]


def test_a_table_with_rules_keeps_its_rows() -> None:
    read = read_pdf(pdf([*ruled(700, PARTS), *lines(72, 600, LEFT)]), 60)
    assert read.text.startswith(PARTS_TABLE)
    assert read.blocks[0].kind == "table"


@pytest.mark.parametrize(
    ("degrees", "upright"),
    [(90, "0 1 -1 0 612 0 cm"), (180, "-1 0 0 -1 612 792 cm"), (270, "0 -1 1 0 0 792 cm"), (-90, "0 -1 1 0 0 792 cm")],
)
def test_a_page_that_is_turned_is_read_as_it_is_shown(degrees: int, upright: str) -> None:
    drawn = [*lines(72, 580, LEFT), *ruled(470, PARTS), *lines(72, 380, RIGHT)]
    shifted = f"[100 200 712 992] /CropBox [110 210 702 982] /Rotate {degrees}"
    turned = read_pdf(pdf(["1 0 0 1 100 200 cm", upright, *drawn], box=shifted), 60)
    assert turned == read_pdf(pdf(drawn), 60)
    assert turned.text.split("\n\n")[1] == PARTS_TABLE.strip()


@pytest.mark.parametrize(
    ("drawn", "box"),
    [
        (lines(72, 580, LEFT), "[0 0 612 792] /Rotate 90"),
        (lines(72, 580, LEFT), "[0 0 612 792] /Rotate 180"),
        (["0 1 -1 0 612 0 cm", *lines(72, 580, LEFT)], "[0 0 612 792]"),
        (
            [f"BT /F1 -10 Tf -1 0 0 -1 72 {700 - 12 * n} Tm ({line}) Tj ET" for n, line in enumerate(LEFT)],
            "[0 0 612 792]",
        ),
    ],
)
def test_lines_that_are_shown_askew_are_in_order(drawn: list[str], box: str) -> None:
    assert said(pdf(drawn, box=box)) == " ".join(LEFT)


@pytest.mark.parametrize("form", ["/AcroForm << /Fields [] >>", ""])
def test_filled_fields_and_notes_on_the_page_are_read_in_their_places(form: str) -> None:
    field = "<< /Type /Annot /Subtype /Widget /FT /Tx"
    annotations = [
        f"{field} /T (name) /V (Ada | Byron) /Rect [150 735 300 755] >>",
        f"{field} /T (bar) /V (4 bar) /Rect [196 662 300 678] >>",
        f"{field} /T (hidden) /F 2 /V (hidden) /Rect [150 600 300 620] >>",
        f"{field} /T (password) /Ff 8192 /V (secret) /Rect [150 600 300 620] >>",
        "<< /Type /Annot /Subtype /Widget /FT /Btn /T (push) /V /Yes /Rect [150 600 300 620] >>",
        "<< /Type /Annot /Subtype /FreeText /Contents (Checked.\rAgain.) /Rect [72 400 300 440] >>",
    ]
    rows = [PARTS[0], ["valve", "", "opens"], PARTS[2]]
    page = [text(72, 741, "Name:"), *ruled(700, rows), *lines(72, 600, LEFT)]
    read = read_pdf(pdf(page, box=f"[0 0 612 792] /Annots [{' '.join(annotations)}]", root_keys=form), 60)
    table = "| part | bar | note |\n| --- | --- | --- |\n| valve | 4 bar | opens |\n| pump | 9 | runs |"
    parts = read.text.strip().split("\n\n")
    assert parts == ["Name: Ada | Byron", table, " ".join(LEFT), "Checked. Again."]


def test_numbers_of_glyphs_are_no_text() -> None:
    drawn = ["BT /F1 10 Tf 72 700 Td <00390044004500460047004800490050> Tj ET"]
    with pytest.raises(ValueError, match="do not say what their characters are"):
        read_pdf(pdf(drawn, font=_NAMELESS), 60)
    listed = lines(72, 700, ["\\(cid:57\\)\\(cid:68\\)\\(cid:12\\) " * 4] * 9)
    with pytest.raises(ValueError, match=r"\(cid:\.\.\.\)"):
        read_pdf(pdf(listed), 60)


def test_what_stands_across_a_page_is_no_text_of_it() -> None:
    mark = "BT /F1 60 Tf 0.7 0.7 -0.7 0.7 150 300 Tm (DRAFT) Tj ET"
    slanted = "BT /F1 10 Tf 1 0.02 -0.02 1 72 500 Tm (a line that is scanned askew) Tj ET"
    found = said(pdf([mark, *lines(72, 700, LEFT), slanted]))
    assert "DRAFT" not in found
    assert "a line that is scanned askew" in found


def test_pages_beyond_the_time_are_named() -> None:
    read = read_pdf(pdf(lines(72, 700, LEFT), lines(72, 700, RIGHT)), -1)
    assert (read.text, read.left_out) == ("", ("pages 1 to 2: over corpus.conversion_seconds",))


def grid(x: float, top: float, rows: Sequence[Sequence[str]], width: float) -> list[str]:
    """Drawing a table with rules around its cells."""
    right, bottom = x + width * len(rows[0]), top - 20 * len(rows)
    across = [f"{x} {top - 20 * n} m {right} {top - 20 * n} l S" for n in range(len(rows) + 1)]
    down = [f"{x + width * n} {top} m {x + width * n} {bottom} l S" for n in range(len(rows[0]) + 1)]
    cells = [
        text(x + 4 + width * column, top - 14 - 20 * number, cell)
        for number, row in enumerate(rows)
        for column, cell in enumerate(row)
    ]
    return [*across, *down, *cells]


def test_text_and_tables_alternate_as_on_the_page() -> None:
    parts = [[f"{place} line {number} of the text" for number in range(3)] for place in ("first", "middle", "last")]
    drawn = [*lines(72, 740, parts[0]), *grid(72, 690, PARTS, 120), *lines(72, 610, parts[1])]
    found = read_pdf(pdf([*drawn, *grid(72, 560, PARTS, 120), *lines(72, 480, parts[2])]), 60).text
    first, middle, last = (" ".join(part) for part in parts)
    assert found == f"{first}\n\n{PARTS_TABLE}\n{middle}\n\n{PARTS_TABLE}\n{last}\n"


def test_a_table_stays_in_its_column() -> None:
    below = [[line.replace("line", "lower line") for line in side] for side in (LEFT, RIGHT)]
    drawn = [*lines(72, 740, LEFT), *grid(72, 640, PARTS, 70), *lines(72, 560, below[0])]
    drawn += [*lines(330, 740, RIGHT), *grid(330, 640, PARTS, 70), *lines(330, 560, below[1])]
    blocks = [part.replace("\n", " ") for part in read_pdf(pdf(drawn), 60).text.strip().split("\n\n")]
    table = PARTS_TABLE.strip().replace("\n", " ")
    assert blocks == [" ".join(LEFT), table, " ".join(below[0]), " ".join(RIGHT), table, " ".join(below[1])]


def test_a_power_belongs_to_its_unit_and_a_note_does_not_to_its_word() -> None:
    raised = "/F1 6 Tf 4 Ts ({}) Tj 0 Ts /F1 10 Tf"
    drawn = f"BT /F1 10 Tf 72 700 Td (It has 10 m) Tj {raised.format(2)} ( of floor, see the word)"
    drawn += f" Tj {raised.format(1)} ET"
    assert said(pdf([drawn])) == "It has 10 m^2 of floor, see the word 1"


def test_what_the_document_says_elsewhere_decides_on_a_hyphen() -> None:
    drawn = ["A pump of high-pressure steel and the waterproof kind of it, in long lines here.", "It is a high-"]
    drawn += ["pressure pump, and a self-", "ish one with a water-", "proof seal."]
    assert said(pdf(lines(72, 700, drawn))).endswith(
        "It is a high-pressure pump, and a self-ish one with a waterproof seal."
    )


@pytest.mark.parametrize("share", [0.95, 0.6])
def test_the_whole_pages_of_a_file_that_breaks_off_are_read(share: float) -> None:
    whole = pdf(*[lines(72, 700, [f"This is page {number} of it"]) for number in range(5)])
    read = read_pdf(whole[: int(share * len(whole))], 60)
    pages = 5 if share > 0.9 else 3
    assert read.text == "\n".join(f"This is page {number} of it\n" for number in range(pages))
    assert read.left_out == (f"all but pages 1 to {pages}: the file is damaged",)


def test_pages_in_compressed_objects_are_read_where_a_file_breaks_off() -> None:
    objects = {1: _FONT}
    for number in range(2):
        content = zlib.compress(text(72, 700, f"This is page {number} of it").encode())
        objects[2 + number] = b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
    pages = [
        b"<< /Type /Page /MediaBox [0 0 612 792] /Contents %d 0 R /Resources << /Font << /F1 1 0 R >> >> >>" % number
        for number in (2, 3)
    ]
    head = b"10 0 11 %d " % (len(pages[0]) + 1)
    packed = zlib.compress(head + b" ".join(pages))
    objects[4] = b"<< /Type /ObjStm /N 2 /First %d /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (
        len(head), len(packed), packed,
    )  # fmt: skip
    whole = b"%PDF-1.5\n" + b"".join(b"%d 0 obj\n%s\nendobj\n" % item for item in objects.items())
    assert said(whole + b"5 0 obj\n<< /Type /Ob") == "This is page 0 of it This is page 1 of it"


def test_letters_in_another_font_are_no_word_of_their_own() -> None:
    drawn = "BT /F1 10 Tf 72 700 Td (The pump) Tj /F1 10.5 Tf (s are here, ) Tj /F1 10 Tf (and there) Tj ET"
    assert said(pdf([drawn])) == "The pumps are here, and there"
