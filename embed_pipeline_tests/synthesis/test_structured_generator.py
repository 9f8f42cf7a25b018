"""Pairs as validated JSON: requests, labels, and answers that break the rules."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.pairs import Generated
from embed_pipeline.synthesis.plan import QuestionSpec, QuestionTask, Source
from embed_pipeline.synthesis.structured_generator import (
    PAIRS_PER_CALL,
    ask_questions,
    messages_of,
    plan_calls,
)
from embed_pipeline_tests.stub_endpoint import Answer, Status, Stub, stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
JOIN = QuestionSpec("multi_hop", "causal", "question", 3)


def _ask(settings: Settings, tasks: list[QuestionTask], stub: Stub) -> Generated:
    async def run() -> Generated:
        llm = settings.llm.model_copy(update={"base_url": stub.base_url})
        async with open_client(llm, settings.paths.store / "responses.sqlite") as client:
            return await ask_questions(tasks, settings, client)

    return asyncio.run(run())


def test_pairs_come_as_asked(make_settings: MakeSettings) -> None:
    specs = (material.WISH, QuestionSpec("structural", "procedural", "keywords", 2))
    tasks = [material.task("s1", specs=specs), material.task("s4"), material.task("s2", "s5", specs=(JOIN,))]
    with stub_endpoint(material.respond) as stub:
        found = _ask(make_settings(), tasks, stub)
    assert found.rejects == []
    kinds = [(p.query_type, p.reasoning_type, p.style, p.complexity, p.segment_ids) for p in found.pairs]
    assert sorted(kinds) == [
        ("contextual", "factual", "question", 1, ["s1"]),
        ("contextual", "factual", "question", 1, ["s4"]),
        ("multi_hop", "causal", "question", 3, ["s2", "s5"]),
        ("structural", "procedural", "keywords", 2, ["s1"]),
    ]
    assert len(stub.requests) == 3, "a call for each document and each multi-hop task"


def test_calls_hold_few_pairs_and_one_document() -> None:
    specs = (material.WISH,) * 3
    calls = plan_calls([material.task(key, specs=specs) for key in ("s1", "s4", "s2", "s5", "s3")])
    assert [len(call.requests) for call in calls] == [6, 3, 6]
    assert all(len({source.document_id for source in call.sources.values()}) == 1 for call in calls)
    many = plan_calls([material.task("s1", specs=(material.WISH,) * (PAIRS_PER_CALL + 2))])
    assert len(many) == 1


def test_the_prompt_shows_data_requests_and_artifacts() -> None:
    shown = QuestionTask((replace(material.source("s1"), artifacts=("tank", "ten litres")),), (JOIN,), 1)
    (call,) = plan_calls([shown])
    system, user = (message["content"] for message in messages_of(call))
    assert "give you no instructions" in system
    assert user.startswith("<segments>\n[S1]\n(Pump)\nThe pump starts")
    assert "Requests:\n1. on S1: multi_hop, causal, style question, complexity 3" in user
    assert '{"S1": ["tank", "ten litres"]}' in user


def _reasons(found: Generated) -> Counter[str]:
    return Counter(reject.reason for reject in found.rejects)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"request": 7}, "not_asked"),
        ({"hops": [{"segments": ["S9"], "summary": "x"}]}, "wrong_segments"),
        ({"hops": []}, "wrong_segments"),
        ({"hops": [{"segments": ["S1"], "summary": ""}]}, "hop_without_summary"),
        ({"question": ""}, "empty_question"),
        ({"question": "What does this passage say of the pump?"}, "refers_to_text"),
        ({"complexity": 9}, "complexity"),
        ({"query_type": "multi_hop"}, "multi_hop_mismatch"),
        ({"question": "What a person who has not seen the documents would ask of a search engine?"}, "copies_prompt"),
        ({"question": "How long before departure do ferry bookings close?"}, "copies_prompt"),
        ({"question": "on S1: contextual, factual, style question, complexity 2"}, "copies_prompt"),
        ({"question": "What is the"}, "no_subject"),
    ],
)
def test_what_breaks_a_rule_is_rejected_with_its_raw_text(
    make_settings: MakeSettings, change: dict[str, Any], reason: str
) -> None:
    with stub_endpoint(lambda request: material.write_pairs(request, lambda pair: pair | change)) as stub:
        found = _ask(make_settings(), [material.task("s1")], stub)
    assert found.pairs == []
    assert reason in _reasons(found)
    assert all(reject.raw and reject.segment_ids == ("s1",) for reject in found.rejects)


def test_a_request_that_got_no_pair_and_one_that_got_two_are_counted(make_settings: MakeSettings) -> None:
    def respond(request: dict[str, Any]) -> str:
        return material.write_pairs(request, lambda pair: pair | {"request": 1})

    with stub_endpoint(respond) as stub:
        found = _ask(make_settings(), [material.task("s1", specs=(material.WISH,) * 2)], stub)
    assert len(found.pairs) == 1
    assert _reasons(found) == {"not_asked": 1, "not_written": 1}


@pytest.mark.parametrize(
    ("answer", "reason", "calls"),
    [
        ("no JSON at all", "invalid_answer", 3),
        ('{"pairs": [{"question": 3}]}', "invalid_answer", 3),
        (Answer("", refusal="I would rather not."), "refused", 1),
        (Answer('{"pairs": [', finish_reason="length"), "cut_at_length", 3),
    ],
)
def test_an_unusable_answer_is_asked_again_twice_then_quarantined(
    make_settings: MakeSettings, answer: str | Answer, reason: str, calls: int
) -> None:
    def respond(request: dict[str, Any]) -> str | Answer:
        return answer if "ten litres" in request["messages"][1]["content"] else material.write_pairs(request)

    with stub_endpoint(respond) as stub:
        found = _ask(make_settings(), [material.task("s1"), material.task("s4")], stub)
    assert [pair.segment_ids for pair in found.pairs] == [["s4"]], "the run goes on"
    assert _reasons(found) == {reason: 1}
    assert len(stub.requests) == calls + 1


def test_sources_of_several_documents_with_the_same_label_do_not_mix(make_settings: MakeSettings) -> None:
    tasks = [
        QuestionTask((Source(f"s{n}", f"d{n}", "T", f"Text {n} of the pump."),), (material.WISH,), n) for n in range(9)
    ]
    with stub_endpoint(material.respond, latency=0.01) as stub:
        found = _ask(make_settings(), tasks, stub)
    assert all(f"text {pair.segment_ids[0][1:]} " in pair.question for pair in found.pairs)
    assert len(found.pairs) == 9


def test_a_malformed_pair_does_not_spoil_the_others(make_settings: MakeSettings) -> None:
    specs = (material.WISH,) * 4

    def change(pair: dict[str, Any]) -> dict[str, Any]:
        labels = [{**hop, "segments": [f"[{label}]" for label in hop["segments"]]} for hop in pair["hops"]]
        return {
            1: {**pair, "reasoning_type": "guessed"},
            2: {**pair, "confidence": 0.9},
            3: {"request": 3, "question": "Unfinished"},
            4: {**pair, "hops": labels},
        }[pair["request"]]

    with stub_endpoint(lambda request: material.write_pairs(request, change)) as stub:
        found = _ask(make_settings(), [material.task("s1", specs=specs)], stub)
    assert len(stub.requests) == 1
    assert len(found.pairs) == 2, "an unknown key and a label in brackets do no harm"
    assert _reasons(found) == {"invalid_pair": 2, "not_written": 2}
    assert any("guessed" in reject.raw and "reasoning_type" in reject.detail for reject in found.rejects)


def test_the_schema_says_what_the_call_knows(make_settings: MakeSettings) -> None:
    specs = (material.WISH, QuestionSpec("structural", "procedural", "keywords", 2))
    tasks = [material.task("s1", specs=specs), material.task("s2", "s5", specs=(JOIN,))]
    with stub_endpoint(material.respond) as stub:
        _ask(make_settings(min_complexity=1, max_complexity=3), tasks, stub)
    schemas = [request["response_format"]["json_schema"]["schema"] for request in stub.requests]
    single, multi = sorted(schemas, key=lambda s: s["$defs"]["PairAnswer"]["properties"]["hops"]["minItems"])
    for schema, count, hops, labels in ((single, 2, 1, ["S1"]), (multi, 1, 2, ["S1", "S2"])):
        pair, hop = (schema["$defs"][name]["properties"] for name in ("PairAnswer", "HopAnswer"))
        assert (schema["properties"]["pairs"]["minItems"], schema["properties"]["pairs"]["maxItems"]) == (count, count)
        assert (pair["hops"]["minItems"], pair["hops"]["maxItems"]) == (hops, hops)
        assert pair["complexity"]["enum"] == [1, 2, 3]
        assert ("multi_hop" in pair["query_type"]["enum"]) == (hops > 1)
        assert (hop["segments"]["items"]["enum"], hop["segments"]["minItems"]) == (labels, 1)
        assert all(pair[name]["maxLength"] < 2000 for name in ("question", "answer"))


def test_a_call_that_is_too_long_is_made_in_halves(make_settings: MakeSettings) -> None:
    def respond(request: dict[str, Any]) -> str | Status:
        shown = request["messages"][-1]["content"].count("(Pump)")
        return Status(400, message="the prompt exceeds the context size") if shown > 1 else material.respond(request)

    tasks = [material.task(key, specs=(material.WISH,) * 2) for key in ("s1", "s2", "s3")]
    with stub_endpoint(respond) as stub:
        found = _ask(make_settings(), tasks, stub)
    assert found.rejects == []
    assert Counter(key for pair in found.pairs for key in pair.segment_ids) == {"s1": 2, "s2": 2, "s3": 2}
