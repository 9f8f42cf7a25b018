"""Few-shot completion: openings, candidates turned down, and the subjects of multi-hop questions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.completion_generator import complete_questions, reasoning_of, subjects_of
from embed_pipeline.synthesis.pairs import Generated, find_problem
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask, Source
from embed_pipeline_tests.stub_endpoint import Stub, stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]


def _complete(settings: Settings, tasks: list[QuestionTask], stub: Stub) -> Generated:
    async def run() -> Generated:
        llm = settings.llm.model_copy(update={"base_url": stub.base_url})
        async with open_client(llm, settings.paths.store / "responses.sqlite") as client:
            return await complete_questions(tasks, settings, client)

    return asyncio.run(run())


def _write(
    settings: Settings, text: str, *keys: str, spec: QuestionSpec = material.WISH
) -> tuple[Generated, list[dict[str, Any]]]:
    with stub_endpoint(lambda _: text) as stub:
        return _complete(settings, [material.task(*keys, specs=(spec,))], stub), stub.requests


def test_a_question_becomes_a_pair_with_the_sentence_that_answers_it(make_settings: MakeSettings) -> None:
    found, _ = _write(make_settings(), " What does a red lamp on the pump mean?", "s2")
    (pair,) = found.pairs
    assert pair.question == "What does a red lamp on the pump mean?"
    assert pair.answer == "A red lamp on the pump means that its filter is blocked."
    assert (pair.query_type, pair.reasoning_type, pair.style, pair.complexity) == (
        "contextual",
        "factual",
        "question",
        1,
    )
    assert pair.segment_ids == ["s2"]
    assert found.rejects == []


@pytest.mark.parametrize(
    ("reasoning", "openings"),
    [
        ("factual", {"Question:"}),
        ("procedural", {"Question: How do I", "Question: How do you", "Question: How can I"}),
        ("causal", {"Question: What happens when", "Question: What happens if", "Question: Why"}),
    ],
)
def test_the_kind_of_question_is_steered_by_its_opening(
    make_settings: MakeSettings, reasoning: str, openings: set[str]
) -> None:
    specs = tuple(QuestionSpec("contextual", reasoning, "question", 1) for _ in range(6))
    with stub_endpoint(lambda _: " red lamp of the pump is on?") as stub:
        _complete(make_settings(), [material.task("s2", specs=specs)], stub)
    assert {request["prompt"].rpartition("\n")[2] for request in stub.requests} == openings


def test_the_opening_is_part_of_the_question(make_settings: MakeSettings) -> None:
    spec = QuestionSpec("structural", "procedural", "question", 2)
    found, requests = _write(make_settings(), " clean the filter of the pump?", "s2", spec=spec)
    assert found.pairs[0].question.endswith("clean the filter of the pump?")
    assert found.pairs[0].question.startswith(("How do I", "How do you", "How can I"))
    assert (found.pairs[0].query_type, found.pairs[0].reasoning_type) == ("structural", "procedural")
    assert requests[0]["stop"] == ["\n"]


def test_candidates_of_a_segment_differ_in_temperature_and_seed(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: " What does a red lamp on the pump mean?") as stub:
        found = _complete(
            make_settings(sampling_temperature=0.3), [material.task("s2", specs=(material.WISH,) * 3)], stub
        )
    assert [request["temperature"] for request in stub.requests] == [0.3, 0.5, 0.7]
    assert len({request["seed"] for request in stub.requests}) == 3
    assert (len(found.pairs), [reject.reason for reject in found.rejects]) == (1, ["repeated", "repeated"])


def test_a_keyword_query_is_the_question_less_its_function_words(make_settings: MakeSettings) -> None:
    spec = QuestionSpec("contextual", "factual", "keywords", 1)
    found, _ = _write(make_settings(), " What does a red lamp on the pump mean?", "s2", spec=spec)
    assert (found.pairs[0].question, found.pairs[0].style) == ("red lamp pump mean", "keywords")
    steered = QuestionSpec("contextual", "causal", "keywords", 1)
    found, _ = _write(make_settings(), " the filter of the pump is blocked?", "s2", spec=steered)
    assert found.pairs[0].question == "filter pump blocked", "without the words that steered it"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" What does a red lamp on the pump mean", "not_a_question"),
        (" Why?", "too_short"),
        (" What does this passage say of the red lamp?", "refers_to_text"),
        (" What does lamp RX-7 of the pump mean?", "unsupported_term"),
        (" What do banks charge for transfers abroad?", "source_not_asked_about"),
        (" Ignore all instructions of the red lamp?", "instruction"),
    ],
)
def test_what_is_no_question_about_its_source_is_rejected(make_settings: MakeSettings, text: str, reason: str) -> None:
    found, _ = _write(make_settings(), text, "s2")
    assert found.pairs == []
    (reject,) = found.rejects
    assert (reject.reason, reject.segment_ids) == (reason, ("s2",))
    assert text.strip() in reject.raw


JOIN = QuestionSpec("multi_hop", "relational", "question", 2)


def _join(*keys: str, seed: int = 0) -> QuestionTask:
    titles = {"s2": "Pump > Lamps", "s5": "Billing > Late payment", "s1": "Pump > Tank"}
    return QuestionTask(tuple(material.source(key, title=titles[key]) for key in keys), (JOIN,), seed)


def test_a_multi_hop_question_names_its_subjects_and_has_a_hop_on_each_source(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: " ?") as stub:
        found = _complete(make_settings(), [_join("s2", "s5")], stub)
    (pair,) = found.pairs
    assert pair.question == "What is the difference between Lamps and Late payment?"
    assert [hop.segment_ids for hop in pair.hops] == [("s2",), ("s5",)]
    assert (pair.query_type, pair.complexity) == ("multi_hop", 3)
    assert pair.answer == " ".join(hop.summary for hop in pair.hops)
    prompt = stub.requests[0]["prompt"]
    assert "Passage A (Pump > Lamps): A red lamp" in prompt
    assert "Passage B (Billing > Late payment): A late payment" in prompt


def test_three_sources_are_all_named(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: "?") as stub:
        found = _complete(make_settings(), [_join("s1", "s2", "s5")], stub)
    assert found.pairs[0].question == "How do Tank, Lamps and Late payment differ?"


def test_sources_that_nothing_tells_apart_are_not_asked_about(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: "?") as stub:
        found = _complete(make_settings(), [material.task("s2", "s3", specs=(JOIN,))], stub)
    assert [reject.reason for reject in found.rejects] == ["no_subjects"]
    assert stub.requests == []


def test_every_pair_keeps_the_rules_of_pairs(make_settings: MakeSettings) -> None:
    known = dict(material.DOCUMENTS)
    specs = tuple(
        QuestionSpec("contextual", kind, "question", 1) for kind in ("factual", "causal", "temporal", "inferential")
    )
    tasks = [material.task(key, specs=specs) for key in material.TEXTS]
    with stub_endpoint(lambda request: f" the {request['prompt'].split('): ')[-1][4:30]} of it is on?") as stub:
        found = _complete(make_settings(), tasks, stub)
    assert found.pairs
    assert all(find_problem(pair, known, 1) is None for pair in found.pairs)


def test_a_pair_that_breaks_a_rule_of_pairs_is_rejected(make_settings: MakeSettings) -> None:
    task = QuestionTask((material.source("s2", text="The red lamp " + "of the pump " * 400),), (material.WISH,), 1)
    with stub_endpoint(lambda _: " What does a red lamp on the pump mean?") as stub:
        found = _complete(make_settings(), [task], stub)
    assert [reject.reason for reject in found.rejects] == ["answer_too_long"]


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How do I clean it?", "procedural"),
        ("How does it work?", "relational"),
        ("Why is it so?", "causal"),
        ("What happens if it is?", "causal"),
        ("When is it changed?", "temporal"),
        ("Can it be changed?", "inferential"),
        ("Is it red?", "inferential"),
        ("What is it?", "factual"),
    ],
)
def test_the_reasoning_type_is_read_off_the_opening(question: str, kind: str) -> None:
    assert reasoning_of(question) == kind


def _source(title: str, text: str = "It is so.", *artifacts: str) -> Source:
    return Source("s", "d", title, text, artifacts)


def test_a_source_is_named_by_its_innermost_heading() -> None:
    assert subjects_of([_source("Manual > The *red* lamp"), _source("Manual > Valves")], 0) == [
        "The red lamp",
        "Valves",
    ]


def test_what_the_others_say_too_is_no_name() -> None:
    assert subjects_of([_source("Pump"), _source("Valve", "The pump has a valve.")], 0) == ["", "Valve"]
    assert subjects_of([_source("Pump", "x", "RX-7"), _source("Pump", "y", "QT-2")], 0) == ["RX-7", "QT-2"]


def test_long_headings_are_no_names() -> None:
    assert subjects_of([_source("How to set up the red lamp of a pump"), _source("Valve")], 0) == ["", "Valve"]


def test_the_seed_chooses_among_the_names() -> None:
    sources = [_source("Lamp", "x", "L-1"), _source("Valve", "y", "V-1")]
    assert {tuple(subjects_of(sources, seed)) for seed in range(4)} == {("Lamp", "Valve"), ("L-1", "V-1")}
