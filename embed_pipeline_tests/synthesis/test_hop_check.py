from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.judge import ask_hops_needed, hop_need
from embed_pipeline_tests.stub_endpoint import stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]


@pytest.mark.parametrize(
    ("question", "low", "high"),
    [
        ("Does a red lamp add two percent to the invoice?", 0.4, 0.6),
        ("What does a red lamp mean for the pump?", 0.0, 0.0),
        ("Which elephants fly?", 0.0, 0.0),
        ("Is the fee of two percent for a late payment shown by a lamp?", 0.01, 0.3),
    ],
)
def test_the_need_of_a_hop_is_what_only_it_answers(question: str, low: float, high: float) -> None:
    assert low <= hop_need(material.pair_row("q", question, "s2", "s5"), material.TEXTS, {}) <= high


def test_rare_words_count_more_and_a_single_hop_is_needed() -> None:
    row = material.pair_row("q", "Does a red lamp add to the fee?", "s2", "s5")
    plain = hop_need(row, material.TEXTS, {})
    assert hop_need(row, material.TEXTS, {"fee": 9.0}) < plain, "the lamp is the lesser part of it"
    assert hop_need(material.pair_row("q", "Anything at all?", "s2"), material.TEXTS, {}) == 1


def _ask(settings: Settings, respond: Callable[[dict[str, Any]], str]) -> list[bool | InvalidAnswer]:
    row = material.pair_row("q", "Does a red lamp add to the fee?", "s2", "s5")

    async def run(base_url: str) -> list[bool | InvalidAnswer]:
        llm = settings.llm.model_copy(update={"base_url": base_url})
        async with open_client(llm, settings.paths.store / "responses.sqlite") as client:
            return await ask_hops_needed([row], material.TEXTS, settings, client)

    with stub_endpoint(respond) as stub:
        return asyncio.run(run(stub.base_url))


def test_the_judge_says_whether_all_hops_are_needed(make_settings: MakeSettings) -> None:
    def one_of_two(request: dict[str, Any]) -> str:
        answer = json.loads(material.need_hops(request))
        answer["segments"][1]["needed"] = False
        return json.dumps(answer)

    assert _ask(make_settings(), material.need_hops) == [True]
    assert _ask(make_settings(llm={"model": "other"}), one_of_two) == [False]


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [{"segment": "S1", "needed": True, "reason": "x"}],
        [{"segment": name, "needed": True, "reason": "x"} for name in ("S1", "S3")],
        [{"segment": name, "needed": "yes", "reason": "x"} for name in ("S1", "S2")],
    ],
    ids=["none", "one", "another", "no boolean"],
)
def test_an_answer_that_leaves_a_segment_out_is_none(make_settings: MakeSettings, segments: list[Any]) -> None:
    (answer,) = _ask(make_settings(), lambda _: json.dumps({"segments": segments}))
    assert isinstance(answer, InvalidAnswer)
    assert answer.reason == "invalid_answer"
