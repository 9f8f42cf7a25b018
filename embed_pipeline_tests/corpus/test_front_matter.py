from __future__ import annotations

import pytest

from embed_pipeline.corpus.formats import read_markdown
from embed_pipeline.corpus.front_matter import split_front_matter, title_of


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ('---\ntitle: "Regulator: guide"\ntags: [a]\n---\n', "Regulator: guide"),
        ("---\n# a comment\ntitle: Guide\n---\n", "Guide"),
        ("---\ntitle: 1.10\n...\n", "1.10"),
        ('+++\ntitle = "Guide"\ndate = 2024-05-01\ndraft = false\n+++\n', "Guide"),
        ("---\ntitle: {{ page }} of: all\nother: [unclosed\n---\n", "{{ page }} of: all"),
        ("---\ntags:\n  - a\n---\n", ""),
        ("---\ntitle:\n  nested: 1\n---\n", ""),
        ("+++\ntitle = Guide without quotes\n+++\n", "Guide without quotes"),
    ],
)
def test_the_title_is_that_of_the_metadata_and_nothing_of_it_is_text(front: str, title: str) -> None:
    metadata, rest = split_front_matter(f"{front}\nThe text.\n")
    assert (title_of(metadata), rest) == (title, "The text.\n")


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule first.\n\n---\n\nMore.\n",
        "---\nJust a paragraph\n---\n",
        "---\n- a list\n---\n",
        "---\ntitle: never closed\n",
        "Text\n---\ntitle: x\n---\n",
        "+++\n",
        "",
    ],
)
def test_what_is_no_metadata_stays(text: str) -> None:
    assert split_front_matter(text) == ({}, text)


def test_hostile_metadata_is_passed_over() -> None:
    for value in ("[" * 30_000, "&a [*a, *a]", "!!python/object/apply:os.system [ls]"):
        assert split_front_matter(f"---\ntitle: {value}\n---\ntext\n")[1] == "text\n"


def test_the_title_of_a_page_is_the_metadatas_else_the_first_heading() -> None:
    page = "## Before you begin\n\nText.\n"
    assert read_markdown(f"---\ntitle: Guide\n---\n\n{page}").title == "Guide"
    read = read_markdown(page)
    assert (read.title, read.text) == ("Before you begin", page)
    assert read_markdown("Text alone.\n").title == ""
