from __future__ import annotations

import pytest

from embed_pipeline.corpus.restructured import read_restructured


def _headings(text: str) -> list[tuple[int, str]]:
    return [(block.level, block.text) for block in read_restructured(text).blocks if block.kind == "heading"]


def test_titles_rank_by_their_underlines_and_overlines() -> None:
    text = "====\nTop\n====\n\nPart\n====\n\nx\n\nS3\n--\n\n--verbose\n---------\n\nNext\n====\n\ny\n"
    assert _headings(text) == [(1, "Top"), (2, "Part"), (3, "S3"), (3, "--verbose"), (2, "Next")]
    assert read_restructured(text).title == "Top"


@pytest.mark.parametrize(
    "block",
    [
        ".. code-block:: python\n   :emphasize-lines: 1\n\n   # a comment\n   x = 1\n",
        "Run::\n\n   # a comment\n   ~~~~~~~\n",
        "~~~~~~\n",
        "====  =====\nCode  Means\n====  =====\nE1    stuck\n====  =====\n",
        ".. note:: Careful.\n",
        "* item\n\n  Deeper\n",
    ],
)
def test_what_is_no_title(block: str) -> None:
    assert _headings(f"Top\n===\n\nText.\n\n{block}\nPart\n----\n\nEnd.\n") == [(1, "Top"), (2, "Part")]


def test_what_sphinx_adds_is_its_words() -> None:
    text = (
        ":orphan:\n\nTop\n===\n\nSee :ref:`the thing <x>`, :py:class:`~a.b.C`, :doc:`the guide </a/guide>`.\n\n"
        ".. versionadded:: 1.2\n   A new valve.\n\n.. py:function:: open(bar)\n\n   Opens it.\n\n   "
        ":param bar: the gauge\n\n"
        ".. unheard-of:: argument\n   :option: 1\n\n   Its content.\n\n.. toctree::\n   :maxdepth: "
        "1\n\n   Intro <intro>\n"
    )
    kept = read_restructured(text).text
    assert "See the thing, `C`, [the guide](/a/guide)." in kept
    for said in ("Added in version 1.2", "A new valve.", "`open(bar)`", "Opens it.", "bar: the gauge", "argument",
                 "Its content.", "- Intro\n"):  # fmt: skip
        assert said in kept
    assert not any(mark in kept for mark in ("orphan", "maxdepth", ":ref:", ".. "))


def test_parts_are_blocks() -> None:
    text = (
        "Top\n===\n\nText\nof two lines.\n\n.. list-table::\n   :header-rows: 1\n\n   * - Code\n    "
        " - Means\n   * - E1\n"
        "     - stuck | cold\n\n- item\n\n  - inner\n\nterm\n  what it is\n\n::\n\n  # code\n\n  "
        "Quoted.\n\n|v| and [1]_\n\n"
        ".. |v| replace:: 2.1\n.. [1] A note.\n"
    )
    read = read_restructured(text)
    assert [(b.kind, read.text[b.start : b.end]) for b in read.blocks] == [
        ("heading", "# Top\n"),
        ("paragraph", "Text\nof two lines.\n"),
        ("table", "| Code | Means |\n| --- | --- |\n| E1 | stuck \\| cold |\n"),
        ("list", "- item\n  - inner\n"),
        ("list", "- term: what it is\n"),
        ("code", "```\n# code\n\nQuoted.\n```\n"),
        ("paragraph", "2.1 and [1]\n"),
        ("paragraph", "[1] A note.\n"),
    ]


def test_no_file_is_read_and_nothing_is_said(tmp_path, capfd) -> None:
    (tmp_path / "secret.txt").write_text("secret words")
    text = (
        f"Top\n===\n\n.. include:: {tmp_path}/secret.txt\n\n.. raw:: html\n   :file: {tmp_path}/secret.txt\n\n"
        f".. csv-table:: t\n   :file: {tmp_path}/secret.txt\n\n.. literalinclude:: {tmp_path}/secret.txt\n\n"
        "`broken <reference\n\n=====\nwrong\n\n|undefined| :role:`x`\n"
    )
    assert "secret words" not in read_restructured(text).text
    assert capfd.readouterr() == ("", "")


def test_what_docutils_cannot_read_stays_as_it_stands() -> None:
    text = "Top\n===\n\n.. image::\n\n+---+\n| broken table\n+--\n\nLast words.\n"
    kept = read_restructured(text).text
    assert "broken table" in kept
    assert "Last words." in kept


def test_conditions_and_classes_are_no_text() -> None:
    read = read_restructured("T\n=\n\n.. only:: html\n\n   Shown.\n\n.. container:: wide box\n\n   Boxed.\n")
    assert read.text == "# T\n\nShown.\n\nBoxed.\n"


def test_what_a_class_styles_is_text_and_a_class_of_python_is_named() -> None:
    text = ".. class:: special wide\n\n   Keep the pump dry.\n\n.. class:: Pump(name)\n\n   A pump of that name.\n"
    assert read_restructured(text).text == "Keep the pump dry.\n\n`Pump(name)`\n\nA pump of that name.\n"


def test_a_cell_that_spans_rows_stands_in_each() -> None:
    table = "+---+---+\n| a | b |\n+===+===+\n| A | 1 |\n|   +---+\n|   | 2 |\n+---+---+\n"
    assert read_restructured(table).text == "| a | b |\n| --- | --- |\n| A | 1 |\n| A | 2 |\n"


def test_what_docutils_warns_of_is_no_text_in_any_place() -> None:
    text = "T\n=\n\n* First\n\n  Term\n      definition\n  back at the margin\n\n  .. image::\n\n* Second\n"
    assert read_restructured(text).text == (
        "# T\n\n- First\n\n  - Term: definition\n\n  back at the margin\n\n  ```\n  .. image::\n  ```\n- Second\n"
    )


def test_powers_keep_their_sense() -> None:
    read = read_restructured("10\\ :sup:`6` Pa\n============\n\nThe 1\\ :sup:`st` is 2\\ :sup:`n+1`.\n")
    assert read.title == "10^6 Pa"
    assert read.text == "# 10^6 Pa\n\nThe 1st is 2^(n+1).\n"
