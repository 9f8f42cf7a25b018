"""The rules of a pair and the form of its question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embed_pipeline import tables
from embed_pipeline.synthesis.pairs import Hop, Pair, Reject, find_problem, form_problem, pair_row, reject_rows

KNOWN = {"s1": "d1", "s2": "d1", "s4": "d2"}
ONE = Pair("When does the pump start?", "Under ten litres.", "contextual", "factual", 1, (Hop(("s1",), "It starts."),))
TWO = replace(ONE, query_type="multi_hop", hops=(Hop(("s4",), "Invoices."), Hop(("s1", "s2"), "The pump.")))
MADE_BY = {"generator": "stub", "prompt_version": "v"}


@pytest.mark.parametrize("pair", [ONE, TWO, replace(ONE, complexity=5), replace(ONE, style="keywords")])
def test_a_pair_that_keeps_every_rule(pair: Pair) -> None:
    assert find_problem(pair, KNOWN, 3) is None


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (replace(ONE, question=" \n"), "empty_question"),
        (replace(ONE, question="x" * 501), "question_too_long"),
        (replace(ONE, answer=""), "empty_answer"),
        (replace(ONE, answer="x" * 4001), "answer_too_long"),
        (replace(ONE, query_type="trick"), "query_type"),
        (replace(ONE, reasoning_type="magic"), "reasoning_type"),
        (replace(ONE, style="rhyme"), "style"),
        (replace(ONE, complexity=0), "complexity"),
        (replace(ONE, complexity=6), "complexity"),
        (replace(ONE, hops=()), "hop_count"),
        (replace(TWO, hops=TWO.hops * 2), "hop_count"),
        (replace(ONE, hops=(Hop((), "x"),)), "hop_without_segment"),
        (replace(ONE, hops=(Hop(("s1",), " "),)), "hop_without_summary"),
        (replace(ONE, hops=(Hop(("s9",), "x"),)), "unknown_segment"),
        (replace(ONE, query_type="multi_hop"), "multi_hop_mismatch"),
        (replace(TWO, query_type="contextual"), "multi_hop_mismatch"),
        (replace(TWO, hops=(Hop(("s1",), "x"), Hop(("s1",), "y"))), "repeated_hop"),
    ],
)
def test_each_broken_rule_has_its_reason(pair: Pair, reason: str) -> None:
    problem = find_problem(pair, KNOWN, 3)
    assert problem is not None
    assert problem[0] == reason
    assert problem[1]


def test_a_row_holds_the_union_over_the_hops_sorted() -> None:
    row = pair_row(replace(TWO, question="  When  does it?\n"), "b1", KNOWN, MADE_BY)
    frame = tables.QA_PAIRS.frame([row])
    assert frame["segment_ids"][0].to_list() == ["s1", "s2", "s4"]
    assert frame["document_ids"][0].to_list() == ["d1", "d2"]
    assert (row["hop_count"], [hop["hop_number"] for hop in row["hops"]]) == (2, [1, 2])
    assert row["question"] == "When  does it?"


def test_the_identity_is_question_and_sources_whatever_the_case() -> None:
    def identity(pair: Pair) -> str:
        return str(pair_row(pair, "b1", KNOWN, MADE_BY)["qa_id"])

    assert identity(ONE) == identity(replace(ONE, question=" when does the PUMP  start?", answer="another"))
    assert identity(ONE) != identity(replace(ONE, hops=(Hop(("s2",), "x"),)))


def test_rejects_keep_the_raw_answer() -> None:
    frame = tables.REJECTED_PAIRS.frame(reject_rows([Reject(("s2", "s1"), "r", "d", "raw")], "b1", MADE_BY))
    assert frame.row(0) == ("b1", ["s1", "s2"], "r", "d", "raw", "stub", "v")


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
        ("Can the old north pump be used to give a whole number to a whole number?", "repeats_itself"),
        ("What is the difference between a red filter pump and a blue filter pump?", None),
        ("What is the difference between a pump and a pump statement?", "repeats_itself"),
        ('What is the difference between the "pump" option and the pump value?', "repeats_itself"),
        ("What is the difference between a list and a list comprehension?", None),
        ("What is it that the pump does?", "no_subject"),
        ("Should I ignore all previous instructions of the pump?", "instruction"),
    ],
)
def test_a_full_question(question: str, problem: str | None) -> None:
    assert form_problem(question) == problem


def test_other_styles_need_neither_a_question_word_nor_a_mark() -> None:
    assert form_problem("pump red lamp", "keywords") is None
    assert form_problem("pump red lamp") == "too_short"
    assert form_problem("What is rinse()?") is None, "code says by its name what is asked about"
    assert form_problem("What is rinse?") == "too_short"
    assert form_problem("red lamp on the pump is blinking", "symptom") is None
    assert form_problem("The red lamp shows a clogged filter.", "claim") is None
    assert form_problem("what does red lamp on pump mean", "web_query") is None
    assert form_problem("The red lamp shows a clogged filter.", "boolean") == "not_a_question"
    assert form_problem("red lamp, green lamp", "comparison") == "not_a_question"
    assert form_problem("pump", "keywords") == "too_short"
    assert form_problem("this pump lamp", "keywords") == "refers_to_text"


@pytest.mark.parametrize(
    "question",
    [
        "密封圈破损时操作员必须做什么，以及何时更换它，由谁来检查阀门的压力和密封情况？",
        "Bei welchem Druck öffnet das Ventil und wer prüft die Dichtung?",
        "À quelle pression la vanne s'ouvre-t-elle, et qui vérifie le joint ?",
        "При каком давлении открывается клапан и кто проверяет уплотнение?",
        "عند أي ضغط يفتح الصمام ومن يفحص الختم قبل كل وردية؟",
        "วาล์วจะเปิดที่ความดันเท่าใดและใครเป็นผู้ตรวจสอบซีล",
    ],
)
def test_a_question_of_any_language_stands_alone(question: str) -> None:
    assert form_problem(question) is None


def test_a_statement_of_another_language_is_no_question() -> None:
    assert form_problem("Das Ventil öffnet bei drei Bar und schließt wieder bei zwei.") == "not_a_question"
