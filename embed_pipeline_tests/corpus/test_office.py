"""Single features of Word files, each in a file written for it."""

from __future__ import annotations

import io
import zipfile

import pytest

pytest.importorskip("mammoth")
pytest.importorskip("pptx")

from lxml import etree
from pptx import Presentation
from pptx.chart.data import CategoryChartData, XyChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from embed_pipeline.corpus.office import UnpackedSizeError, read_slides, read_word
from embed_pipeline.text.blocks import ParsedDocument

_MAIN = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml"
_COMPATIBLE = "http://schemas.openxmlformats.org/markup-compatibility/2006"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_NOTED = (
    '<w:p><w:r><w:t>It opens at three bar.</w:t></w:r><w:r><w:footnoteReference w:id="1"/></w:r>'
    '<w:r><w:commentReference w:id="0"/></w:r></w:p>'
)
_PARTS = {
    "styles": "".join(
        f'<w:style w:type="paragraph" w:styleId="{key}"><w:name w:val="{name}"/>{of}</w:style>'
        for key, name, of in (
            ("1", "heading 1", '<w:pPr><w:outlineLvl w:val="0"/></w:pPr>'),
            ("2", "heading 2", ""),
            ("8", "heading 8", '<w:basedOn w:val="1"/>'),
            ("House", "ACME's Heading", '<w:basedOn w:val="2"/>'),
            ("Outlined", "Clause", '<w:basedOn w:val="8"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr>'),
            ("Body", "Body of ACME", '<w:basedOn w:val="1"/><w:pPr><w:outlineLvl w:val="9"/></w:pPr>'),
            ("Round", "Round", '<w:basedOn w:val="Round"/>'),
        )
    ),
    "comments": '<w:comment w:id="0" w:author="A"><w:p><w:r><w:t>Is it four?</w:t></w:r></w:p></w:comment>',
    "footnotes": '<w:footnote w:id="1"><w:p><w:r><w:t>Measured cold.</w:t></w:r></w:p></w:footnote>',
}


def word(body: str) -> bytes:
    """A Word file with a comment and a footnote to refer to."""
    overrides = "".join(
        f'<Override PartName="/word/{name}.xml" ContentType="{_WORD}.{kind}+xml"/>'
        for name, kind in (("document", "document.main"), *((part, part) for part in _PARTS))
    )
    main = f'<Relationship Id="r1" Type="{_RELATIONS}/officeDocument" Target="word/document.xml"/>'
    beside = "".join(
        f'<Relationship Id="r{n}" Type="{_RELATIONS}/{part}" Target="{part}.xml"/>' for n, part in enumerate(_PARTS)
    )
    relations = '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    files = {
        "[Content_Types].xml": f'<Types xmlns="{types}"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>{overrides}</Types>',
        "_rels/.rels": f"{relations}{main}</Relationships>",
        "word/_rels/document.xml.rels": f"{relations}{beside}</Relationships>",
        "word/document.xml": f'<w:document xmlns:w="{_MAIN}"><w:body>{body}</w:body></w:document>',
        **{f"word/{n}.xml": f'<w:{n} xmlns:w="{_MAIN}">{content}</w:{n}>' for n, content in _PARTS.items()},
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def read(body: str, *, comments: bool = False) -> ParsedDocument:
    return read_word(word(body), 1_000_000, comments=comments)


def paragraph(text: str, properties: str = "") -> str:
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def test_a_footnote_is_kept_and_a_comment_by_the_setting_alone() -> None:
    without, with_comments = read(_NOTED), read(_NOTED, comments=True)
    assert "It opens at three bar." in without.text
    assert "Measured cold." in without.text
    assert "Is it four?" not in without.text
    assert "Is it four?" in with_comments.text
    assert "Measured cold." in with_comments.text


def test_a_table_is_a_table_with_its_rows() -> None:
    cells = [["part", "bar"], ["valve", "3 | 4"], ["pump", "9"]]
    rows = "".join(f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>" for row in cells)
    found = read(f"{paragraph('Before.')}<w:tbl>{rows}</w:tbl>{paragraph('After.')}")
    assert [block.kind for block in found.blocks] == ["paragraph", "table", "paragraph"]
    assert "| part | bar |\n| --- | --- |\n| valve | 3 \\| 4 |\n| pump | 9 |" in found.text


def test_what_was_deleted_is_gone_and_what_was_inserted_stays() -> None:
    tracked = (
        "<w:p><w:r><w:t>It opens </w:t></w:r><w:del><w:r><w:delText>never</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t>early.</w:t></w:r></w:ins></w:p>"
    )
    assert read(tracked).text == "It opens early.\n"


def test_breaks_and_hyphens_of_words_own_are_readable() -> None:
    body = (
        "<w:p><w:r><w:t>A non</w:t><w:noBreakHyphen/><w:t>return valve instru</w:t><w:softHyphen/>"
        "<w:t>ment</w:t><w:tab/><w:t>nine</w:t></w:r></w:p>"
    )
    found = " ".join(read(body).text.split())
    assert "instrument" in found
    assert "valve" in found
    assert "ment nine" in found


def run(text: str, place: str = "") -> str:
    """A run of text; ``place``: superscript or subscript."""
    properties = f'<w:rPr><w:vertAlign w:val="{place}"/></w:rPr>' if place else ""
    return f'<w:r>{properties}<w:t xml:space="preserve">{text}</w:t></w:r>'


def test_the_text_of_a_simple_field_is_kept() -> None:
    body = (
        f'<w:p>{run("Figure ")}<w:fldSimple w:instr=" SEQ Figure ">{run("1")}</w:fldSimple>'
        f'{run(": The pump. See also ")}<w:fldSimple w:instr=" REF t "><w:hyperlink>{run("Table 7")}</w:hyperlink>'
        f"</w:fldSimple>{run(' below.')}</w:p>"
    )
    assert read(body).text == "Figure 1: The pump. See also Table 7 below.\n"


def test_an_exponent_is_marked_and_raised_letters_are_not() -> None:
    pieces = [
        "It is 10", "^6", " Pa, 10", "^-", "^3", " m, H", "_2", "O, x", "^n", " on the 4", "^th", " of May.", "^1",
        " Ca", "^2+",
    ]  # fmt: skip
    places = {"^": "superscript", "_": "subscript"}
    runs = (run(piece.lstrip("^_"), places.get(piece[0], "")) for piece in pieces)
    expected = "It is 10^6 Pa, 10^-3 m, H2O, x^n on the 4th of May.1 Ca^(2+)\n"
    assert read(f"<w:p>{''.join(runs)}</w:p>").text == expected


@pytest.mark.parametrize("kind", ["page", "column", "textWrapping"])
def test_a_break_parts_words(kind: str) -> None:
    alone = f'<w:p><w:r><w:br w:type="{kind}"/></w:r></w:p>'
    broken = f'<w:p><w:r><w:t>before</w:t><w:br w:type="{kind}"/><w:t>after</w:t></w:r></w:p>'
    assert read(broken + alone + paragraph("End.")).text == "before\nafter\n\nEnd.\n"


@pytest.mark.parametrize(
    ("style", "shown"),
    [
        ("1", "# "),
        ("2", "## "),
        ("8", "###### "),
        ("House", "## "),
        ("Outlined", "## "),
        ("Body", ""),
        ("Round", ""),
        ("Gone", ""),
    ],
)
def test_a_style_is_a_heading_by_its_level_or_by_what_it_is_based_on(style: str, shown: str) -> None:
    styled = paragraph("Pump maintenance", f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>')
    assert read(styled + paragraph("Grease weekly.")).text == f"{shown}Pump maintenance\n\nGrease weekly.\n"


@pytest.mark.parametrize("kind", ["cr", "ptab"])
def test_a_return_and_a_tab_to_a_place_part_words(kind: str) -> None:
    parted = f"<w:p><w:r><w:t>Check</w:t><w:{kind}/><w:t>next</w:t></w:r></w:p>"
    assert read(parted).text.split() == ["Check", "next"]


def test_formulas_without_their_properties_and_of_unknown_parts_are_kept() -> None:
    parts = "<m:num><m:r><m:t>a</m:t></m:r></m:num><m:den><m:r><m:t>b</m:t></m:r></m:den>"
    unknown = "<m:limLow><m:e><m:r><m:t>best</m:t></m:r></m:e><m:lim><m:r><m:t>n</m:t></m:r></m:lim></m:limLow>"
    space = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
    body = (
        f"<w:p>{run('So ')}<m:oMath {space}><m:f>{parts}</m:f></m:oMath>{run(' and ')}"
        f"<m:oMath {space}>{unknown}</m:oMath></w:p>"
        f"<w:p><m:oMathPara {space}><m:oMath><m:f>{parts}</m:f></m:oMath></m:oMathPara></w:p>"
    )
    assert read(body).text == "So $\\frac{a}{b}$ and $best n$\n\n$$\\frac{a}{b}$$\n"


def box(text: str) -> str:
    """A text box, as Word draws one."""
    return f"<wps:wsp><wps:txbx><w:txbxContent>{paragraph(text)}</w:txbxContent></wps:txbx></wps:wsp>"


def drawing(*shapes: str) -> str:
    return f"<w:drawing><wp:anchor><wp:positionH>7</wp:positionH>{''.join(shapes)}</wp:anchor></w:drawing>"


def choice(chosen: str, fallback: str) -> str:
    return f'<mc:AlternateContent><mc:Choice Requires="wps">{chosen}</mc:Choice>{fallback}</mc:AlternateContent>'


_SPACES = (
    f'xmlns:mc="{_COMPATIBLE}" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape" '
    'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing"'
)
_OLD_BOX = (
    f"<w:pict><v:shape><v:textbox><w:txbxContent>{paragraph('Turn it.')}</w:txbxContent></v:textbox></v:shape></w:pict>"
)


@pytest.mark.parametrize(
    ("drawn", "kept"),
    [
        (drawing(box("Turn it.")), "Turn it."),
        (drawing(f"<wps:group>{box('Turn it.')}{box('Stop.')}</wps:group>"), "Turn it.\n\nStop."),
        (drawing(box(f"Turn it.</w:t></w:r><w:r>{drawing(box('Stop.'))}</w:r><w:r><w:t>")), "Turn it.\n\nStop."),
        (choice(drawing(box("Turn it.")), f"<mc:Fallback>{_OLD_BOX}</mc:Fallback>"), "Turn it."),
        (choice(drawing(box("Turn it.")), "<mc:Fallback><w:pict/></mc:Fallback>"), "Turn it."),
        (choice(drawing(box("Turn it.")), ""), "Turn it."),
        (_OLD_BOX, "Turn it."),
        (_OLD_BOX.replace("v:shape", "v:oval"), "Turn it."),
    ],
    ids=["bare", "group", "nested", "both", "picture", "alone", "old", "oval"],
)
def test_a_text_box_is_read_once(drawn: str, kept: str) -> None:
    assert read(f"<w:p><w:r {_SPACES}>{drawn}</w:r>{run('The pump.')}</w:p>").text == f"The pump.\n\n{kept}\n"


def test_of_ruby_the_text_is_kept_and_the_readings_are_not() -> None:
    ruby = f"<w:ruby><w:rubyPr/><w:rt>{run('かんじ')}</w:rt><w:rubyBase>{run('漢字')}</w:rubyBase></w:ruby>"
    assert read(f"<w:p>{run('この')}<w:r>{ruby}</w:r>{run('を読む')}</w:p>").text == "この漢字を読む\n"


def test_a_box_that_a_slide_has_in_two_forms_is_read() -> None:
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    shape = slide.shapes.add_textbox(0, Inches(2), Inches(4), Inches(1))
    shape.text_frame.text = "Where x is the flow."
    both = etree.SubElement(shape.element.getparent(), f"{{{_COMPATIBLE}}}AlternateContent")
    etree.SubElement(both, f"{{{_COMPATIBLE}}}Choice", Requires="a14").append(shape.element)
    stream = io.BytesIO()
    presentation.save(stream)
    assert read_slides(stream.getvalue(), 10_000_000).text == "Where x is the flow.\n"


def test_a_soft_line_break_on_a_slide_keeps_words_apart() -> None:
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Pumps"
    slide.shapes.add_textbox(0, Inches(2), Inches(4), Inches(1)).text_frame.text = "pump\vvalve seal"
    stream = io.BytesIO()
    presentation.save(stream)
    assert read_slides(stream.getvalue(), 10_000_000).text == "# Pumps\npump valve seal\n"


def test_the_text_of_a_slide_is_no_markup() -> None:
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Pumps\nand their\vcare"
    box = slide.shapes.add_textbox(Inches(1), Inches(2), Inches(4), Inches(1))
    box.text_frame.text = "# of incidents: 5\nTotal\n---\n> 5 bar\n#12 and x < y"
    table = slide.shapes.add_table(2, 2, Inches(1), Inches(4), Inches(4), Inches(1)).table
    for place, cell in enumerate(["a|b", "c", "d", "e"]):
        table.cell(place // 2, place % 2).text = cell
    slide.notes_slide.notes_text_frame.text = "# of pumps"
    stream = io.BytesIO()
    presentation.save(stream)
    found = read_slides(stream.getvalue(), 10_000_000)
    assert found.title == "Pumps and their care"
    assert [block.text for block in found.blocks if block.kind == "heading"] == ["Pumps and their care"]
    assert "\\# of incidents: 5\nTotal\n\\---\n\\> 5 bar\n#12 and x < y\n" in found.text
    assert "| a\\|b | c |\n| --- | --- |\n| d | e |" in found.text
    assert "\\# of pumps" in found.text


def test_a_slide_begins_with_its_title_and_its_tables_end_where_text_begins() -> None:
    presentation = Presentation()
    for number, name in enumerate(["Pumps", "Valves"]):
        slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        slide.shapes.title.text = name
        slide.notes_slide.notes_text_frame.text = f"Say {name}."
        slide.shapes.add_textbox(Inches(1), 0, Inches(4), Inches(1)).text_frame.text = f"Chapter {number}"
    data = CategoryChartData()
    data.categories = ["a|b", "c\nd"]
    data.add_series("bar", (1, 2))
    place = Inches(1), Inches(2), Inches(4), Inches(1)
    chart = slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *place, data).chart
    chart.chart_title.text_frame.text = "Flow\n# 1"
    slide.shapes.add_table(1, 2, Inches(1), Inches(4), Inches(4), Inches(1)).table.cell(0, 0).text = "part"
    for top in (3, 5):
        slide.shapes.add_textbox(Inches(1), Inches(top), Inches(4), Inches(1)).text_frame.text = f"Text {top}."
    stream = io.BytesIO()
    presentation.save(stream)
    found = read_slides(stream.getvalue(), 10_000_000)
    assert found.text == (
        "# Pumps\nChapter 0\n\nNotes:\nSay Pumps.\n\n# Valves\nChapter 1\n\nChart: Flow # 1\n\n"
        "| Category | bar |\n|---|---|\n| a\\|b | 1.0 |\n| c d | 2.0 |\n\nText 3.\n\n| part |  |\n| --- | --- |\n\n"
        "Text 5.\n\nNotes:\nSay Valves.\n"
    )
    tables = [found.text[block.start : block.end] for block in found.blocks if block.kind == "table"]
    assert [table.splitlines()[-1] for table in tables] == ["| c d | 2.0 |", "| --- | --- |"]
    assert [block.text for block in found.blocks if block.kind == "heading"] == ["Pumps", "Valves"]


def with_files(content: bytes, files: dict[str, bytes], relations: str) -> bytes:
    """The archive with further entries, and ``relations`` among those of its main part."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            kept = source.read(name)
            if name in {"word/_rels/document.xml.rels", "ppt/slides/_rels/slide1.xml.rels"}:
                kept = kept.replace(b"</Relationships>", relations.encode() + b"</Relationships>")
            if name == "[Content_Types].xml":
                kept = kept.replace(b"</Types>", b'<Default Extension="htm" ContentType="text/html"/></Types>')
            target.writestr(name, kept)
        for name, added in files.items():
            target.writestr(name, added)
    return stream.getvalue()


_DIAGRAM = "http://schemas.openxmlformats.org/drawingml/2006/diagram"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"
POINTS = "".join(
    f"<dgm:pt><dgm:t><a:bodyPr/><a:p><a:r><a:t>{text}</a:t></a:r></a:p></dgm:t></dgm:pt>"
    for text in ("Open the valve", "Start the pump", "")
)
DATA = f'<dgm:dataModel xmlns:dgm="{_DIAGRAM}" xmlns:a="{_DRAWING}"><dgm:ptLst>{POINTS}</dgm:ptLst></dgm:dataModel>'
GRAPHIC = (
    f'<a:graphic xmlns:a="{_DRAWING}"><a:graphicData uri="{_DIAGRAM}"><dgm:relIds xmlns:dgm="{_DIAGRAM}" '
    f'xmlns:r="{_RELATIONS}" r:dm="rd"/></a:graphicData></a:graphic>'
)
TO_DATA = f'<Relationship Id="rd" Type="{_RELATIONS}/diagramData" Target="{{}}"/>'


def test_the_texts_of_a_diagram_are_read_in_word() -> None:
    body = f"<w:p>{run('Before.')}<w:r><w:drawing>{GRAPHIC}</w:drawing></w:r></w:p>{paragraph('After.')}"
    content = with_files(word(body), {"word/diagrams/data1.xml": DATA.encode()}, TO_DATA.format("diagrams/data1.xml"))
    assert read_word(content, 1_000_000, comments=False).text == (
        "Before.\n\nOpen the valve\n\nStart the pump\n\nAfter.\n"
    )


def test_the_texts_of_a_diagram_are_read_on_a_slide() -> None:
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Steps"
    frame = (
        '<p:graphicFrame xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        f'xmlns:a="{_DRAWING}"><p:nvGraphicFramePr><p:cNvPr id="9" name="d"/><p:cNvGraphicFramePr/><p:nvPr/>'
        '</p:nvGraphicFramePr><p:xfrm><a:off x="0" y="2000000"/><a:ext cx="9" cy="9"/></p:xfrm>'
        f"{GRAPHIC}</p:graphicFrame>"
    )
    slide.shapes.title.element.getparent().append(etree.fromstring(frame))
    slide.shapes.add_textbox(0, Inches(5), Inches(4), Inches(1)).text_frame.text = "Below."
    stream = io.BytesIO()
    presentation.save(stream)
    files = {"ppt/diagrams/data1.xml": DATA.encode()}
    content = with_files(stream.getvalue(), files, TO_DATA.format("../diagrams/data1.xml"))
    assert read_slides(content, 10_000_000).text == "# Steps\nOpen the valve\nStart the pump\nBelow.\n"


def test_the_points_of_a_scatter_chart_are_a_table() -> None:
    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Flow"
    data = XyChartData()
    series = data.add_series("bar")
    for x, y in ((1, 2.5), (3, 4)):
        series.add_data_point(x, y)
    place = Inches(1), Inches(2), Inches(4), Inches(1)
    slide.shapes.add_chart(XL_CHART_TYPE.XY_SCATTER, *place, data)
    stream = io.BytesIO()
    presentation.save(stream)
    assert "| x | bar |\n|---|---|\n| 1 | 2.5 |\n| 3 | 4 |" in read_slides(stream.getvalue(), 10_000_000).text


MAIL = b'MIME-Version: 1.0\nContent-Type: text/html; charset="utf-8"\n\n<html><body><p>Kept dry.</p></body></html>'


@pytest.mark.parametrize(
    ("name", "included", "kept"),
    [
        ("part.htm", "<html><body><h2>Care</h2><p>Größe.</p></body></html>".encode(), "## Care\n\nGröße."),
        ("part.mht", MAIL, "Kept dry."),
        ("part.docx", word(paragraph("Inner text.")), "Inner text."),
        ("part.txt", b"a < b\nc", "```\na < b\nc\n```"),
        ("part.rtf", b"{\\rtf1 x}", ""),
    ],
)
def test_files_that_a_document_includes_are_read_in_their_places(name: str, included: bytes, kept: str) -> None:
    chunk = f'<w:altChunk xmlns:r="{_RELATIONS}" r:id="rc"/>'
    relation = f'<Relationship Id="rc" Type="{_RELATIONS}/aFChunk" Target="{name}"/>'
    content = word(paragraph("Before.") + chunk + paragraph("After."))
    found = read_word(with_files(content, {f"word/{name}": included}, relation), 1_000_000, comments=False)
    assert found.text == "\n\n".join(filter(None, ["Before.", kept, "After."])) + "\n"


def test_an_included_document_unpacks_to_no_more_than_any_other() -> None:
    stream = io.BytesIO(word(paragraph("Inner text.")))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/media/filler.bin", b"0" * 2_000_000)
    chunk = f'<w:altChunk xmlns:r="{_RELATIONS}" r:id="rc"/>'
    relation = f'<Relationship Id="rc" Type="{_RELATIONS}/aFChunk" Target="part.docx"/>'
    content = with_files(word(chunk), {"word/part.docx": stream.getvalue()}, relation)
    with pytest.raises(UnpackedSizeError):
        read_word(content, 1_000_000, comments=False)


def test_a_slide_without_a_title_is_apart_from_the_one_before() -> None:
    presentation = Presentation()
    for name in ("Pumps", "", "Valves"):
        slide = presentation.slides.add_slide(presentation.slide_layouts[5])
        slide.shapes.title.text = name
        slide.shapes.add_textbox(0, Inches(5), Inches(4), Inches(1)).text_frame.text = f"Text of {name or 'none'}."
    stream = io.BytesIO()
    presentation.save(stream)
    found = read_slides(stream.getvalue(), 10_000_000)
    assert found.text == "# Pumps\nText of Pumps.\n\n# Slide 2\n\nText of none.\n\n# Valves\nText of Valves.\n"
    assert found.title == "Pumps"
