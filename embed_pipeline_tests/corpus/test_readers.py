from __future__ import annotations

import io
import os
import threading
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from embed_pipeline import settings
from embed_pipeline.corpus.batches import cut_batches
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.formats import READERS, UnreadableError
from embed_pipeline.corpus.readers import ReadingProcess
from embed_pipeline.settings import OFFICE_SUFFIXES, ROW_SUFFIXES, TEXT_SUFFIXES, Corpus

pytest.importorskip("markitdown")

_DOCUMENT = (
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'
    '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Valves</w:t></w:r></w:p>'
    "<w:p><w:r><w:t>A valve opens at three bar.</w:t></w:r></w:p></w:body></w:document>"
)
_CONTENT_TYPES = (
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    '<Override PartName="/word/document.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
)
_RELATIONS = (
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" '
    'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>'
)
_STYLES = (
    '<w:styles xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>'
)


def docx(body: str = _DOCUMENT, styles: str = _STYLES, core: str = "") -> bytes:
    """A Word file of a heading and a sentence."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _CONTENT_TYPES)
        archive.writestr("_rels/.rels", _RELATIONS)
        archive.writestr("word/document.xml", body)
        archive.writestr("word/styles.xml", styles)
        if core:
            archive.writestr("docProps/core.xml", core)
    return stream.getvalue()


def pptx() -> bytes:
    """A slide of a title and a line."""
    from pptx import Presentation

    presentation = Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[1])
    slide.shapes.title.text = "Pumps"
    slide.placeholders[1].text = "A pump starts at two bar."
    stream = io.BytesIO()
    presentation.save(stream)
    return stream.getvalue()


def pdf(line: str = "A gauge shows nine bar.") -> bytes:
    """A page of one line, written by hand."""
    drawn = f"BT /F1 12 Tf 72 720 Td ({line}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    body, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    tail = b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return body + tail % (table, len(body))


@pytest.fixture(scope="module")
def office():
    with ReadingProcess(Corpus()) as reader:
        yield reader


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.docx", docx(), "# Valves\n\nA valve opens at three bar."),
        ("a.PPTX", pptx(), "# Pumps\nA pump starts at two bar."),
        ("a.pdf", pdf(), "A gauge shows nine bar."),
    ],
    ids=["docx", "pptx", "pdf"],
)
def test_an_office_file_becomes_markdown(office, name, content, expected):
    assert office.read(name, content).text.strip() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.docx", b"no archive", "not_text"),
        ("a.docx", docx()[:-200], "not_text"),
        ("a.pdf", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /Pages 9 0 R >>\nendobj", "not_text"),
        ("a.pptx", docx(), "not_text"),
    ],
    ids=["no archive", "cut archive", "broken pdf", "another format"],
)
def test_a_damaged_file_is_set_aside_and_the_next_is_read(office, name, content, reason):
    with pytest.raises(UnreadableError) as caught:
        office.read(name, content)
    assert caught.value.reason == reason
    assert "valve" in office.read("b.docx", docx()).text


def bomb(megabytes: int) -> bytes:
    """A Word file of a few kilobytes for each megabyte that it unpacks to."""
    return docx(_DOCUMENT.replace("three bar", "a" * (megabytes * 1_000_000)))


@pytest.mark.slow
def test_an_archive_that_unpacks_to_too_much_is_never_unpacked(office):
    content = bomb(300)
    assert len(content) < 1_000_000
    before = psutil.Process().memory_info().rss
    with pytest.raises(UnreadableError, match=r"it unpacks to 300\d+ bytes, over corpus.max_unpacked_bytes") as caught:
        office.read("bomb.docx", content)
    assert caught.value.reason == "too_large"
    assert psutil.Process().memory_info().rss - before < 256_000_000


@pytest.mark.slow
def test_a_conversion_that_takes_too_much_memory_ends_and_the_next_is_read():
    paragraph = "<w:p><w:r><w:t>A valve.</w:t></w:r></w:p>"
    large = docx(_DOCUMENT.replace("</w:body>", paragraph * 200_000 + "</w:body>"))
    with ReadingProcess(Corpus(conversion_megabytes=64, conversion_seconds=60)) as reader:
        with pytest.raises(UnreadableError, match="read in 64 MB of memory|ended the process"):
            reader.read("large.docx", large)
        assert "valve" in reader.read("b.docx", docx()).text


@pytest.mark.slow
def test_a_conversion_that_takes_too_long_is_ended_and_the_next_is_read():
    with ReadingProcess(Corpus(conversion_seconds=0.1)) as reader:
        reader._process = reader._start()
        os.kill(reader._process.pid, 19)  # SIGSTOP: it answers no more
        started = time.monotonic()
        with pytest.raises(UnreadableError, match=r"over corpus.conversion_seconds = 0.1") as caught:
            reader.read("a.docx", docx())
        assert time.monotonic() - started < 20
        assert caught.value.reason == "too_large"
    with ReadingProcess(Corpus()) as reader:
        assert "valve" in reader.read("b.docx", docx()).text


@pytest.mark.slow
def test_the_processors_time_counts_and_not_the_clocks():
    page = b"<p>A <b>valve</b>.</p>" * 60_000
    with ReadingProcess(Corpus(conversion_seconds=1)) as reader:
        with pytest.raises(UnreadableError, match=r"over corpus.conversion_seconds = 1"):
            reader.read("a.html", page)
        process = reader._process = reader._start()
        os.kill(process.pid, 19)
        threading.Timer(1.5, os.kill, (process.pid, 18)).start()  # SIGCONT: another had the processor
        assert reader.read("b.md", b"# A").title == "A"


@pytest.mark.slow
def test_a_conversion_process_that_dies_is_started_again():
    with ReadingProcess(Corpus()) as reader:
        reader.read("a.docx", docx())
        reader._process.kill()
        reader._process.wait()
        with pytest.raises(UnreadableError, match="ended the process"):
            reader.read("a.docx", docx())
        assert "valve" in reader.read("b.docx", docx()).text


@pytest.mark.slow
def test_no_process_is_left_behind():
    with ReadingProcess(Corpus()) as reader:
        reader.read("a.docx", docx())
        process = psutil.Process(reader._process.pid)
    assert not process.is_running()


def test_every_ending_that_settings_know_has_a_reader_and_no_other_is_taken():
    assert set(READERS) == {*TEXT_SUFFIXES, *ROW_SUFFIXES, *OFFICE_SUFFIXES}
    assert Corpus(suffixes=("MD", ".Html")).suffixes == (".md", ".html")
    assert Corpus().suffixes == (*TEXT_SUFFIXES, *OFFICE_SUFFIXES)
    with pytest.raises(ValueError, match=r"no reader knows \.adoc, \.json; the known endings are \.md"):
        Corpus(suffixes=(".md", ".adoc", "json"))


def test_without_the_extra_office_files_are_refused_at_start(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    assert Corpus().suffixes == TEXT_SUFFIXES
    with pytest.raises(
        ValueError, match=r"reading \.pdf needs the extra documents; install embed-pipeline\[documents\]"
    ):
        Corpus(suffixes=(".md", ".pdf"))


@pytest.mark.slow
def test_office_files_are_documents_beside_text(folder: Path, make_settings):
    (folder / "a.md").write_text("# Pipes\n\nA pipe.")
    (folder / "b.docx").write_bytes(docx())
    (folder / "c.pdf").write_bytes(b"%PDF-1.7 broken")
    (folder / "d.csv").write_text("name,bar\nvalve,3\n")
    mixed = make_settings(suffixes=(".md", ".docx", ".pdf", ".csv"))
    (batch,), _ = cut_batches(mixed)
    documents, rejected = read_documents(batch, mixed)
    assert documents.select("path", "title").rows() == [("a.md", "Pipes"), ("b.docx", "Valves"), ("d.csv", "d")]
    assert rejected.select("path", "reason").rows() == [("c.pdf", "not_text")]


def test_a_word_file_is_called_by_its_title(office):
    title = '<w:p><w:pPr><w:pStyle w:val="Title"/></w:pPr><w:r><w:t>The handbook</w:t></w:r></w:p>'
    body = _DOCUMENT.replace("<w:body>", f"<w:body>{title}")
    styles = _STYLES.replace("</w:styles>", '<w:style w:type="paragraph" w:styleId="Title"><w:name w:val="Title"/>'
                             "</w:style></w:styles>")  # fmt: skip
    read = office.read("a.docx", docx(body, styles))
    assert (read.title, [b.text for b in read.blocks if b.kind == "heading"]) == (
        "The handbook",
        ["The handbook", "Valves"],
    )
    core = '<p xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>{}</dc:title></p>'
    assert office.read("a.docx", docx(core=core.format("Named in its properties"))).title == "Named in its properties"
    assert office.read("a.docx", docx(core=core.format("Document1"))).title == "Valves"


@pytest.mark.slow
def test_one_process_reads_every_format(tmp_path):
    texts = {"a.md": b"# A", "b.rst": b"A\n=\n", "c.html": b"<h1>A</h1>", "d.txt": b"A\n=\n", "e.htm": b"<h1>A</h1>"}
    with ReadingProcess(Corpus()) as reader:
        for name, content in texts.items():
            assert (reader.read(name, content).title, reader._process.poll()) == ("A", None)


@pytest.mark.slow
def test_a_text_that_takes_too_much_memory_is_set_aside_by_name():
    with ReadingProcess(Corpus(conversion_megabytes=64)) as reader:
        with pytest.raises(UnreadableError, match="read in 64 MB of memory|ended the process"):
            reader.read("a.html", b"<p>A <b>valve</b>.</p>" * 300_000)
        assert reader.read("b.md", b"# A").title == "A"
