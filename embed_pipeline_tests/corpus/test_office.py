"""Single features of Word files, each in a file written for it."""

from __future__ import annotations

import io
import zipfile

import pytest

pytest.importorskip("mammoth")

from embed_pipeline.corpus.office import read_word
from embed_pipeline.text.blocks import ParsedDocument

_MAIN = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml"
_RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_NOTED = (
    '<w:p><w:r><w:t>It opens at three bar.</w:t></w:r><w:r><w:footnoteReference w:id="1"/></w:r>'
    '<w:r><w:commentReference w:id="0"/></w:r></w:p>'
)
_PARTS = {
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
