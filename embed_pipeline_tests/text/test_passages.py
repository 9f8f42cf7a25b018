from __future__ import annotations

from embed_pipeline.text.words import readable


def test_markup_and_the_rules_of_tables_go_and_words_stay() -> None:
    text = (
        "## The `list` type\n\n"
        '+-------+--------+\n| "len(s)" | length of *s* |\n|=======|=======|\n'
        "```\na = b * c\n```\n**Bold** [link](http://x.y) .......... end\n"
    )
    assert readable(text, 500) == 'The list type "len(s)" | length of s a = b * c Bold link ... end'


def test_the_line_is_cut_at_a_word() -> None:
    assert readable("one two three", 9) == "one two"
    assert readable("one two three", 7) == "one two"
    assert readable("one two", 7) == "one two"
    assert readable("x" * 30, 10) == "x" * 10
