"""Verdicts: asked of a model, measured, and whether each hop is needed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.answers import InvalidAnswer, strict_schema
from embed_pipeline.llm.client import open_client
from embed_pipeline.settings import Gates, Settings
from embed_pipeline.synthesis.judge import (
    JudgeAnswer,
    Judgement,
    NeedsAnswer,
    NoVerdict,
    ask_hops_needed,
    ask_judge,
    hop_need,
    judge_by_measure,
    plant_bad_pairs,
)
from embed_pipeline.synthesis.quality import judge_faults
from embed_pipeline.synthesis.score import score_pairs
from embed_pipeline.synthesis.structured_generator import copies_prompt
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


GOOD: dict[str, Any] = {
    "rank": 1, "bound_rank": 20, "answer_cosine": 0.8, "answer_support": 1.0, "grounding": 1.0,
    "overlap": 1.0, "problem": None, "idf": {"lamp": 4.0},
}  # fmt: skip
QUESTION = "What does a red lamp on the pump mean?"


def _measured(question: str = QUESTION, **changes: Any) -> Judgement:
    return judge_by_measure(question, **GOOD | changes)


def test_a_pair_that_measures_well_has_ten_everywhere() -> None:
    assert _measured().scores == (10, 10, 10, 10)
    assert _measured().overall == 10


@pytest.mark.parametrize(("rank", "score"), [(1, 10), (20, 6), (21, 5.93), (101, 3.84)])
def test_relevance_falls_with_the_rank_and_is_six_at_the_bound(rank: int, score: float) -> None:
    verdict = _measured(rank=rank)
    assert verdict.scores[0] == pytest.approx(score, abs=0.01)
    assert f"rank {rank}" in verdict.justifications[0]


@pytest.mark.parametrize(
    ("cosine", "support", "score"), [(0.7, 1, 10), (0.9, 0, 5.5), (0.39, 0.557, 6.01), (0.28, 0.8, 6.4), (-0.5, 0, 1)]
)
def test_accuracy_is_the_cosine_to_the_answer_and_its_words(cosine: float, support: float, score: float) -> None:
    assert _measured(answer_cosine=cosine, answer_support=support).scores[1] == pytest.approx(score, abs=0.01)


def test_support_is_the_mean_of_both_shares() -> None:
    assert _measured(grounding=1.0, overlap=0.5).scores[2] == pytest.approx(7.75)
    assert _measured(grounding=0.0, overlap=0.0).scores[2] == 1


def test_clarity_is_form_length_and_a_specific_word() -> None:
    assert _measured(problem="refers_to_text").scores[3] == 1
    assert _measured("What is the lamp?").scores[3] == 7
    assert _measured("What does the usual thing do for it?").scores[3] == 7
    assert _measured("What is the thing?").scores[3] == 4
    assert _measured("red lamp", style="keywords").scores[3] == 10
    assert _measured("What is the thing?").justifications[3] == "short; names nothing specific"


def test_any_rank_of_a_bound_of_one_is_scored() -> None:
    assert _measured(rank=1, bound_rank=1).scores[0] == 10
    assert _measured(rank=101, bound_rank=1).scores[0] == 1


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


def _hops_needed(settings: Settings, respond: Callable[[dict[str, Any]], str]) -> list[bool | InvalidAnswer]:
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

    assert _hops_needed(make_settings(), material.need_hops) == [True]
    assert _hops_needed(make_settings(llm={"model": "other"}), one_of_two) == [False]


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
    (answer,) = _hops_needed(make_settings(), lambda _: json.dumps({"segments": segments}))
    assert isinstance(answer, InvalidAnswer)
    assert answer.reason == "invalid_answer"


def test_reasons_come_before_what_follows_from_them() -> None:
    criterion = strict_schema(JudgeAnswer)["$defs"]["Criterion"]
    need = strict_schema(NeedsAnswer)["$defs"]["SegmentNeed"]
    assert list(criterion["properties"]) == ["justification", "score"]
    assert list(need["properties"]) == ["segment", "reason", "needed"]
    assert criterion["properties"]["justification"]["maxLength"] < 1000
    assert set(criterion["properties"]["score"]["enum"]) == {half / 2 for half in range(2, 21)}


def _rows(count: int) -> list[dict[str, Any]]:
    keys = sorted(material.TEXTS)
    return [material.pair_row(f"q{number:02}", f"Question {number}?", keys[number % 5]) for number in range(count)]


def test_planted_pairs_are_bad_and_only_for_batches_that_are_large_enough() -> None:
    assert plant_bad_pairs(_rows(9)) == []
    rows = {row["qa_id"]: row for row in _rows(20)}
    planted = plant_bad_pairs(list(rows.values()))
    assert Counter(pair["planted"] for pair in planted) == {"wrong_answer": 3, "other_segment": 3, "copied_prompt": 3}
    for pair in planted:
        good = rows[pair["qa_id"]]
        assert (pair["answer"] != good["answer"]) == (pair["planted"] == "wrong_answer")
        assert (pair["question"] != good["question"]) == (pair["planted"] == "copied_prompt")
        assert bool(set(pair["segment_ids"]) & set(good["segment_ids"])) == (pair["planted"] != "other_segment")
        assert pair["planted"] != "copied_prompt" or copies_prompt(pair["question"])


def _by_content(request: dict[str, Any]) -> str:
    """A judge that reads: an answer that does not stand in the segments, or a copied prompt, is a bad pair."""
    said = request["messages"][1]["content"]
    shown, _, stated = said.partition("</segments>")
    pair = json.loads(stated.partition("Pair: ")[2])
    good = pair["answer"] in shown and "documents" not in pair["question"]
    return material.judge_pair(9 - len(pair["question"]) % 4 / 2 if good else 2)


@pytest.mark.parametrize(
    ("respond", "faults"),
    [
        (_by_content, []),
        (
            lambda _: material.judge_pair(5),
            ["all alike", "a wrong answer", "another subject", "sentence of the prompt"],
        ),
        (lambda request: material.judge_pair(4 + len(str(request)) % 7 / 2), ["gives pairs with"]),
    ],
    ids=["reads", "always five", "by chance"],
)
def test_a_judge_that_does_not_tell_good_pairs_from_bad_is_named(
    make_settings: MakeSettings, encoder: Encoder, respond: Callable[[dict[str, Any]], str], faults: list[str]
) -> None:
    pairs, segments = material.pairs(*_rows(20)), material.segments()
    with stub_endpoint(respond) as stub:
        scoring = score_pairs("b1", pairs, segments, make_settings(stub.base_url), encoder)
    assert scoring.scores.height == 20, "planted pairs are no pairs"
    found, measured = judge_faults(scoring.scores, scoring.rejects, Gates())
    assert bool(found) == bool(faults)
    assert all(any(fault in said for said in found) for fault in faults)
    assert {"spread", "wrong_answer", "other_segment", "copied_prompt"} <= measured.keys()
