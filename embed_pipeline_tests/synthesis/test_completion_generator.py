"""Few-shot completion: openings, the best of several candidates, and questions that join segments."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.completion_generator import FOCUSES, complete_questions, reasoning_of
from embed_pipeline.synthesis.pairs import Generated, find_problem
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask
from embed_pipeline_tests.stub_endpoint import Answer, Stub, stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
ANY = QuestionSpec("contextual", "visual", "question", 1)
"""A kind of question without openings of its own."""


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
    found, _ = _write(make_settings(), " What does a red lamp on the pump mean?", "s2", spec=ANY)
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
        ("procedural", {"Question: How do I", "Question: How do you", "Question: How can I"}),
        ("relational", {"Question: How does", "Question: How is", "Question: What is the difference between"}),
    ],
)
def test_the_kind_of_question_is_steered_by_its_opening(
    make_settings: MakeSettings, reasoning: str, openings: set[str]
) -> None:
    specs = tuple(QuestionSpec("contextual", reasoning, "question", 1) for _ in range(3))
    task = QuestionTask((material.source("s2", title="How it works"),), specs, 7)
    with stub_endpoint(lambda _: " red lamp of the pump is on?") as stub:
        _complete(make_settings(), [task], stub)
    assert {request["prompt"].rpartition("\n")[2] for request in stub.requests} == openings


@pytest.mark.parametrize(
    ("text", "reasoning", "begins"),
    [
        ("The lamp is cleaned if dust dims its red light.", "causal", {"What happens"}),
        ("The lamp is cleaned well. Dust dims its red light.", "causal", {"What"}),
        ("The lamp is cleaned every month in the north.", "temporal", {"When"}),
        ("The lamp is cleaned well in the cold north.", "temporal", {"What"}),
    ],
)
def test_when_is_asked_only_of_a_sentence_that_says_when(
    make_settings: MakeSettings, text: str, reasoning: str, begins: set[str]
) -> None:
    specs = tuple(QuestionSpec("contextual", reasoning, "question", 1) for _ in range(6))
    with stub_endpoint(lambda _: Answer(" the lamp?", log_probability=-2.0)) as stub:
        _complete(make_settings(), [QuestionTask((material.source("s2", text=text),), specs, 0)], stub)
    openings = [request["prompt"].rpartition("\nQuestion: ")[2] for request in stub.requests]
    assert set(re.findall(r"^(?:What happens|\w+)", "\n".join(openings), re.MULTILINE)) == begins


def test_a_question_that_says_all_that_its_answer_says_is_turned_away(make_settings: MakeSettings) -> None:
    text = "Old pumps with a red lamp run all night."
    with stub_endpoint(lambda _: Answer(" Do old pumps with a red lamp run all night?", log_probability=-0.1)) as stub:
        found = _complete(make_settings(), [QuestionTask((material.source("s2", text=text),), (ANY,), 0)], stub)
    assert [reject.reason for reject in found.rejects] == ["answer_adds_nothing"]


@pytest.mark.parametrize(
    ("question", "sentence", "reasons"),
    [
        ("What does a red lamp do?", "A red lamp on the pump stops the motor within seconds.", []),
        ("What is a night run?", "Without water, the pump begins what is called a night run of its motor.", []),
        ("What is a red lamp?", "The motor of the pump stops within seconds of a red lamp.", ["not_about"]),
        ("What does a red lamp do", "Nobody may enter the cellar after dark when a red lamp glows.", ["not_about"]),
        ("What does a red lamp do when it glows?", "The motor stops within seconds when a red lamp glows.", []),
        ("What is the colour of the lamp?", "The motor stops at once when the colour of the lamp is red.", []),
    ],
)
def test_what_a_thing_is_or_does_is_asked_of_a_sentence_about_it(
    make_settings: MakeSettings, question: str, sentence: str, reasons: list[str]
) -> None:
    with stub_endpoint(lambda _: Answer(f" {question.rstrip('?')}?", log_probability=-0.1)) as stub:
        found = _complete(make_settings(), [QuestionTask((material.source("s2", text=sentence),), (ANY,), 0)], stub)
    assert [reject.reason for reject in found.rejects] == reasons


def test_no_question_is_asked_about_a_sentence_that_only_points_elsewhere(make_settings: MakeSettings) -> None:
    task = QuestionTask((material.source("s2", text="See also the manual for red lamps and light."),), (ANY,), 0)
    with stub_endpoint(lambda _: " the lamp?") as stub:
        found = _complete(make_settings(), [task], stub)
    assert not stub.requests
    assert [reject.reason for reject in found.rejects] == ["nothing_to_ask"]


def test_a_question_begins_with_a_name_that_its_source_is_about_or_its_heading(make_settings: MakeSettings) -> None:
    text = (
        "Lamp filters are cleaned with `rinse()`. The weather in the north is wet. "
        "Old lamp filters have rust, and rinse() helps."
    )
    specs = tuple(QuestionSpec("contextual", "relational", "question", 1) for _ in range(4))
    with stub_endpoint(lambda _: Answer(" the lamp?", log_probability=-2.0)) as stub:
        _complete(make_settings(), [QuestionTask((material.source("s2", text=text),), specs, 0)], stub)
    openings: dict[str, set[str]] = {}
    for request in stub.requests:
        shown, _, opening = request["prompt"].rpartition("\nQuestion: ")
        openings.setdefault(shown.rpartition(" ")[2], set()).add(opening)
    assert openings == {
        "rinse().": {"How do lamp filters", "How does rinse()", "How are lamp filters", "How is rinse()"},
        "wet.": {"How does pump", "How is pump"},
        "helps.": {"How does rinse()", "How is rinse()"},
    }


def test_sentences_about_what_the_source_is_about_come_first_and_very_short_ones_last(
    make_settings: MakeSettings,
) -> None:
    text = (
        "Lamp filters shine. Weathered granite boulders outlast sandstone cliffs. Volcanic basalt columns withstand "
        "arctic storms. Old lamp filters have rust, and rinse() helps. Every dry morning lamp filters need `rinse()`."
    )
    with stub_endpoint(lambda _: Answer(" the lamp?", log_probability=-2.0)) as stub:
        _complete(make_settings(), [QuestionTask((material.source("s2", text=text),), (material.WISH,), 0)], stub)
    shown = [request["prompt"].rpartition("\nQuestion: ")[0].rpartition(" ")[2] for request in stub.requests]
    assert len(shown) == FOCUSES
    assert set(shown[:2]) == {"rinse().", "helps."}


def test_the_model_is_shown_a_sentence_at_a_time_with_the_one_before_it(make_settings: MakeSettings) -> None:
    _, requests = _write(make_settings(), " What does a lamp cost?", "s2", spec=ANY)
    shown = [request["prompt"].rpartition("\n\n")[2].rpartition("\n")[0] for request in requests]
    first = "A red lamp on the pump means that its filter is blocked."
    assert shown == [f"Text (Pump): {first}", f"Text (Pump): {first} Clean the filter with water."]


def test_sentences_of_scripts_without_spaces_are_told_apart(make_settings: MakeSettings) -> None:
    first, second = "水泵上的红灯亮起表示过滤器已经堵塞，需要立即清洗。", "清洗过滤器时请先关闭水泵并且等待十分钟。"
    task = QuestionTask((material.source("s2", text=first + second),), (material.WISH,), 1)
    with stub_endpoint(lambda _: " What is it?") as stub:
        _complete(make_settings(), [task], stub)
    counts = [(request["prompt"].count(first), request["prompt"].count(second)) for request in stub.requests]
    assert sorted(counts) == [(1, 0), (1, 1)]


def test_code_tables_and_grammar_are_not_asked_about(make_settings: MakeSettings) -> None:
    text = "```\nlamp = pump.lamp(color=RED)\n```\n\nexpr ::= lamp | pump\n\n| lamp | red |\n|---|---|\n| on | 1 |\n"
    with stub_endpoint(lambda _: " the lamp of the pump?") as stub:
        found = _complete(
            make_settings(), [QuestionTask((material.source("s2", text=text),), (material.WISH,) * 2, 1)], stub
        )
    assert (stub.requests, [reject.reason for reject in found.rejects]) == ([], ["nothing_to_ask"] * 2)


LAMP = " What does a red lamp on the pump mean?"
WATER = " What water does the filter need?"


@pytest.mark.parametrize(
    ("likely", "kept"),
    [
        ({LAMP: -0.4, WATER: -0.9}, [LAMP.strip()]),
        ({LAMP: -0.9, WATER: -0.2}, [WATER.strip()]),
        ({LAMP: -1.7, WATER: -1.7}, []),
    ],
)
def test_of_several_candidates_the_likelier_and_better_supported_is_kept(
    make_settings: MakeSettings, likely: dict[str, float], kept: list[str]
) -> None:
    script = [Answer(text, log_probability=value) for text, value in likely.items()]
    text = f"{material.TEXTS['s2'].removesuffix('.')} and a soft brush."
    with stub_endpoint(lambda _: "", script=script) as stub:
        found = _complete(make_settings(), [QuestionTask((material.source("s2", text=text),), (ANY,), 0)], stub)
    assert [pair.question for pair in found.pairs] == kept
    assert len(found.rejects) == 1 - len(kept)


def test_the_opening_is_part_of_the_question(make_settings: MakeSettings) -> None:
    spec = QuestionSpec("structural", "procedural", "question", 2)
    found, requests = _write(make_settings(), " clean the blocked filter of the pump?", "s2", spec=spec)
    assert found.pairs[0].question.endswith("clean the blocked filter of the pump?")
    opening = requests[0]["prompt"].rpartition("Question: ")[2]
    assert opening in {"How do I use pump", "How can I use pump"}
    assert found.pairs[0].question.startswith(opening)
    assert (found.pairs[0].query_type, found.pairs[0].reasoning_type) == ("structural", "procedural")
    assert requests[0]["stop"] == ["\n"]


def test_the_same_opening_is_tried_again_at_a_higher_temperature(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: " What does a red lamp on the pump tell people?") as stub:
        found = _complete(make_settings(sampling_temperature=0.3), [material.task("s2", specs=(ANY,) * 3)], stub)
    assert [request["temperature"] for request in stub.requests] == [0.3, 0.5, 0.7] * 2
    assert len({request["seed"] for request in stub.requests}) == 6
    assert (len(found.pairs), [reject.reason for reject in found.rejects]) == (1, ["repeated", "repeated"])


def test_a_wish_that_has_a_good_question_is_not_tried_on_further_sentences(make_settings: MakeSettings) -> None:
    text = " ".join(f"Lamp number {word} of the pump is red." for word in ("one", "two", "three", "four"))
    task = QuestionTask((material.source("s2", text=text),), (ANY,), 1)
    with stub_endpoint(lambda _: " What does a lamp of the pump cost?") as stub:
        _complete(make_settings(), [task], stub)
        assert len(stub.requests) == FOCUSES
    with stub_endpoint(lambda _: Answer(" Which lamp of the pump is red?", log_probability=-0.2)) as stub:
        _complete(make_settings(sampling_temperature=0.4), [task], stub)
        assert len(stub.requests) == 1


def test_a_keyword_query_is_what_the_sentence_says_of_a_question(make_settings: MakeSettings) -> None:
    spec = QuestionSpec("contextual", "visual", "keywords", 1)
    found, _ = _write(make_settings(), " What does a red lamp on the pump possibly mean, a lamp?", "s2", spec=spec)
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
        (" What is the difference between the pump and the pump?", "repeats_itself"),
        (" Which color of the lamp do most people prefer?", "unsupported"),
    ],
)
def test_what_is_no_question_about_its_source_is_rejected(make_settings: MakeSettings, text: str, reason: str) -> None:
    found, _ = _write(make_settings(), text, "s2", spec=ANY)
    assert found.pairs == []
    (reject,) = found.rejects
    assert (reject.reason, reject.segment_ids) == (reason, ("s2",))
    assert text.strip() in reject.raw


JOIN = QuestionSpec("multi_hop", "relational", "question", 2)


def _join(*keys: str, shared: str = "fee") -> QuestionTask:
    texts = {"s4": "A fee is owed after thirty days.", "s5": "The fee is two percent of the invoice."}
    titles = {"s4": "Billing > Due dates", "s5": "Billing > Late payment"}
    sources = tuple(material.source(key, title=titles[key], text=texts[key]) for key in keys)
    return QuestionTask(sources, (JOIN,), 0, (shared,))


def test_a_question_that_joins_segments_asks_for_what_each_says_of_the_shared_name(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: " the fee of two percent change after thirty days?") as stub:
        found = _complete(make_settings(), [_join("s4", "s5")], stub)
    (pair,) = found.pairs
    assert pair.question == "How does the fee of two percent change after thirty days?"
    assert [hop.segment_ids for hop in pair.hops] == [("s4",), ("s5",)]
    assert (pair.query_type, pair.complexity) == ("multi_hop", 3)
    assert pair.answer == "A fee is owed after thirty days. The fee is two percent of the invoice."
    prompt = stub.requests[0]["prompt"]
    assert "Text A (Billing > Due dates): A fee" in prompt
    assert "Text B (Billing > Late payment): The fee" in prompt


@pytest.mark.parametrize(
    ("text", "shared", "reason"),
    [
        (" the fee of two percent count?", "fee", "source_not_asked_about"),
        (" the fee of two percent change after thirty days?", "valve", "nothing_to_ask"),
    ],
)
def test_where_one_side_would_do_nothing_is_joined(
    make_settings: MakeSettings, text: str, shared: str, reason: str
) -> None:
    with stub_endpoint(lambda _: text) as stub:
        found = _complete(make_settings(), [_join("s4", "s5", shared=shared)], stub)
    assert (found.pairs, [reject.reason for reject in found.rejects]) == ([], [reason])


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
