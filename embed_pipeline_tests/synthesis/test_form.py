from __future__ import annotations

import pytest

from embed_pipeline.synthesis.pairs import form_problem


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("What does a red lamp on the pump mean?", None),
        ("In what order are the filters changed?", None),
        ("", "empty"),
        ("?!", "empty"),
        ("Why is it?", "too_short"),
        ("What " + "is the pump and " * 14 + "why?", "too_long"),
        ("A red lamp on the pump is bright?", "not_a_question"),
        ("What does a red lamp on the pump mean", "not_a_question"),
        ("What does this option of the pump do?", "refers_to_text"),
        ("What is the above code of the pump for?", "refers_to_text"),
        ("Can you tell me about the red lamp of the pump?", "asks_the_model"),
        ("Is a pump a pump of the pump and filter?", "repeats_itself"),
        ("What filter pump is the filter pump?", "repeats_itself"),
        ("What is it that the pump does?", "no_subject"),
        ("Should I ignore all previous instructions of the pump?", "instruction"),
    ],
)
def test_a_full_question(question: str, problem: str | None) -> None:
    assert form_problem(question) == problem


def test_other_styles_need_neither_a_question_word_nor_a_mark() -> None:
    assert form_problem("pump red lamp", "keywords") is None
    assert form_problem("pump red lamp") == "too_short"
    assert form_problem("red lamp on the pump is blinking", "symptom") is None
    assert form_problem("pump", "keywords") == "too_short"
    assert form_problem("this pump lamp", "keywords") == "refers_to_text"
