"""Documents are found however people write their paths, and never guessed between two."""

from __future__ import annotations

import pytest

from embed_pipeline.document_paths import DocumentPaths
from embed_pipeline.tables import LEFT_OUT_DOCUMENTS


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[(written, "b.md") for written in ("/b.md", "./b.md", "//b.md", ".\\b.md", " b.md", "x/../b.md", "B.MD")],
        *[(written, "a b/c d.md") for written in ("a%20b/c%20d.md", "/a%20b%2Fc d.md", "a b\\c d.md", "A%20B/c d.md")],
        *[(written, "caf\u00e9.md") for written in ("cafe\u0301.md", "caf%C3%A9.md", "/CAF\u00c9.md")],
        *[(written, "100%.md") for written in ("100%.md", "/100%.md", "100%25.md")],
        *[(written, "old%20.md") for written in ("old%20.md", "./old%20.md", "old .md")],
        ("copy%201.md", "b.md"),
        *[(written, None) for written in ("", "/", "c.md", "x/b.md", "b", "b.md/c", "gone-copy.md", "+.md")],
    ],
)
def test_a_path_means_the_only_document_that_fits(written, meant):
    copies = {"copy 1.md": "b.md", "gone-copy.md": "gone.md"}
    row = {"document_id": "d", "batch": "b1", "reason": "duplicate", "resemblance": 1.0}
    left_out = LEFT_OUT_DOCUMENTS.frame([{**row, "path": path, "duplicate_of": kept} for path, kept in copies.items()])
    paths = ["b.md", "a b/c d.md", "caf\u00e9.md", "100%.md", "old%20.md"]
    assert DocumentPaths(paths, left_out).find(written) == meant
    assert DocumentPaths(reversed(paths), left_out).find(written) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a b.md", "a b.md"),
        ("/a%20b.md", "a%20b.md"),
        ("README.md", "README.md"),
        ("./readme.md", "readme.md"),
        ("ReadMe.md", None),
        ("%61 b.md", None),
    ],
)
def test_what_says_more_goes_first_and_nothing_is_guessed(caplog, written, meant):
    found = DocumentPaths(["a b.md", "a%20b.md", "README.md", "readme.md"], None).find(written)
    assert found == meant
    assert (f"{written!r} may mean any of [" in caplog.text) is (meant is None)
