from __future__ import annotations

import pytest

from embed_pipeline.text.blocks import Draft, as_rows, clean_text, from_rows, table_head, table_rows, without_spans
from embed_pipeline.text.markdown import markdown_blocks


def test_a_draft_knows_where_it_wrote_each_block() -> None:
    draft = Draft()
    draft.add_heading(2, " A \n title ")
    draft.add("paragraph", "\n")
    draft.add_code("x = '```'\n\n# y", "python")
    inner = "# Inner\n\ntext\n"
    draft.add_parsed(inner, markdown_blocks(inner), below=2)
    read = draft.reading("  T ")
    assert (read.title, read.text) == ("T", "## A title\n\n````python\nx = '```'\n\n# y\n````\n\n# Inner\n\ntext\n")
    assert [(b.kind, b.level, b.text, read.text[b.start : b.end].strip()) for b in read.blocks] == [
        ("heading", 2, "A title", "## A title"),
        ("code", 0, "", "````python\nx = '```'\n\n# y\n````"),
        ("heading", 3, "Inner", "# Inner"),
        ("paragraph", 0, "", "text"),
    ]
    assert from_rows(as_rows(read.blocks)) == read.blocks


def test_letters_are_folded_and_lone_surrogates_replaced() -> None:
    assert clean_text("con\ufb01g docu\u00admen\u00adtation e\u0301 a\ud83d b\ud83d\ude00 \ufeffc") == (
        "config documentation \u00e9 a\ufffd b\U0001f600 c"
    )


def test_spans_are_taken_out_and_the_rest_keeps_its_blocks() -> None:
    text = "# A\n\nfirst\n\nsecond\n\n## B\n\nthird\n"
    start = text.index("first")
    kept, blocks = without_spans(
        text, markdown_blocks(text), [(start, text.index("second")), (text.index("third"), len(text))]
    )
    assert kept == "# A\n\nsecond\n\n## B\n\n"
    assert [(b.kind, kept[b.start : b.end]) for b in blocks] == [
        ("heading", "# A\n"),
        ("paragraph", "second\n"),
        ("heading", "## B\n"),
    ]


def test_the_head_of_a_table_is_two_lines_and_names_something() -> None:
    assert table_head("| a | b |\n|---|---|\n| 1 | 2 |\n") == "| a | b |\n|---|---|\n"
    assert table_head("|  |  |\n|---|---|\n| 1 | 2 |\n") == ""


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[("a", 1, 2), ("b", 1, 1)], [("c", 1, 1)]], [["a", "b"], ["a", "c"]]),
        ([[("a", 1, 1), ("b", 1, 2)], [("c", 1, 1)], [("d", 2, 1)]], [["a", "b"], ["c", "b"], ["d", ""]]),
        ([[("a", 2, 3), ("b", 1, 1)], [("c", 1, 1)], [("d", 1, 1)]], [["a", "", "b"], ["a", "", "c"], ["a", "", "d"]]),
        ([[("a", 1, 1), ("b", 1, 9)], []], [["a", "b"], ["", "b"]]),
        ([], []),
    ],
)
def test_a_cell_stands_in_every_row_that_it_spans(rows, expected) -> None:
    assert table_rows(rows) == expected
