"""Words, sentences and plain passages."""

from __future__ import annotations

import math

import pytest

from embed_pipeline.text.words import (
    content_words,
    inverse_document_frequency,
    is_plural,
    is_prose,
    keywords,
    name_of_heading,
    names_code,
    names_in,
    overlap,
    points_elsewhere,
    readable,
    sentences,
    specific_terms,
    support,
    unsupported_terms,
)


def test_content_words_are_stems_without_function_words() -> None:
    assert content_words("What does the pump's filter returning mean?") == ["pump", "filt", "return", "mean"]
    assert content_words("The value that is returned") == ["value", "return"]
    assert content_words("Größe der Türen") == ["größe", "der", "türen"]
    assert content_words("水泵 v2") == ["水", "泵", "v2"]


def test_overlap_is_a_share_of_the_first_text() -> None:
    assert overlap("filters blocked", "The filter was blocking.") == 1
    assert overlap("red filter", "A filter.") == 0.5
    assert overlap("is it the", "anything") == 0


def test_specific_terms_are_what_a_model_may_invent() -> None:
    question = 'Does open_file() raise OSError 13 or __init__ set "mode" in `argv`?'
    assert specific_terms(question) == ["open_file", "OSError", "13", "__init__", "mode", "argv"]
    assert unsupported_terms("Does FooBar return 12?", "foobar returns 3") == ["12"]


@pytest.mark.parametrize(
    ("sentence", "names"),
    [
        ("A wildcard pattern always succeeds.", ["a wildcard pattern"]),
        ("**Default values are evaluated** from left to right.", ["default values"]),
        ("Kubernetes and Docker can be used.", ["Kubernetes and Docker"]),
        ("The rate of sync is set with `rate()` or `rate`.", ["the rate of sync", "rate()", '"rate"']),
        ('Put "silent" into retry_policy at 3.5 GB.', ['"silent"', "retry_policy", "GB"]),
        ("Return true if the value is even.", []),
        ("This method may still be used.", []),
        ("It is a mapping.", []),
        ('For lists, the term "any of x that is in y" is used.', []),
    ],
)
def test_a_sentence_names_its_subject_and_what_is_marked_in_it(sentence: str, names: list[str]) -> None:
    assert names_in(sentence) == names


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Literal Patterns", "Literal Patterns"),
        ("2.1. Line structure", "line structure"),
        ("The `sorted()` function", "the sorted() function"),
        ("`pdb` — The Python Debugger", "pdb"),
        ("Identifiers (Names)", "identifiers"),
        ("Pump-house rules: an overview", "pump-house rules"),
        ("Objects, values and types", ""),
        *((heading, "") for heading in ("", "...", "How it works", "Customizing classes", "Why?", "A", "a b c d e f")),
    ],
)
def test_a_heading_is_a_name_unless_it_tells_or_asks(heading: str, name: str) -> None:
    assert name_of_heading(heading) == name


@pytest.mark.parametrize(
    "sentence",
    [
        "See also the `codecs` module for a more flexible approach.",
        "(See section Primaries for the syntax.)",
        "For best practices on working with lamps, please see Lamp Practices.",
        "For more information on lamps, refer to the manual.",
        "Further details on lamps can be found in the manual.",
    ],
)
def test_a_sentence_that_only_says_where_to_read_is_told(sentence: str) -> None:
    assert points_elsewhere(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "To turn all lamps on at once, see `switch_all()`.",
        "For details of size 3, the red lamp is lit.",
        "Seeing people look for more information.",
    ],
)
def test_a_sentence_that_says_something_points_nowhere(sentence: str) -> None:
    assert not points_elsewhere(sentence)


def test_names_are_told_by_their_form() -> None:
    assert [is_plural(name) for name in ("lamps", "the old lamps", "red and blue", "a bus", "glass", "lamp()")] == [
        *(True, True, True),
        *(False, False, False),
    ]
    code = ("rinse()", "__init__", "retry_policy", "json.loads")
    assert [names_code(f"What is {name}?") for name in (*code, "a pump", "3.5", "C. Then")] == [True] * 4 + [False] * 3


def test_keywords_keep_the_words_as_written() -> None:
    assert keywords("How do I set a custom attribute on the Module class?") == "set custom attribute Module class"


def test_sentences_leave_headings_rules_and_fences_out() -> None:
    text = "# Head\nOne is here: or not. Two\nis there!\n\n-----\n\n* an item\n  goes on\n* another; item\n\n```\nxy\n"
    expected = ["One is here: or not.", "Two is there!", "an item goes on", "another; item", "``` xy"]
    assert sentences(text) == expected
    assert sentences("Two forms:\n\n* the first\n* the second") == ["Two forms: the first", "the second"]


def test_rare_words_weigh_more() -> None:
    idf = inverse_document_frequency(["pump lamp", "pump", "pump filter"])
    assert idf["pump"] == pytest.approx(math.log(2))
    assert idf["lamp"] == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("sentence", "prose"),
    [
        ("A red lamp means that the filter is blocked.", True),
        ('Set "grace_seconds" to give a slow service time to start.', True),
        ("Eine rote Lampe (rechts) heißt: Der Filter ist verstopft!", True),
        ("红灯表示过滤器堵塞，需要用清水清洗过滤器之后才能继续使用水泵。", True),
        ("A red lamp means that the filter is", False),
        ("Too short.", False),
        ("str.split(sep=None, maxsplit=-1) -> list[str].", False),
        ("if_stmt ::= 'if' expr ':' suite ('elif' expr ':' suite).", False),
        ("| min(s) | smallest item of s | 3 | (1) |.", False),
    ],
)
def test_prose_is_whole_sentences_of_words(sentence: str, prose: bool) -> None:  # noqa: FBT001 - a case
    assert is_prose(sentence) is prose


def test_support_is_the_share_of_a_question_that_a_text_says_by_rarity() -> None:
    idf = {"lamp": 3.0, "pump": 1.0}
    assert support("Why is the lamp of the pump on?", "A lamp.", idf) == pytest.approx(3 / 4)
    assert support("Does a pump hum?", "The pump.", idf) == pytest.approx(1 / 4), "an unknown word is as rare as any"
    assert support("Why is it so?", "A lamp.", idf) == 0


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
