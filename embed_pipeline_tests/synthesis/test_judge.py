from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.judge import Judgement, NoVerdict, ask_judge
from embed_pipeline_tests.stub_endpoint import Stub, stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
PAIR = material.pair_row("q1", "What does a red lamp mean?", "s2")


def _judge(settings: Settings, stub: Stub, *rows: dict[str, Any]) -> list[Judgement | NoVerdict]:
    async def run() -> list[Judgement | NoVerdict]:
        llm = settings.llm.model_copy(update={"base_url": stub.base_url})
        async with open_client(llm, settings.paths.store / "responses.sqlite") as client:
            return await ask_judge(rows or [PAIR], material.TEXTS, settings, client)

    return asyncio.run(run())


def test_a_verdict_has_four_scores_each_with_a_reason(make_settings: MakeSettings) -> None:
    answer = {
        name: {"score": score, "justification": f"for {name}"}
        for name, score in zip(CRITERIA, (9, 8.5, 7, 1), strict=True)
    }
    with stub_endpoint(lambda _: json.dumps(answer)) as stub:
        (verdict,) = _judge(make_settings(), stub)
    assert isinstance(verdict, Judgement)
    assert verdict.scores == (9, 8.5, 7, 1)
    assert verdict.justifications[0] == "for relevance"
    assert verdict.overall == pytest.approx(6.375)


@pytest.mark.parametrize("score", [float("nan"), "9/10", "9", 11, 0, -1, None, True, float("inf")])
def test_a_score_that_is_none_is_rejected_and_never_coerced(make_settings: MakeSettings, score: object) -> None:
    with stub_endpoint(lambda _: material.judge_pair(score)) as stub:
        (verdict,) = _judge(make_settings(), stub)
    assert isinstance(verdict, NoVerdict)
    assert (verdict.qa_id, verdict.reason) == ("q1", "invalid_answer")
    assert verdict.raw
    assert len(stub.requests) == 3


@pytest.mark.parametrize("missing", [*CRITERIA, "justification"])
def test_a_verdict_that_lacks_a_part_is_rejected(make_settings: MakeSettings, missing: str) -> None:
    answer = json.loads(material.judge_pair())
    for part in answer.values():
        part.pop(missing, None)
    answer.pop(missing, None)
    with stub_endpoint(lambda _: json.dumps(answer)) as stub:
        assert isinstance(_judge(make_settings(), stub)[0], NoVerdict)


def test_each_pair_is_judged_alone_with_its_segments_as_data(make_settings: MakeSettings) -> None:
    attack = material.pair_row("q2", "When are invoices sent?", "s4")
    with stub_endpoint(lambda _: material.judge_pair()) as stub:
        _judge(make_settings(), stub, PAIR, attack)
    assert len(stub.requests) == 2
    asked = sorted(request["messages"][1]["content"] for request in stub.requests)
    assert asked[0].startswith("<segments>\n[S1]\nA red lamp")
    assert asked[1].startswith("<segments>\n[S1]\nInvoices")
    assert not any("Invoices" in text and "red lamp" in text for text in asked)


def test_the_judge_may_be_another_model(make_settings: MakeSettings) -> None:
    with stub_endpoint(lambda _: material.judge_pair()) as stub:
        _judge(make_settings(llm={"judge_model": "strict"}), stub)
    assert stub.requests[0]["model"] == "strict"
