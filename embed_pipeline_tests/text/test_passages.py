"""The text of a passage: its context, by the rule that clients follow too."""

from __future__ import annotations

import polars as pl
import pytest

from embed_pipeline.text.passages import MOST_CHARACTERS, context_of, passage_texts, passages_by_id, with_titles

LONG = "word " * 23 + "last"


@pytest.mark.parametrize(
    ("title", "path", "context", "expected"),
    [
        ("Pump", "Pump > Filter", "none", ""),
        ("Pump", "Pump > Filter", "title", "Pump"),
        ("Pump", "Pump > Filter", "path", "Pump > Filter"),
        # The title is not the first heading: it stands in the metadata.
        ("Pump", "Filter > Change", "path", "Pump > Filter > Change"),
        ("Pump", "", "path", "Pump"),
        ("Pump", "Pump", "path", "Pump"),
        ("", "", "path", ""),
        ("", "", "title", ""),
        ("", "Filter", "path", "Filter"),
        # Outer headings go first, the title and the last heading stay.
        ("Pump", f"Pump > {LONG} > Filter > Change", "path", "Pump > Filter > Change"),
        ("Pump", f"Pump > Filter > {LONG}", "path", f"Pump > {LONG}"[:120].rpartition(" ")[0]),
        (f"{LONG} {LONG}", "Filter", "title", f"{LONG} {LONG}"[:120].rpartition(" ")[0]),
        ("x" * 300, "", "title", "x" * MOST_CHARACTERS),
        (f"{'y ' * 60}z", "", "title", ("y " * 60).strip()),
    ],
)
def test_a_context_is_a_title_or_the_headings(title: str, path: str, context: str, expected: str) -> None:
    found = context_of(title, path, context)
    assert found == expected
    assert len(found) <= MOST_CHARACTERS


def test_a_passage_is_its_context_a_blank_line_and_its_text() -> None:
    segments = pl.DataFrame(
        {"segment_id": ["a", "b"], "title": ["Pump", ""], "heading_path": ["", ""], "text": ["It turns.", "A label."]}
    )
    assert passage_texts(segments, "title") == ["Pump\n\nIt turns.", "A label."]
    assert passages_by_id(segments, "path") == {"a": "Pump\n\nIt turns.", "b": "A label."}
    assert passage_texts(segments.drop("title", "heading_path"), "none") == ["It turns.", "A label."]


def test_segments_get_the_titles_of_their_documents_in_order() -> None:
    segments = pl.DataFrame({"segment_id": ["s2", "s1", "s3"], "document_id": ["b", "a", "b"]})
    documents = pl.DataFrame({"document_id": ["a", "b", "b"], "title": ["A", "B", "of a copy"]})
    assert with_titles(segments, documents).select("segment_id", "title").rows() == [
        ("s2", "B"),
        ("s1", "A"),
        ("s3", "B"),
    ]
