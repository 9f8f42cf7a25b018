"""Endpoints as they are, at a real socket: refusals, odd bodies, parameters, broken addresses, interruptions."""

# ruff: noqa: E501 - bodies as the providers send them
from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from embed_pipeline.llm import client as client_module
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.budget import BudgetExhausted
from embed_pipeline.llm.client import AnswersCut, LLMClient
from embed_pipeline.llm.failures import failure_of
from embed_pipeline.llm.store import Answer as StoredAnswer
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.llm.transport import EndpointError, TooManyFailures
from embed_pipeline.settings import LLM
from embed_pipeline_tests.stub_endpoint import Answer, Hang, Status, Step, Stub, stub_endpoint

MakeLLM = Callable[..., LLM]
ITEMS = 12


class Verdict(BaseModel):
    verdict: Literal["yes", "no"]
    score: int


VALUE = {"verdict": "yes", "score": 7}
KNOWN = {"Verdict.score": {"minimum": 0, "maximum": 10}, "Verdict.verdict": {"maxLength": 5}}
GOOD = json.dumps(VALUE)
_FULL = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": GOOD}}


def _body(**changes: object) -> Status:
    """A 200 with one choice that differs from a usual one."""
    return Status(200, body=json.dumps({"choices": [{**_FULL, **changes}]}).encode())


def _message(**fields: object) -> Status:
    return _body(message={"role": "assistant", "content": None, **fields})


def _raw(data: object, **headers: str) -> Status:
    return Status(200, headers, body=data if isinstance(data, bytes) else json.dumps(data).encode())


def _item(request: dict[str, Any]) -> str:
    said = (message["content"] for message in request["messages"])
    return str(next(content for content in said if "item " in content)).partition("item ")[2].partition("\n")[0]


async def _judge_all(client: LLMClient, count: int = ITEMS, system: str | None = "Judge.") -> Counter[str]:
    """Ask about items; how many were answered, and the reasons of the others."""

    async def ask(number: int) -> str:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"item {number}"})
        try:
            got = await client.structured(
                messages, Verdict, temperature=0.0, seed=1, known=KNOWN, about=f"document {number}"
            )
        except InvalidAnswer as error:
            return error.reason
        assert got.value == Verdict(**VALUE)
        return "answered"

    return Counter(await client.gather(range(count), ask, label="t"))


def _run(
    llm: LLM,
    store: ResponseStore,
    work: Callable[..., Any] = _judge_all,
    *,
    system: str | None = None,
    **options: Any,
) -> tuple[Any, LLMClient]:
    async def run() -> tuple[Any, LLMClient]:
        async with LLMClient(llm, store, **options) as client:
            return await (work(client, system=system) if system else work(client)), client

    return asyncio.run(run())


REFUSED = [
    ("prompt_filtered", 400, {"error": {"message": "Limited access.", "type": "invalid_request_error", "code": "invalid_prompt"}}),
    ("prompt_filtered", 400, {"code": "data_inspection_failed", "message": "Input may contain inappropriate content."}),
    ("prompt_filtered", 403, {"error": "Content violates usage guidelines."}),
    ("prompt_filtered", 400, {"error": {"code": "BadRequest", "message": "No.", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
    ("prompt_too_long", 400, [{"error": {"code": 400, "message": "The input token count exceeds the maximum number of tokens allowed."}}]),
    ("prompt_too_long", 422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 2048", "error_type": "validation"}),
    ("prompt_too_long", 500, {"error": {"message": "context size exceeded"}}),
    ("prompt_too_long", 413, {"error": "Payload too large"}),
    ("prompt_too_long", 422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 3000"}),
    ("prompt_too_long", 400, {"error_code": 336007, "error_msg": "the max input tokens limit is exceeded"}),
    ("prompt_too_long", 400, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}),
    ("prompt_filtered", 200, {"choices": [], "promptFeedback": {"blockReason": "SAFETY"}}),
    ("prompt_filtered", 200, {"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}, "violence": {"filtered": True}}}]}),
    ("prompt_filtered", 400, {"fault": {"faultstring": "Blocked by the moderation policy", "detail": {"errorcode": "steps.moderation"}}}),
    ("refused", 200, {"choices": [{"finish_reason": "ERROR_TOXIC", "message": {"content": ""}}]}),
    ("refused", 200, {"choices": [{"finish_reason": "guardrail_intervened", "message": {"content": "Sorry."}}]}),
    ("prompt_refused", 400, {"error": {"message": "Something about this one is off."}}),
    ("prompt_refused", 403, {"error": {"message": "Not this one."}}),
    ("prompt_refused", 422, {}),
    ("prompt_refused", 451, {"message": "For legal reasons."}),
    ("prompt_refused", 404, {"message": "This one leads nowhere."}),
    ("invalid_answer", 400, {"error": {"message": "Failed to generate JSON", "code": "json_validate_failed", "failed_generation": "{\"verd"}}),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "status", "body"), REFUSED)
@pytest.mark.parametrize("refused", [{"0"}, {"5", "6"}], ids=["first", "within"])
def test_a_refused_item_is_set_aside_and_the_run_goes_on(  # noqa: PLR0917 - a case and its fixtures
    store: ResponseStore, make_llm: MakeLLM, reason: str, status: int, body: object, refused: set[str]
) -> None:
    if status == 404 and "0" in refused:
        pytest.skip("a 404 to the very first request means the address")

    def respond(request: dict[str, Any]) -> str | Step:
        # A refusal comes at once, an answer takes time.
        return Status(status, body=json.dumps(body).encode()) if _item(request) in refused else GOOD

    with stub_endpoint(respond, latency=0.02 if reason != "prompt_refused" or status != 404 else 0) as stub:
        llm = make_llm(stub.base_url, max_concurrency=1 if status == 404 else 64)
        found, _ = _run(llm, store)
        assert found == {"answered": ITEMS - len(refused), reason: len(refused)}
        asked = len(stub.requests)
        again, client = _run(make_llm(stub.base_url), store)
    assert again == found
    assert client.usage.calls == 0
    assert len(stub.requests) - asked <= 3 * len(refused), "only what was refused is asked again"


def test_more_flagged_items_than_a_few_do_not_stop_the_run(store: ResponseStore, make_llm: MakeLLM) -> None:
    def respond(request: dict[str, Any]) -> str | Step:
        return Status(400, message="no") if int(_item(request)) % 3 == 0 else GOOD

    with stub_endpoint(respond, latency=0.1) as stub:
        found, _ = _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 40))
    assert found == {"answered": 26, "prompt_refused": 14}


WHOLE = [
    (401, {"error": {"message": "Incorrect API key provided"}}, "Incorrect API key"),
    (403, {"error": {"message": "Your project may not use this"}}, "may not use this"),
    (402, {"error": {"message": "Insufficient Balance"}}, "balance"),
    (404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}, r"llm\.model"),
    (400, {"error": {"message": "m is not a valid model ID", "code": 400}}, r"llm\.model"),
    (404, "<html><title>Not Found</title></html>", r"llm\.base_url"),
    (200, {"error": {"code": 402, "message": "Insufficient credits"}}, "HTTP 402: Insufficient credits"),
    (200, {"error": {"message": "No auth credentials found", "code": 401}}, "No auth credentials"),
    (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, "exceeded your current"),
    (400, {"error": {"message": "Odd."}}, "Odd"),
    (403, "<html><title>Web Page Blocked!</title>In violation of your Internet usage policy</html>", "Web Page Blocked"),
    (400, {"error": {"message": "Unsupported parameter: safety_identifier is required"}}, "safety_identifier"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "said"), WHOLE)
def test_what_every_request_would_meet_stops_at_once(
    store: ResponseStore, make_llm: MakeLLM, status: int, body: object, said: str
) -> None:
    refusal = Status(status, body=body.encode() if isinstance(body, str) else json.dumps(body).encode())
    with stub_endpoint(lambda _: refusal) as stub, pytest.raises(EndpointError, match=said) as caught:
        _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 300))
    assert len(stub.requests) <= 70
    assert stub.base_url in str(caught.value)
    assert "about document " in str(caught.value)
    assert len(store) == 0


def test_a_key_that_is_withdrawn_midway_stops_the_run_and_keeps_all(store: ResponseStore, make_llm: MakeLLM) -> None:
    for final in (Status(401, message="revoked"), Status(400, message="no longer served")):
        seen: list[str] = []

        def respond(request: dict[str, Any], final: Step = final, seen: list[str] = seen) -> str | Step:
            seen.append(_item(request))
            return GOOD if len(seen) <= 20 else final

        with stub_endpoint(respond) as stub, pytest.raises(EndpointError, match=str(final.message)):
            _run(make_llm(stub.base_url, max_concurrency=4), store, lambda client: _judge_all(client, 400))
        assert len(stub.requests) <= 20 + 20
    assert len(store) == 40


NO_MODEL = [
    {"error": {"message": "The model `stub` does not exist", "type": "NotFoundError", "param": "model", "code": 404}},
    {
        "error": {
            "message": "The model `stub` does not exist or you do not have access to it.",
            "code": "model_not_found",
        }
    },
    {"error": {"message": 'model "stub" not found, try pulling it first', "type": "api_error"}},
]


@pytest.mark.parametrize("body", NO_MODEL)
def test_one_replica_of_several_that_lacks_the_model_costs_no_item(
    store: ResponseStore, make_llm: MakeLLM, body: object
) -> None:
    asked: list[str] = []

    def respond(request: dict[str, Any]) -> str | Step:
        asked.append(_item(request))
        # Every third request is sent to it, and once four tries of one item.
        return _json(404, body) if len(asked) % 3 == 0 or len(asked) in {7, 8} else GOOD

    with stub_endpoint(respond) as stub:
        found, client = _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert found == {"answered": ITEMS}
    assert client.usage.retries == len(stub.requests) - ITEMS > 3


@pytest.mark.parametrize("body", NO_MODEL)
def test_a_model_that_is_gone_for_several_requests_in_a_row_stops_the_run(
    store: ResponseStore, make_llm: MakeLLM, body: object
) -> None:
    asked: list[str] = []

    def respond(request: dict[str, Any]) -> str | Step:
        asked.append(_item(request))
        return GOOD if len(asked) <= 10 else _json(404, body)

    with stub_endpoint(respond) as stub, pytest.raises(EndpointError, match=r"Check llm\.model"):
        _run(make_llm(stub.base_url, max_concurrency=1, max_attempts=4), store, lambda client: _judge_all(client, 40))
    assert len(stub.requests) == 10 + 3 * 4
    assert len(store) == 10


def _refuse_while(present: Callable[[dict[str, Any]], bool], refusal: Step) -> Callable[[dict[str, Any]], str | Step]:
    return lambda request: refusal if present(request) else GOOD


def _has(*path: str) -> Callable[[dict[str, Any]], bool]:
    def present(request: dict[str, Any]) -> bool:
        node: Any = request
        for step in path:
            node = node.get(step) if isinstance(node, dict) else None
        return node is not None

    return present


def _json(status: int, body: object) -> Status:
    return Status(status, body=json.dumps(body).encode())


def _alternates(request: dict[str, Any]) -> bool:
    roles = [message["role"] for message in request["messages"]]
    return roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)


SCHEMA = ("response_format", "json_schema", "schema")
PARAMETERS = {
    "pydantic names seed": (_has("seed"), _json(422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]})),
    "mistral wraps it": (_has("seed"), _json(422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 1}]}})),
    "one temperature": (_has("temperature"), Status(400, message="invalid temperature: only 1 is allowed for this model")),
    "positive temperature": (_has("temperature"), _json(422, {"error": "Input validation error: `temperature` must be strictly positive"})),
    "param says it": (_has("temperature"), _json(400, {"error": {"message": "Not this value.", "param": "temperature"}})),
    "gemini unknown name": (_has("seed"), _json(400, [{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name \"seed\": Cannot find field.", "status": "INVALID_ARGUMENT"}}])),
    "closed objects": (_has(*SCHEMA, "additionalProperties"), _json(400, [{"error": {"code": 400, "message": "Invalid JSON payload received. Unknown name \"additionalProperties\" at 'generation_config.response_schema': Cannot find field."}}])),
    "no schemas": (_has("response_format"), Status(400, message="This response_format type is unavailable now")),
    "no schemas, by param": (_has("response_format"), _json(400, {"error": {"message": "Invalid value.", "param": "response_format.type"}})),
    "no schemas, 404": (_has("response_format"), Status(404, message="No endpoints found that support structured outputs")),
    "no schemas, 501": (_has("response_format"), Status(501, message="guided decoding is not compiled in")),
    "no JSON mode": (_has("response_format"), Status(400, message="Invalid request: model m does not support JSON mode")),
    "no JSON mode, in a 200": (_has("response_format"), _raw({"error": {"message": "response_format is not supported by this model"}})),
    "no provider takes them all": (lambda r: "seed" in r or "response_format" in r, Status(404, message="No endpoints found that can handle the requested parameters. To learn more about provider routing, visit https://openrouter.ai/docs")),
    "no words, slowly": (lambda r: "seed" in r or "response_format" in r, Status(400, message="Bad Request", delay=0.4)),
    "keyed by field": (_has("seed"), _json(400, {"title": "One or more validation errors occurred.", "status": 400, "errors": {"$.seed": ["Not a member."]}})),
    "logprobs by its type": (_has("seed"), _json(422, {"detail": [{"type": "bool_type", "loc": ["body", "seed"], "msg": "Input should be a valid boolean"}]})),
    "the model's own limit": (_has("max_tokens"), Status(400, message="The maximum tokens you requested exceeds the model limit of 1024. Try again with a maximum tokens value that is lower than 1024.")),
    "grammar fault": (_has("response_format"), Status(500, message="EngineCore encountered an issue")),
    "other name": (_has("max_tokens"), Status(400, message="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")),
    "over the limit": (_has("max_tokens"), Status(400, message="max_tokens is too large: 2048. This model supports at most 1024 completion tokens.")),
    "no room": (_has("max_tokens"), Status(400, message="'max_tokens' or 'max_completion_tokens' is too large: 2048. This model's maximum context length is 2048 tokens and your request has 300 input tokens")),
    "no system role": (lambda r: r["messages"][0]["role"] == "system", Status(400, message="System role not supported")),
    "alternating roles": (_alternates, Status(400, message="Conversation roles must alternate user/assistant/user/assistant/...")),
    "developer instruction": (lambda r: r["messages"][0]["role"] == "system", Status(400, message="Developer instruction is not enabled for this model")),
    "bounds of numbers in plain words": (lambda r: "maximum" in str(r.get("response_format")), Status(400, message="For 'number' type, properties maximum, minimum are not supported")),
    "too many states": (lambda r: "maxLength" in str(r.get("response_format")), Status(400, message="The specified schema produces a constraint that has too many states for serving")),
    "a deprecated parameter": (_has("temperature"), Status(400, message="`temperature` is deprecated for this model.")),
    "unsupported property": (_has("seed"), Status(400, message="property 'seed' is unsupported, did you mean 'speed'?")),
    "pointer": (_has("seed"), _json(422, {"errors": [{"pointer": "/seed", "title": "unknown member"}]})),
    "a field of a list": (_has("max_tokens"), _json(400, {"errors": [{"field": "max_tokens", "message": "out of range"}]})),
    "several": (lambda r: "seed" in r or "temperature" in r or "response_format" in r, Status(400, message="seed, temperature and response_format are not supported")),
    "no words": (lambda r: "seed" in r or "response_format" in r, _json(400, {"error": "Bad Request"})),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_that_is_refused_is_changed_for_this_endpoint(
    store: ResponseStore, make_llm: MakeLLM, name: str
) -> None:
    present, refusal = PARAMETERS[name]
    with stub_endpoint(_refuse_while(present, refusal)) as stub:
        found, _ = _run(make_llm(stub.base_url, max_concurrency=4), store)
    assert found == {"answered": ITEMS}
    assert len(stub.requests) <= ITEMS + 12, "learned by the first requests"
    assert not any(present(request) for request in stub.requests[-4:])


def test_parameters_refused_one_after_another_are_all_left_out(store: ResponseStore, make_llm: MakeLLM) -> None:
    def respond(request: dict[str, Any]) -> str | Step:
        for name in ("max_tokens", "seed", "temperature", "response_format"):
            if name in request:
                return Status(400, message=f"Unrecognized request argument supplied: {name}")
        return GOOD

    with stub_endpoint(respond) as stub:
        found, _ = _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert found == {"answered": ITEMS}
    assert len(stub.requests) == ITEMS + 4


def test_a_trial_that_is_refused_too_teaches_nothing(store: ResponseStore, make_llm: MakeLLM) -> None:
    def respond(request: dict[str, Any]) -> str | Step:
        return Status(400, message="the seed of doubt: temperature") if _item(request) == "3" else GOOD

    with stub_endpoint(respond) as stub:
        found, _ = _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert found == {"answered": ITEMS - 1, "prompt_refused": 1}
    assert all("seed" in r and "temperature" in r for r in stub.requests if _item(r) != "3")


PASSING = {
    "a body that breaks off": _raw(b'{"choices": [{"index": 0, "message": {"content": "{\\"verd'),
    "half an answer about safety": _raw(b'{"choices": [{"message": {"content": "How is the safety valve opened when the monthly budget is exceeded'),
    "an empty answer with the filter's ratings": _body(message={"content": ""}, content_filter_results={"hate": {"filtered": False, "severity": "safe"}}),
    "no choice, nothing filtered": _raw({"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": False}}}]}),
    "a malformed call": _body(finish_reason="function_call_filter: MALFORMED_FUNCTION_CALL", message={"content": ""}),
    "an event that is an error": _raw(b'data: {"choices":[{"delta":{"content":"{"}}]}\n\ndata: {"object":"error","message":"engine died","code":500}\n\n'),
    "an event called error": _raw(b'event: error\ndata: {"message":"overloaded"}\n\n'),
    "error in a 200": _raw({"error": {"code": 429, "message": "temporarily rate-limited upstream"}}),
    "error without a code": _raw({"error": {"message": "Provider returned error"}}),
    "error next to half a text": _raw({"error": {"code": 502, "message": "gone"}, "choices": [{"finish_reason": None, "text": "What is"}]}),
    "a delta that is text": _raw(b'data: {"choices":[{"delta":"{"}]}\n\n'),
    "error in a choice": _body(error={"code": 502, "message": "gone"}, finish_reason="error"),
    "finish_reason error": _body(finish_reason="error", message={"content": ""}),
    "finish_reason abort": _body(finish_reason="abort", message={"content": "half an an"}),
    "network_error": _body(finish_reason="network_error", message={"content": "half"}),
    "null content": _message(),
    "empty content": _message(content="  ".strip()),
    "white space alone": _message(content="\n\n"),
    "white space everywhere": _message(content=" ", reasoning_content="\n"),
    "tokens a minute": _json(429, {"message": "Tokens per minute limit exceeded - too many tokens processed.", "type": "too_many_tokens_error", "param": "quota", "code": "token_quota_exceeded"}),
    "no choices": _raw({"choices": []}),
    "choices null": _raw({"choices": None}),
    "a wrapped state": _raw({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}, "choices": None}),
    "an error by number": _raw({"error_code": 18, "error_msg": "Open api qps request limit reached"}),
    "a fault": _raw({"fault": {"faultstring": "Service temporarily unavailable"}}),
    "accepted, not done": Status(202, body=b'{"status": "pending", "requestId": "1"}'),
    "blank lines": _raw(b"\n\n \n"),
    "an event of trouble": _raw(b'event: error\ndata: {"type": "error", "message": "Overloaded"}\n\n'),
    "a wait in words": _json(429, {"error": {"message": "Rate limit reached. Please try again in 20ms."}}),
    "408": Status(408), "520": Status(520), "598": Status(598),
    "another shape": _raw({"type": "message", "content": [{"type": "text", "text": GOOD}]}),
    "HTML": _raw(b"<html><head><title>Sign in</title></head></html>"),
    "nothing": _raw(b""),
    "a stream without an end": _raw(b'data: {"choices":[{"delta":{"content":"{"}}]}\n\n'),
    "an error event": _raw(b'data: {"error":{"message":"overloaded","code":529}}\n\ndata: [DONE]\n\n'),
    "400 around a rate limit": _json(400, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}),
    "425": Status(425), "430": Status(430), "499": Status(499), "524": Status(524), "529": Status(529),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again_and_never_stored(store: ResponseStore, make_llm: MakeLLM, name: str) -> None:
    with stub_endpoint(lambda _: GOOD, script=[PASSING[name]] * 2) as stub:
        found, client = _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert found == {"answered": ITEMS}
    assert (len(stub.requests), client.usage.calls, len(store)) == (ITEMS + 2, ITEMS, ITEMS)


@pytest.mark.parametrize("name", ["finish_reason error", "null content", "error in a 200"])
def test_an_endpoint_that_was_ill_is_asked_again_by_the_next_run(
    store: ResponseStore, make_llm: MakeLLM, name: str
) -> None:
    with stub_endpoint(lambda _: PASSING[name]) as stub, pytest.raises(TooManyFailures):
        _run(make_llm(stub.base_url, max_attempts=2), store)
    with stub_endpoint(lambda _: GOOD) as stub:
        found, _ = _run(make_llm(stub.base_url), store)
    assert found == {"answered": ITEMS}
    assert len(stub.requests) == ITEMS


def test_an_error_that_an_earlier_version_stored_is_not_used(store: ResponseStore, make_llm: MakeLLM) -> None:
    stored = StoredAnswer("", "error", 1, 0)
    put = ResponseStore.put
    with stub_endpoint(lambda _: GOOD) as stub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResponseStore, "put", lambda self, key, _, **options: put(self, key, stored, **options))
        _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 1))
    with stub_endpoint(lambda _: GOOD) as stub:
        assert _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 1))[0] == {"answered": 1}
        assert _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 1))[0] == {"answered": 1}
    assert len(stub.requests) == 1


BODIES = {
    "content in parts": _message(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}]),
    "content an object": _message(content=VALUE),
    "parsed alone": _message(parsed=VALUE),
    "blank lines before": _raw(b"\n\n\n" + json.dumps({"choices": [_FULL]}).encode()),
    "a list of a text": _message(content=[GOOD]),
    "answer tags": _message(content=f"<answer>\n{GOOD}\n</answer>"),
    "finish end_turn": _body(finish_reason="end_turn"),
    "two objects, the last counts": _message(content=f'{{"verdict": "no", "score": 1}}\nOn reflection:\n{GOOD}'),
    "the model goes on with another object": _message(content=f'{GOOD}\n{{"verdict": "no", "score": 1}}'),
    "the model goes on past its turn": _message(content=f'{GOOD}<|im_end|>\n<|im_start|>user\nAnd this?\n{{"verdict": "no", "score": 1}}'),
    "a draft, an answer, and one more": _message(content=f'<think>{{"verdict": "no", "score": 2}}</think>{GOOD}\n\n{{"verdict": "no", "score": 1}}'),
    "reasoning field": _message(reasoning_content="Hm.", content=GOOD),
    "all in the reasoning field": _message(reasoning_content=f"So: {GOOD}"),
    "all in the reasoning field, after a blank line": _message(content="\n", reasoning_content=GOOD),
    "reasoning, other name": _message(reasoning=GOOD, content=""),
    "think tags": _message(content=f"<think>\nMaybe {{\"verdict\": \"no\", \"score\": 1}}?\n</think>\n\n{GOOD}"),
    "think end alone": _message(content=f"Hm.</think>{GOOD}"),
    "mistral think": _message(content=f"[THINK]Hm.[/THINK]{GOOD}"),
    "harmony": _message(content=f"<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}"),
    "prose and fence": _message(content=f"Here is the JSON:\n```json\n{GOOD}\n```\nLet me know!"),
    "trailing comma": _message(content='{"verdict": "yes", "score": 7,}'),
    "a call of a tool in the text": _message(content=json.dumps({"name": "Verdict", "parameters": VALUE})),
    "not JSON's escapes": _message(content=r'{"verdict": "yes", "score": 7, "note": "\alpha of C:\Users isn\'t"}'),
    "a whole float, spaced by no-break spaces": _message(content='{\n\xa0\xa0"verdict": "yes",\n\xa0\xa0"score": 7.0}'),
    "a stream in the reasoning": _raw(b"".join(b"data: %s\n\n" % json.dumps({"choices": [{"delta": {"reasoning": c}}]}).encode() for c in GOOD) + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'),
    "half an emoji": _message(content='{"verdict": "yes", "score": 7, "note": "\\ud83d"}'),
    "JSON in JSON": _message(content=json.dumps(GOOD)),
    "an object in a string": _message(content=json.dumps({"answer": GOOD})),
    "a Latin-1 body": _raw(json.dumps({"choices": [_FULL], "note": "é"}, ensure_ascii=False).encode("latin-1"), **{"content-type": "application/json; charset=ISO-8859-1"}),
    "a UTF-16 body": _raw(json.dumps({"choices": [_FULL]}).encode("utf-16")),
    "finish in camel case": _raw({"choices": [{"message": {"content": GOOD}, "finishReason": "STOP"}]}),
    "extra key": _message(content=json.dumps({**VALUE, "confidence": 1})),
    "tool call": _message(tool_calls=[{"type": "function", "function": {"name": "answer", "arguments": GOOD}}]),
    "tool call, an object": _message(tool_calls=[{"function": {"name": "answer", "arguments": VALUE}}]),
    "function call": _message(function_call={"name": "answer", "arguments": GOOD}),
    "finish incomplete after its end": _body(finish_reason="incomplete", message={"content": GOOD}),
    "cut after its end": _body(finish_reason="length", message={"content": GOOD + "\n" * 40}),
    "finish null": _body(finish_reason=None),
    "finish eos": _body(finish_reason="eos"),
    "text in place of a message": _body(message=None, text=GOOD),
    "usage of odd types": _raw({"choices": [_FULL], "usage": {"prompt_tokens": "12", "completion_tokens": None}}),
    "usage a list": _raw({"choices": [_FULL], "usage": []}),
    "error null": _raw({"choices": [_FULL], "error": None}),
    "a wrapper": _raw({"success": True, "result": {"choices": [_FULL]}}),
    "JSON in a string": _raw(json.dumps({"choices": [_FULL]})),
    "BOM": _raw(b"\xef\xbb\xbf" + json.dumps({"choices": [_FULL]}).encode()),
    "as text/plain": _raw({"choices": [_FULL]}, **{"content-type": "text/plain"}),
    "no content type": _raw({"choices": [_FULL]}, **{"content-type": ""}),
    "a stream": _raw(
        b": OPENROUTER PROCESSING\n\n"
        + b"".join(b"data: %s\n\n" % json.dumps({"choices": [{"delta": {"content": c}, "finish_reason": None}]}).encode() for c in GOOD)
        + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\n',
        **{"content-type": "text/event-stream"},
    ),
    "a stream with raw line separators": _raw(
        "".join(f'data: {{"choices":[{{"delta":{{"content":{json.dumps(c)}}},"odd":"\u2028\x85"}}]}}\r\n\r' for c in GOOD).encode()
        + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_a_good_answer_counts_whatever_its_shape(store: ResponseStore, make_llm: MakeLLM, name: str) -> None:
    with stub_endpoint(lambda _: BODIES[name]) as stub:
        found, client = _run(make_llm(stub.base_url), store)
        assert found == {"answered": ITEMS}
        assert len(stub.requests) == ITEMS, "paid once"
        assert 0 < client.usage.tokens < 5000
        assert _run(make_llm(stub.base_url), store)[0] == found
    assert len(stub.requests) == ITEMS


def test_one_fault_of_the_server_at_first_costs_no_schemas(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(lambda _: GOOD, script=[Status(500, message="warming up")]) as stub:
        assert _run(make_llm(stub.base_url), store)[0] == {"answered": ITEMS}
    assert all("response_format" in request for request in stub.requests)


def test_what_empty_answers_cost_counts_against_the_caps(store: ResponseStore, make_llm: MakeLLM) -> None:
    empty = {
        "choices": [{**_FULL, "message": {"content": ""}}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 100},
    }
    with stub_endpoint(lambda _: _raw(empty)) as stub, pytest.raises(BudgetExhausted, match="max_total_tokens is 900"):
        _run(make_llm(stub.base_url, max_total_tokens=900, max_concurrency=1), store)
    assert len(stub.requests) == 2


COUNTED = {
    "thinking in the total alone": ({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 1120}, 1120),
    "zeros": ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, 100),
    "Groq's own field": ({"x_groq": {"id": "req_1", "usage": {"prompt_tokens": 900, "completion_tokens": 300}}}, 1200),
    "camel case": ({"promptTokens": 300, "completionTokens": 200}, 500),
}


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_counted_cannot_be_less_than_what_was_written(
    store: ResponseStore, make_llm: MakeLLM, name: str
) -> None:
    usage, least = COUNTED[name]
    told = usage if "x_groq" in usage else {"usage": usage}
    with stub_endpoint(lambda _: _raw({"choices": [_FULL], **told})) as stub:
        _, client = _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 1))
    assert client.usage.tokens >= least


def test_a_streams_counts_are_read_from_groqs_last_chunk_and_hold_the_cap(
    store: ResponseStore, make_llm: MakeLLM
) -> None:
    chunks = [
        {"choices": [{"delta": {"content": GOOD}, "finish_reason": None}], "x_groq": {"id": "req_1"}},
        {
            "choices": [{"delta": {}, "finish_reason": "stop"}],
            "x_groq": {"id": "req_1", "usage": {"prompt_tokens": 400, "completion_tokens": 100, "total_tokens": 500}},
        },
    ]
    stream = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    with stub_endpoint(lambda _: _raw(stream)) as stub, pytest.raises(BudgetExhausted, match="max_total_tokens is 900"):
        _run(make_llm(stub.base_url, max_total_tokens=900, max_concurrency=1), store)
    assert len(stub.requests) == 2


def test_a_burst_of_limits_or_one_long_document_at_first_stops_nothing(store: ResponseStore, make_llm: MakeLLM) -> None:
    """They are refused at once, before the first answer is there."""
    limit = _json(
        429,
        {
            "error": {
                "code": "insufficient_quota",
                "type": "insufficient_quota",
                "message": "You exceeded your current quota: error-code#token-limit",
            }
        },
    )
    block = _raw(b"<html><title>Request rejected</title></html>")
    model = _json(400, {"error": {"message": "The model is unknown to this prompt"}})
    for number, (refusal, outcome) in enumerate(
        [(limit, "answered"), (block, "request_failed"), (model, "prompt_refused")]
    ):
        seen: Counter[str] = Counter()

        def respond(request: dict[str, Any], refusal: Step = refusal, seen: Counter[str] = seen) -> str | Step:
            seen[_item(request)] += 1
            passing = refusal is limit and seen[_item(request)] > 1
            return refusal if _item(request) == "3" and not passing else Answer(GOOD, seconds=0.4)

        with stub_endpoint(respond) as stub:
            found, _ = _run(make_llm(stub.base_url, max_attempts=3), store, system=f"Judge {number}.")
        assert found == Counter(["answered"] * (ITEMS - 1) + [outcome])


def test_what_is_refused_without_a_reason_is_asked_once_more(store: ResponseStore, make_llm: MakeLLM) -> None:
    seen: Counter[str] = Counter()

    def respond(request: dict[str, Any]) -> str | Step:
        seen[_item(request)] += 1
        crashed = Status(404, body=b"<html><title>404 Not Found</title><center>nginx</center></html>")
        return crashed if int(_item(request)) > 5 and seen[_item(request)] == 1 else GOOD

    with stub_endpoint(respond) as stub:
        found, _ = _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert found == {"answered": ITEMS}


def test_one_bad_answer_of_many_and_an_empty_first_one_cost_no_schemas(store: ResponseStore, make_llm: MakeLLM) -> None:
    seen: list[str] = []

    def respond(request: dict[str, Any]) -> str | Step:
        seen.append(_item(request))
        if len(seen) == 1:
            return Answer("", finish_reason="length")
        return "Well, yes." if len(seen) == 10 else GOOD

    with stub_endpoint(respond) as stub:
        _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert all("response_format" in request for request in stub.requests)


@pytest.mark.parametrize("place", [150, 190, 440, 470])
def test_a_key_is_hidden_before_a_message_is_cut(store: ResponseStore, make_llm: MakeLLM, place: int) -> None:
    key = "sk-proj-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
    for said in (f"{'x ' * (place // 2)}Bearer {key} is wrong", f"{'x ' * (place // 2)}Bearer {key}".encode()):
        body = said if isinstance(said, bytes) else json.dumps({"error": {"message": said}}).encode()
        with stub_endpoint(lambda _, body=body: Status(401, body=body)) as stub, pytest.raises(EndpointError) as caught:
            _run(make_llm(stub.base_url), store, api_key=key)
        assert "AbCd" not in str(caught.value)


@pytest.mark.parametrize("key", ["o", "model", "EMPTY"])
def test_a_key_that_is_part_of_words_garbles_no_message(store: ResponseStore, make_llm: MakeLLM, key: str) -> None:
    refusal = _json(400, {"error": {"message": f"Invalid model name. Key {key} of account."}})
    with stub_endpoint(lambda _: refusal) as stub, pytest.raises(EndpointError, match=r"llm\.model") as caught:
        _run(make_llm(stub.base_url), store, api_key=key)
    assert f"Key {key}" not in str(caught.value)
    assert "Key *** of account" in str(caught.value)


def test_lone_surrogates_and_nuls_are_stored(store: ResponseStore, make_llm: MakeLLM) -> None:
    async def ask(client: LLMClient) -> str:
        return (await client.complete("x", stop=[], max_tokens=9, temperature=0, seed=1)).text

    with stub_endpoint(lambda _: "valve \ud83d\x00 A") as stub:
        assert [_run(make_llm(stub.base_url), store, ask)[0] for _ in range(2)] == ["valve \ufffd\x00 A"] * 2
    assert len(stub.requests) == 1


SAID = {
    "HTML": (_raw(b"<html><head><title>Sign in</title></head><body>to the network</body></html>"), "an HTML page: Sign in to the network"),
    "another API, without an error": (_raw({"id": "resp_1", "error": None, "errors": [], "output": []}), "no choices"),
    "lines of JSON": (_raw(b'{"model":"m","response":"Hi","done":false}\n{"model":"m","done":true}\n'), "OpenAI-compatible"),
    "a list of texts": (_raw([{"generated_text": "Hi"}]), "OpenAI-compatible"),
    "another shape": (_raw({"type": "message", "content": "Hi"}), "no choices.*Hi"),
    "redirect": (Status(301, {"location": "/elsewhere"}), "redirected to http"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_a_place_that_is_no_endpoint_is_given_up_after_a_few_tries(
    store: ResponseStore, make_llm: MakeLLM, name: str
) -> None:
    step, said = SAID[name]

    def respond(request: dict[str, Any]) -> Step:
        return step if request else Status(405, message="Method not allowed")

    with stub_endpoint(respond) as stub, pytest.raises(EndpointError, match=said):
        _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 3))
    assert len(stub.requests) <= 12


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_an_endpoint_that_is_not_running_says_so_within_seconds(store: ResponseStore) -> None:
    port = _free_port()
    for url, said in (
        (f"http://127.0.0.1:{port}/v1", rf"cannot connect to host 127.0.0.1:{port} \[Connection refused\]"),
        (f"http://localhost:{port}/v1", rf"cannot connect to host localhost:{port} \[Connection refused\]"),
        (f"https://127.0.0.1:{port}/v1", "Connection refused"),
        ("http://no-such-host.invalid/v1", r"no-such-host.invalid:80 \[(Name or service not known|Temporary failure)"),
    ):
        begun = time.monotonic()
        with pytest.raises(EndpointError, match=said) as caught:
            _run(LLM(base_url=url, model="m"), store, lambda client: _judge_all(client, 6))
        assert time.monotonic() - begun < 8
        assert "llm.base_url" in str(caught.value)


@pytest.mark.slow
def test_https_at_an_http_port_and_an_unknown_certificate_are_named(
    store: ResponseStore, make_llm: MakeLLM, tmp_path: Path
) -> None:
    files = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*command, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])

    def answer_in_plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async def serve_and_ask(connection: Any, context: ssl.SSLContext | None) -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server, LLMClient(make_llm(f"https://127.0.0.1:{port}/v1"), store) as client:
            await _judge_all(client, 2)

    with pytest.raises(EndpointError, match=r"cannot connect.*\[.*(?i:ssl|record|version)"):
        asyncio.run(serve_and_ask(answer_in_plain, None))
    with pytest.raises(EndpointError, match=r"certificate is not trusted.*self-signed"):
        asyncio.run(serve_and_ask(lambda *_: None, context))


ADDRESSES = [
    ("/openai/deployments/g?api-version=2024-10-21", "/openai/deployments/g/chat/completions?api-version=2024-10-21"),
    ("/openai/deployments/g/?api-version=1", "/openai/deployments/g/chat/completions?api-version=1"),
    ("/openai/deployments/g/chat/completions?api-version=1", "/openai/deployments/g/chat/completions?api-version=1"),
    ("/gateway/team a/v1", "/gateway/team%20a/v1/chat/completions"),
    ("/v1/", "/v1/chat/completions"),
    ("", "/chat/completions"),
    ("/v1/chat/completions", "/v1/chat/completions"),
]


@pytest.mark.parametrize(("address", "path"), ADDRESSES)
def test_an_address_keeps_its_path_and_query(store: ResponseStore, make_llm: MakeLLM, address: str, path: str) -> None:
    with stub_endpoint(lambda _: GOOD) as stub:
        base = stub.base_url.removesuffix("/v1")
        found, _ = _run(make_llm(base + address), store, api_key="sk-0123456789abcdefgh")
    assert found == {"answered": ITEMS}
    assert set(stub.paths) == {path}
    sent = {headers.get("api-key") for headers in stub.headers}
    assert sent == ({"sk-0123456789abcdefgh"} if "api-version" in address else {None})


def test_a_user_and_password_of_the_address_are_sent_as_basic_authentication(
    store: ResponseStore, make_llm: MakeLLM
) -> None:
    def respond(request: dict[str, Any]) -> str | Step:
        echoed = f"The password of {_item(request)} is p@ss w, sent as dXNlcjpwQHNzIHc="
        return Status(400, message=echoed) if _item(request) == "1" else GOOD

    async def ask(client: LLMClient) -> tuple[str, str]:
        await _judge_all(client, 1)
        with pytest.raises(InvalidAnswer, match=r"password of 1 is \*\*\*, sent as \*\*\*") as caught:
            await client.structured([{"role": "user", "content": "item 1"}], Verdict, temperature=0.0, seed=1)
        return f"{client!r} {client.place} {caught.value}", client.place

    with stub_endpoint(respond) as stub:
        address = stub.base_url.replace("//", "//user:p%40ss%20w@")
        (shown, place), _ = _run(make_llm(address), store, ask, api_key="sk-0123456789abcdefgh")
    assert set(stub.authorizations) == {"Basic dXNlcjpwQHNzIHc="}
    assert place == stub.base_url
    assert "p%40ss" not in shown


def test_an_address_that_cannot_be_one_is_refused_at_the_start() -> None:
    for url in ("http://h:80a/v1", "http://[::1/v1", "http://./v1", "http://u@/v1", "http://h:99999/v1", "http://h:0"):
        with pytest.raises(ValueError, match="must be an address with a valid host and port"):
            LLM(base_url=url, model="m")
    assert LLM(base_url="http://u:p@[::1]:80/v1", model="m").base_url == "http://u:p@[::1]:80/v1"


def test_an_address_without_its_protocol_is_refused_at_the_start() -> None:
    for url in ("127.0.0.1:8000/v1", "localhost/v1", "ftp://host/v1", "http://"):
        with pytest.raises(ValueError, match="http:// or https://"):
            LLM(base_url=url, model="m")


# Length limits.


def _cut(request: dict[str, Any]) -> Answer:
    return Answer('{"verdict": "ye', finish_reason="length")


def test_ten_cuts_of_ten_stop_the_run_and_name_the_setting(store: ResponseStore, make_llm: MakeLLM) -> None:
    for text in ("", '{"verdict": "ye'):
        with (
            stub_endpoint(lambda _, text=text: Answer(text, finish_reason="length")) as stub,
            pytest.raises(AnswersCut, match=r"llm\.max_output_tokens = 2048"),
        ):
            _run(make_llm(stub.base_url, max_concurrency=4), store, lambda client: _judge_all(client, 24))
        assert len(stub.requests) <= 10 + 4


def test_another_limit_asks_again_only_for_what_was_cut(store: ResponseStore, make_llm: MakeLLM) -> None:
    def respond(request: dict[str, Any]) -> str | Answer:
        return _cut(request) if _item(request) == "4" and request["max_tokens"] < 4096 else GOOD

    with stub_endpoint(respond) as stub:
        first, _ = _run(make_llm(stub.base_url), store)
        assert first == {"answered": ITEMS - 1, "cut_at_length": 1}
        asked = len(stub.requests)
        assert asked == ITEMS + client_module.MAX_REASKS
        assert _run(make_llm(stub.base_url), store)[0] == first
        assert len(stub.requests) == asked, "under the same limit nothing is asked again"
        assert _run(make_llm(stub.base_url, max_output_tokens=4096), store)[0] == {"answered": ITEMS}
        assert len(stub.requests) == asked + 1
        assert _run(make_llm(stub.base_url, max_output_tokens=64), store)[0] == {"answered": ITEMS}
    assert len(stub.requests) == asked + 1, "an answer that ended by itself holds under any limit"


def test_after_a_cut_no_two_messages_of_the_user_follow_each_other(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(lambda _: GOOD, script=[_cut({})]) as stub:
        assert _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 1))[0] == {"answered": 1}
    assert [message["role"] for message in stub.requests[1]["messages"]] == ["system", "user"]
    assert "be brief" in stub.requests[1]["messages"][-1]["content"]


# Many requests at once.


@pytest.mark.slow
@pytest.mark.parametrize("finish", ["stop", None, "eos", "length"])
def test_the_first_wave_is_asked_at_once_whatever_the_finish_reason(
    store: ResponseStore, make_llm: MakeLLM, finish: str | None
) -> None:
    slow = Status(200, body=json.dumps({"choices": [{**_FULL, "finish_reason": finish}]}).encode(), delay=1.5)
    with stub_endpoint(lambda _: slow) as stub:
        begun = time.monotonic()
        found, _ = _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 64))
        seconds = time.monotonic() - begun
    assert found == {"answered": 64}
    assert stub.peak == 64
    assert seconds < 4


def test_a_server_that_answers_in_schemas_by_chance_is_asked_in_words_from_then_on(
    store: ResponseStore, make_llm: MakeLLM
) -> None:
    """It ignores response_format, and its first answer happens to be valid."""

    def respond(request: dict[str, Any]) -> str:
        told = "JSON schema" in request["messages"][0]["content"]
        return GOOD if told or _item(request) == "0" else "Well, yes."

    with stub_endpoint(respond) as stub:
        found, _ = _run(make_llm(stub.base_url, max_concurrency=1), store)
    assert found == {"answered": ITEMS}
    assert len(stub.requests) == ITEMS + 1


@pytest.mark.slow
def test_the_progress_says_what_is_in_flight(
    store: ResponseStore, make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(client_module, "TICK_SECONDS", 0.05)
    monkeypatch.setattr("embed_pipeline.progress.Bar.advance", lambda _, __, note: shown.append(note))
    with stub_endpoint(lambda _: GOOD, script=[Status(503)], latency=1.2) as stub:
        _run(make_llm(stub.base_url), store, lambda client: _judge_all(client, 3))
    assert any("0 calls" in line and "3 in flight, oldest 1 s" in line and "1 retry" in line for line in shown), shown


_INTERRUPTED = """
import sys
from pathlib import Path
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.settings import LLM

async def run():
    with ResponseStore(Path(sys.argv[2])) as store:
        async with LLMClient(LLM(base_url=sys.argv[1], model="stub", max_concurrency=4), store) as client:
            ask = lambda n: client.complete(str(n), stop=[], max_tokens=30, temperature=0.3, seed=1)
            await client.gather(range(40), ask, label="t")

run_interruptibly(run())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_an_interrupted_run_ends_at_once_and_keeps_what_was_answered(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    path = tmp_path / "responses.sqlite"
    seen: list[int] = []

    def respond(request: dict[str, Any]) -> str | Step:
        seen.append(1)
        return "fine" if len(seen) <= 6 else Hang(60)

    with stub_endpoint(respond) as stub:
        running = subprocess.Popen(
            [sys.executable, "-c", _INTERRUPTED, stub.base_url, str(path)], stderr=subprocess.PIPE
        )
        _await(stub, 10, running)
        os.kill(running.pid, number)
        begun = time.monotonic()
        running.communicate(timeout=30)
    assert time.monotonic() - begun < 2
    assert running.returncode in {status, -number}
    with ResponseStore(path) as store:
        assert len(store) == 6


def _await(stub: Stub, requests: int, running: subprocess.Popen[bytes]) -> None:
    while len(stub.requests) < requests:
        assert running.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Rate limit reached for tokens per day. Please try again in 6m7.2s.", 367.2),
        ("Please retry after 34 seconds.", 34),
        ("Please wait 2 minutes before the next request", 120),
        ("try again in 250ms", 0.25),
        ("Please try again in 1h2m3s", 3723),
        ("Too many requests, please try again later. Limit: 20 requests", None),
    ],
)
def test_a_wait_that_stands_in_words_is_read(said: str, seconds: float | None) -> None:
    assert failure_of({"error": {"message": said}}, 429).wait == seconds


def test_an_endpoint_that_refuses_stop_words_is_cut_here(store: ResponseStore, make_llm: MakeLLM) -> None:
    async def ask(client: LLMClient) -> str:
        return (await client.complete("x", stop=["\n"], max_tokens=9, temperature=0, seed=1)).text

    refusal = Status(400, message="stop: each sequence must contain non-whitespace")
    with stub_endpoint(lambda request: refusal if "stop" in request else " is it?\nAnswer: yes") as stub:
        assert [_run(make_llm(stub.base_url), store, ask)[0] for _ in range(2)] == [" is it?"] * 2
    assert len(stub.requests) == 2
