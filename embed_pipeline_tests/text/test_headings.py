from __future__ import annotations

import pytest

from embed_pipeline.text.headings import find_headings


def _found(text: str) -> list[tuple[int, str]]:
    headings = find_headings(text)
    for heading in headings:
        assert text[: heading.start].endswith("\n") or heading.start == 0
        assert text[heading.start :].strip()
    return [(heading.level, heading.text) for heading in headings]


def test_atx_headings() -> None:
    text = "# One\ntext\n## Two ##\n#NoSpace\n   ### Three\n    # code\n####### seven\n#\n"
    assert _found(text) == [(1, "One"), (2, "Two"), (3, "Three")]


def test_underlined_headings_rank_by_first_appearance() -> None:
    text = "Title\n=====\n\nPart\n----\n\nSmall\n~~~~~\n\nNext part\n---------\n"
    assert _found(text) == [(1, "Title"), (2, "Part"), (3, "Small"), (2, "Next part")]


def test_markup_is_taken_off() -> None:
    text = "## The `open()` [call](http://x.y) and *its* ![icon](i.png)\n"
    assert _found(text) == [(2, "The open() call and its icon")]


@pytest.mark.parametrize(
    "text",
    [
        "```python\n# a comment\n```\n",
        "~~~\nTitle\n=====\n~~~\n",
        "````\n```\n# inside\n```\n````\n",
        "| a | b |\n|---|---|\n",
        "- item\n---\n",
        "text\n\n---\n\nmore\n",
        "    indented\n    ========\n",
        "=====\n=====\n",
        "---\ntitle: Page\ntags: [a]\n---\n",
        "plain text\n",
        "",
    ],
)
def test_what_is_no_heading(text: str) -> None:
    assert _found(text) == []


def test_headings_go_on_after_a_fence_and_after_metadata() -> None:
    assert _found("```\n# no\n```\n# Yes\n") == [(1, "Yes")]
    assert _found("---\ntitle: Page\n---\n\n# Page\n") == [(1, "Page")]
    assert _found("---\n\nNot metadata\n------------\n") == [(1, "Not metadata")]


def test_an_unclosed_fence_hides_the_rest() -> None:
    assert _found("# One\n```\n# Two\n") == [(1, "One")]
