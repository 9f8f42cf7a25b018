"""The client against a stub endpoint: answers, retries, caps, and many requests at once."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from embed_pipeline.llm import gathering, transport
from embed_pipeline.llm import throttle as throttle_module
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.budget import BudgetExhausted
from embed_pipeline.llm.client import LLMClient, open_client
from embed_pipeline.llm.responses import read_response
from embed_pipeline.llm.store import Answer as StoredAnswer
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.llm.transport import EndpointError, RequestFailed, TooManyFailures
from embed_pipeline.settings import LLM, LLM_KEY_VARIABLE
from embed_pipeline_tests.stub_endpoint import Answer, Drop, Hang, Status, Step, Truncate, stub_endpoint

KEY = "sk-test-0123456789abcdef"
MESSAGES = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Is it so?"}]
GOOD = '{"verdict": "yes", "score": 7}'
MakeLLM = Callable[..., LLM]


class Verdict(BaseModel):
    verdict: Literal["yes", "no"]
    score: int = Field(ge=1, le=10)


def _echo(request: dict[str, Any]) -> str:
    return f"to {request['prompt']}" if "prompt" in request else GOOD


async def _complete(client: LLMClient, prompt: object) -> Any:
    return await client.complete(str(prompt), stop=["\n"], max_tokens=30, temperature=0.3, seed=1)


async def _judge(client: LLMClient, messages: list[dict[str, Any]] = MESSAGES) -> Any:
    return await client.structured(messages, Verdict, temperature=0.0, seed=1)


def _run(llm: LLM, store: ResponseStore, work: Callable[[LLMClient], Any], **options: Any) -> Any:
    """Run ``work`` with an open client; its result, and the client in the state it was left in."""

    async def run() -> tuple[Any, LLMClient]:
        async with LLMClient(llm, store, **options) as client:
            return await work(client), client

    return asyncio.run(run())


def test_a_completion_is_asked_once_and_stored(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo) as stub:
        llm = make_llm(stub.base_url)
        first, client = _run(llm, store, lambda c: _complete(c, "France"), api_key=KEY)
        again, other = _run(llm, store, lambda c: _complete(c, "France"), api_key="another key")
    assert (first.text, first.finish_reason, first.cached) == ("to France", "stop", False)
    assert (again.text, again.prompt_tokens, again.cached) == ("to France", first.prompt_tokens, True)
    assert (client.usage.calls, client.usage.cached, client.usage.tokens) == (1, 0, first.prompt_tokens + 2)
    assert (other.usage.calls, other.usage.cached, other.usage.tokens) == (0, 1, 0)
    assert len(stub.requests) == 1
    assert stub.requests[0] | {"model": "stub", "stop": ["\n"], "max_tokens": 30, "seed": 1} == stub.requests[0]
    assert stub.authorizations == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("told", "mean"),
    [
        ({"content": [{"token": "to", "logprob": -0.5}, {"token": "?", "logprob": -1.5}]}, -1.0),
        ({"tokens": ["to", "?"], "token_logprobs": [None, -0.4]}, -0.4),
        ({"content": []}, None),
        ({"content": ["-0.1", {"logprob": "none"}]}, None),
        ({"token_logprobs": -0.1}, None),
        ("none", None),
        (None, None),
    ],
)
def test_the_mean_log_probability_is_read_in_either_form(told: object, mean: float | None) -> None:
    body = {"choices": [{"text": "to?", "finish_reason": "stop", "logprobs": told}]}
    got = read_response(json.dumps(body).encode(), {}, {"prompt": "x"})
    assert isinstance(got, StoredAnswer)
    assert got.log_probability == mean


def test_the_same_request_at_once_is_one_call(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo, latency=0.05) as stub:
        _, client = _run(
            make_llm(stub.base_url), store, lambda c: asyncio.gather(*(_complete(c, "same") for _ in range(5)))
        )
    assert (len(stub.requests), client.usage.cached) == (1, 4)


def test_answers_by_schema_are_validated(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo) as stub:
        got, _ = _run(make_llm(stub.base_url), store, _judge)
        again, _ = _run(make_llm(stub.base_url), store, _judge)
    assert got.value == again.value == Verdict(verdict="yes", score=7)
    assert (got.cached, again.cached, len(stub.requests)) == (False, True, 1)
    schema = stub.requests[0]["response_format"]["json_schema"]
    assert schema["strict"]
    assert schema["schema"]["additionalProperties"] is False
    assert schema["schema"]["required"] == ["verdict", "score"]


def test_an_endpoint_without_schemas_is_asked_in_words_from_then_on(store: ResponseStore, make_llm: MakeLLM) -> None:
    def respond(request: dict[str, Any]) -> str | Step:
        return Status(400, message="response_format is not supported") if "response_format" in request else GOOD

    async def ask(client: LLMClient) -> None:
        await client.gather(range(8), lambda n: _judge(client, [{"role": "user", "content": str(n)}]), label="t")

    with stub_endpoint(respond) as stub:
        _run(make_llm(stub.base_url), store, ask)
        asked = len(stub.requests)
        _run(make_llm(stub.base_url), store, ask)
    assert asked == len(stub.requests) == 9
    assert "response_format" in stub.requests[0]
    assert all("JSON schema" in request["messages"][0]["content"] for request in stub.requests[1:])


def test_an_endpoint_that_ignores_the_schema_is_asked_in_words(store: ResponseStore, make_llm: MakeLLM) -> None:
    def respond(request: dict[str, Any]) -> str:
        return "Well, yes, seven." if "response_format" in request else GOOD

    with stub_endpoint(respond) as stub:
        got, _ = _run(make_llm(stub.base_url), store, _judge)
    assert got.value.score == 7
    assert len(stub.requests) == 2


def test_a_forced_schema_is_not_given_up(store: ResponseStore, make_llm: MakeLLM) -> None:
    with (
        stub_endpoint(lambda _: Status(400, message="response_format is not supported")) as stub,
        pytest.raises(EndpointError, match="response_format"),
    ):
        _run(make_llm(stub.base_url, structured_outputs="json_schema"), store, _judge)


def test_parameters_that_an_endpoint_does_not_know_are_left_out(store: ResponseStore, make_llm: MakeLLM) -> None:
    script = [
        Status(400, message="Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        Status(400, message="Unsupported value: 'temperature' does not support 0.0 with this model."),
    ]
    with stub_endpoint(_echo, script=script) as stub:
        _run(make_llm(stub.base_url), store, _judge)
    assert len(stub.requests) == 3
    assert "max_tokens" not in stub.requests[2]
    assert "temperature" not in stub.requests[2]
    assert stub.requests[2]["max_completion_tokens"] == 2048


@pytest.mark.parametrize(
    "bad", ["Well, yes.", '{"verdict": "yes", "score": 11}', '{"verdict": "yes", "score": "7"}', '{"verdict": "yes"',
            '{"verdict": "yes", "score": NaN}', '{"verdict": "yes", "score": 7.5}', "[]"]
)  # fmt: skip
def test_an_invalid_answer_is_asked_again_twice_then_given_up(
    store: ResponseStore, make_llm: MakeLLM, bad: str
) -> None:
    llm_settings = {"structured_outputs": "json_schema"}
    with stub_endpoint(lambda _: bad) as stub:
        with pytest.raises(InvalidAnswer) as caught:
            _run(make_llm(stub.base_url, **llm_settings), store, _judge)
        assert (caught.value.reason, caught.value.raw) == ("invalid_answer", bad)
        assert len(stub.requests) == 3
        reask = stub.requests[1]["messages"]
        assert reask[-2] == {"role": "assistant", "content": bad}
        assert reask[-1]["content"].startswith("That answer cannot be used: ")
        with pytest.raises(InvalidAnswer):
            _run(make_llm(stub.base_url, **llm_settings), store, _judge)
        assert len(stub.requests) == 3, "an invalid answer is paid for: it is not asked for again by a re-run"


def test_a_reask_that_is_answered_well_counts(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo, script=[Answer("nonsense"), Answer("```json\n" + GOOD + "\n```")]) as stub:
        got, _ = _run(make_llm(stub.base_url, structured_outputs="plain"), store, _judge)
    assert got.value.score == 7
    assert len(stub.requests) == 2


def test_a_refusal_and_a_cut_are_given_up(store: ResponseStore, make_llm: MakeLLM) -> None:
    llm_settings = {"structured_outputs": "json_schema"}
    with stub_endpoint(lambda _: Answer("", refusal="I would rather not.")) as stub:
        with pytest.raises(InvalidAnswer, match="refused") as caught:
            _run(make_llm(stub.base_url, **llm_settings), store, _judge)
        assert (caught.value.reason, caught.value.raw, len(stub.requests)) == ("refused", "I would rather not.", 1)
    with stub_endpoint(lambda _: Answer('{"verdict": "y', finish_reason="length")) as stub:
        with pytest.raises(InvalidAnswer, match="length limit of 2048") as caught:
            _run(make_llm(stub.base_url, **llm_settings), store, lambda c: _judge(c, MESSAGES[1:]))
        assert (caught.value.reason, len(stub.requests)) == ("cut_at_length", 3)


def test_a_prompt_that_is_too_long_concerns_that_item_alone(store: ResponseStore, make_llm: MakeLLM) -> None:
    refusal = Status(400, message="request (5001 tokens) exceeds the available context size (2048 tokens)")

    def respond(request: dict[str, Any]) -> str | Step:
        return refusal if request["prompt"] == "long" else _echo(request)

    async def ask(client: LLMClient) -> str:
        with pytest.raises(InvalidAnswer, match="does not fit") as caught:
            await _complete(client, "long")
        assert caught.value.reason == "prompt_too_long"
        return (await _complete(client, "short")).text

    with stub_endpoint(respond) as stub:
        text, _ = _run(make_llm(stub.base_url), store, ask)
    assert text == "to short"
    assert ["max_tokens" in request for request in stub.requests] == [True, False, True], "it may fit without room"


@pytest.mark.parametrize(
    "step",
    [Status(500), Status(503), Status(408), Status(409), Drop(), Truncate(), Hang(5),
     Status(200, body=b"<html>gateway</html>"), Status(200, body=b'{"choices": []}')],
)  # fmt: skip
def test_passing_faults_are_tried_again(store: ResponseStore, make_llm: MakeLLM, step: Step) -> None:
    with stub_endpoint(_echo, script=[step, step]) as stub:
        got, client = _run(make_llm(stub.base_url, timeout_seconds=0.3), store, lambda c: _complete(c, "x"))
    assert (got.text, len(stub.requests), client.usage.retries, client.usage.calls) == ("to x", 3, 2, 1)


@pytest.mark.slow
def test_an_answer_that_drips_is_given_up_after_the_longest_wait(store: ResponseStore, make_llm: MakeLLM) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b"1\r\n \r\n")
                await writer.drain()
                await asyncio.sleep(0.1)

    async def serve_and_ask() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        llm = make_llm(f"http://127.0.0.1:{port}/v1", timeout_seconds=0.4, max_attempts=2)
        async with server, LLMClient(llm, store) as client:
            await asyncio.wait_for(_complete(client, "x"), 10)

    with pytest.raises(RequestFailed, match=r"no answer in 2 tries, the last: no answer within 0\.4 s"):
        asyncio.run(serve_and_ask())


@pytest.mark.parametrize(
    "reply",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 10_000 + b"\r\n\r\n",
    ],
    ids=["a TLS alert", "a bad chunk", "a long header"],
)
def test_what_is_not_http_is_a_broken_connection(store: ResponseStore, make_llm: MakeLLM, reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(reply)
        await writer.drain()
        writer.close()

    async def serve_and_ask() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        llm = make_llm(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", max_attempts=2)
        async with server, LLMClient(llm, store) as client:
            await asyncio.wait_for(_complete(client, "x"), 10)

    with pytest.raises(RequestFailed, match="no answer in 2 tries, the last: the connection broke, this is no HTTP"):
        asyncio.run(serve_and_ask())


def test_attempts_are_bounded_and_a_failure_is_not_stored(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(lambda _: Status(500, message="melted")) as stub:
        with pytest.raises(RequestFailed, match="no answer in 4 tries, the last: HTTP 500: melted"):
            _run(make_llm(stub.base_url, max_attempts=4), store, lambda c: _complete(c, "x"))
        assert (len(stub.requests), len(store)) == (4, 0)


def test_the_backoff_is_slept_between_attempts(
    store: ResponseStore, make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_backoff", lambda attempt: 0.1 * attempt)
    with stub_endpoint(_echo, script=[Status(500), Drop()]) as stub:
        _run(make_llm(stub.base_url), store, lambda c: _complete(c, "x"))
    assert stub.times[1] - stub.times[0] >= 0.1
    assert stub.times[2] - stub.times[1] >= 0.2


@pytest.mark.parametrize("wait", ["0", "0.001", "Thu, 01 Jan 2015 00:00:00 GMT"])
def test_a_wait_of_nothing_is_no_less_than_the_backoff(
    store: ResponseStore, make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setattr(transport, "_backoff", lambda attempt: 0.1 * attempt)
    with stub_endpoint(_echo, script=[Status(429, {"retry-after": wait}), Status(503, {"retry-after": wait})]) as stub:
        _run(make_llm(stub.base_url), store, lambda c: _complete(c, "x"))
    assert stub.times[1] - stub.times[0] >= 0.1
    assert stub.times[2] - stub.times[1] >= 0.2


def test_backoff_is_jittered_and_grows() -> None:
    waits = [[transport._backoff(attempt) for _ in range(200)] for attempt in (1, 4, 19)]
    assert [max(w) <= bound for w, bound in zip(waits, (1.0, 8.0, 30.0), strict=True)] == [True, True, True]
    assert max(waits[0]) < max(waits[1]) < max(waits[2])
    assert all(max(w) - min(w) > 0.5 * max(w) for w in waits)


@pytest.mark.parametrize(
    ("headers", "least"),
    [({"retry-after": "0.4"}, 0.4), ({"retry-after-ms": "400"}, 0.4),
     ({"retry-after": "date"}, 0.5), ({"retry-after": "a while"}, 0.0), ({"retry-after": "-7"}, 0.0)],
)  # fmt: skip
def test_retry_after_is_honoured(
    store: ResponseStore, make_llm: MakeLLM, headers: dict[str, str], least: float
) -> None:
    if headers.get("retry-after") == "date":
        headers = {"retry-after": formatdate(time.time() + 1.6, usegmt=True)}
    with stub_endpoint(_echo, script=[Status(429, headers)]) as stub:
        _run(make_llm(stub.base_url), store, lambda c: _complete(c, "x"))
    waited = stub.times[1] - stub.times[0]
    assert least <= waited < 3


def test_a_burst_of_429s_is_one_cut_and_every_item_finishes(
    store: ResponseStore, make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(client: LLMClient) -> tuple[list[str], int, int]:
        completions = await client.gather(range(60), lambda n: _complete(client, n), label="t")
        throttle = client._transport.throttle
        return [c.text for c in completions], throttle.concurrency.cuts, throttle.refusals

    monkeypatch.setattr(throttle_module, "INITIAL_CONCURRENCY", 20)
    burst = [Status(429, {"retry-after": "0.2"}, delay=0.15)] * 20
    with stub_endpoint(_echo, latency=0.01, script=burst) as stub:
        (texts, cuts, refusals), _ = _run(make_llm(stub.base_url, max_concurrency=20), store, ask)
    assert texts == [f"to {n}" for n in range(60)]
    assert (cuts, refusals) == (1, 20)
    # The twenty do not come back in one instant.
    again = [moment - stub.times[0] for moment in stub.times[20:40]]
    assert again[0] >= 0.35
    assert again[-1] - again[0] > 0.05


@pytest.mark.parametrize("code", [401, 402, 403, 404, 400])
def test_a_final_refusal_stops_at_once_and_shows_no_key(
    store: ResponseStore, make_llm: MakeLLM, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    refusal = Status(code, message=f"Incorrect key {KEY} for this model")

    async def ask(client: LLMClient) -> Any:
        assert KEY not in repr(client) + repr(vars(client)["_transport"])
        return await client.gather(range(500), lambda n: _complete(client, n), label="t")

    with stub_endpoint(lambda _: refusal) as stub, pytest.raises(EndpointError, match=f"HTTP {code}") as caught:
        _run(make_llm(stub.base_url), store, ask, api_key=KEY)
    assert len(stub.requests) <= 64
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    error: BaseException | None = caught.value
    while error is not None:
        shown += repr(error) + repr(vars(error))
        error = error.__cause__ or error.__context__
        assert not type(error).__module__.startswith(("openai", "httpx"))
    assert KEY not in shown
    assert "***" in str(caught.value)


def test_no_key_in_the_store_or_in_a_failure(tmp_path: Path, make_llm: MakeLLM) -> None:
    path = tmp_path / "responses.sqlite"

    async def ask(client: LLMClient) -> None:
        await _complete(client, "x")
        with pytest.raises(RequestFailed) as caught:
            await _complete(client, "y")
        assert KEY not in str(caught.value)

    def respond(request: dict[str, Any]) -> str | Step:
        return "fine" if request["prompt"] == "x" else Status(500, message=f"trace: Bearer {KEY}")

    with stub_endpoint(respond) as stub, ResponseStore(path) as store:
        _run(make_llm(stub.base_url), store, ask, api_key=KEY)
        kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"fine" in kept
    assert KEY.encode() not in kept


def test_a_key_that_no_header_can_hold_is_refused_unseen(store: ResponseStore, make_llm: MakeLLM) -> None:
    for key in ("sk-naïve-secret", "sk-secret\nX-Other: 1"):
        with pytest.raises(EndpointError) as caught:
            LLMClient(make_llm(), store, api_key=key)
        assert "secret" not in str(caught.value)


def test_a_dead_endpoint_stops_the_run_early(store: ResponseStore, make_llm: MakeLLM) -> None:
    answered: list[int] = []

    def respond(request: dict[str, Any]) -> str | Step:
        if int(request["prompt"]) < 30:
            return "fine"
        return Status(503, message="down")

    async def ask(client: LLMClient) -> None:
        async def one(number: int) -> None:
            try:
                await _complete(client, number)
            except InvalidAnswer:
                return
            answered.append(number)

        await client.gather(range(2000), one, label="t")

    with (
        stub_endpoint(respond) as stub,
        pytest.raises(TooManyFailures, match=r"of the last 40 .* run the same command"),
    ):
        _run(make_llm(stub.base_url, max_attempts=2), store, ask)
    assert len(stub.requests) < 300
    assert sorted(answered) == list(range(30))
    assert len(store) == 30


def test_few_requests_that_mostly_fail_stop_the_run_too(store: ResponseStore, make_llm: MakeLLM) -> None:
    async def ask(client: LLMClient) -> None:
        async def one(number: int) -> None:
            with pytest.raises(InvalidAnswer):
                await _complete(client, number)

        await client.gather(range(3), one, label="t")

    with stub_endpoint(lambda _: Drop()) as stub, pytest.raises(TooManyFailures, match="3 of the last 3"):
        _run(make_llm(stub.base_url, max_attempts=2), store, ask)


def test_a_reached_cap_keeps_what_was_paid_for_and_a_rerun_goes_on(store: ResponseStore, make_llm: MakeLLM) -> None:
    def ask(client: LLMClient) -> Any:
        return client.gather(range(100), lambda n: _complete(client, n), label="t")

    with stub_endpoint(_echo, latency=0.005) as stub:
        with pytest.raises(BudgetExhausted, match=r"llm.max_calls is 30 .* same command again"):
            _run(make_llm(stub.base_url, max_calls=30), store, ask)
        assert len(stub.requests) == len(store) == 30
        results, client = _run(make_llm(stub.base_url), store, ask)
    assert [r.text for r in results] == [f"to {n}" for n in range(100)]
    assert (client.usage.cached, client.usage.calls, len(stub.requests)) == (30, 70, 100)


_KILLED_RUN = """
import asyncio, sys
from pathlib import Path
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.responses import read_response
from embed_pipeline.llm.store import Answer as StoredAnswer
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.settings import LLM

async def run():
    with ResponseStore(Path(sys.argv[2])) as store:
        async with LLMClient(LLM(base_url=sys.argv[1], model="stub", max_concurrency=8), store) as client:
            ask = lambda n: client.complete(str(n), stop=["\\n"], max_tokens=30, temperature=0.3, seed=1)
            await client.gather(range(200), ask, label="t")

asyncio.run(run())
"""


@pytest.mark.slow
def test_after_a_kill_only_what_was_in_flight_is_asked_again(tmp_path: Path, make_llm: MakeLLM) -> None:
    path = tmp_path / "responses.sqlite"
    with stub_endpoint(_echo, latency=0.02) as stub:
        killed = subprocess.Popen([sys.executable, "-c", _KILLED_RUN, stub.base_url, str(path)])
        while len(stub.requests) < 60:
            assert killed.poll() is None
            time.sleep(0.005)
        killed.kill()
        killed.wait()
        with ResponseStore(path) as store:
            results, client = _run(
                make_llm(stub.base_url), store, lambda c: c.gather(range(200), lambda n: _complete(c, n), label="t")
            )
    assert [r.text for r in results] == [f"to {n}" for n in range(200)]
    assert client.usage.cached >= 50
    assert len(stub.requests) <= 200 + 8


def test_concurrency_stays_within_the_setting(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo, latency=0.02) as stub:
        _run(
            make_llm(stub.base_url, max_concurrency=16),
            store,
            lambda c: c.gather(range(150), lambda n: _complete(c, n), label="t"),
        )
    assert stub.peak == 16


@pytest.mark.slow
def test_a_limited_rate_is_learned(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo, latency=0.02, rate_limit=40) as stub:
        begun = time.monotonic()
        _run(make_llm(stub.base_url), store, lambda c: c.gather(range(240), lambda n: _complete(c, n), label="t"))
    assert time.monotonic() - begun < 1.4 * 240 / 40 + 1
    assert stub.refused < 25


def test_the_judge_can_be_another_model(store: ResponseStore, make_llm: MakeLLM) -> None:
    with stub_endpoint(_echo) as stub:
        _run(
            make_llm(stub.base_url),
            store,
            lambda c: c.structured(MESSAGES, Verdict, temperature=0, seed=1, model="judge"),
        )
    assert json.loads(json.dumps(stub.requests[0]))["model"] == "judge"


def test_open_client_takes_the_key_from_the_environment(
    tmp_path: Path, make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LLM_KEY_VARIABLE, KEY + "\n")

    async def run(llm: LLM) -> str:
        async with open_client(llm, tmp_path / "store" / "responses.sqlite") as client:
            assert client.generator == "stub"
            return str((await _complete(client, "x")).text)

    with stub_endpoint(_echo) as stub:
        assert asyncio.run(run(make_llm(stub.base_url))) == "to x"
    assert stub.authorizations == [f"Bearer {KEY}"]
    assert (tmp_path / "store" / "responses.sqlite").exists()


def _gather(function: Callable[[int], Awaitable[int]], count: int, workers: int) -> tuple[list[int], int]:
    done = 0

    def on_done() -> None:
        nonlocal done
        done += 1

    return asyncio.run(gathering.gather_all(range(count), function, workers, on_done)), done


def test_results_are_in_the_order_of_the_items_whatever_ends_first() -> None:
    async def slow_first(number: int) -> int:
        await asyncio.sleep(0.02 if number % 7 == 0 else 0)
        return number * number

    assert _gather(slow_first, 50, 8) == ([n * n for n in range(50)], 50)
    assert _gather(slow_first, 0, 8) == ([], 0)


def test_only_so_many_are_begun_at_a_time() -> None:
    now, peak = 0, 0

    async def count(number: int) -> int:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.001)
        now -= 1
        return number

    _gather(count, 200, 4)
    assert peak == 4


def test_after_an_exhausted_budget_all_in_flight_is_finished_and_nothing_begun() -> None:
    begun: list[int] = []
    finished: list[int] = []

    async def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            await asyncio.sleep(0.01)
            raise BudgetExhausted("cap")
        await asyncio.sleep(0.05)
        finished.append(number)
        return number

    with pytest.raises(BudgetExhausted, match="cap"):
        _gather(work, 100, 5)
    assert sorted(begun) == [0, 1, 2, 3, 4]
    assert sorted(finished) == [0, 1, 3, 4]


def test_after_another_error_what_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GRACE_SECONDS", 0.1)
    finished: list[int] = []

    async def work(number: int) -> int:
        if number == 2:
            await asyncio.sleep(0.01)
            raise EndpointError("no such model")
        await asyncio.sleep(0.03 if number == 1 else 60)
        finished.append(number)
        return number

    with pytest.raises(EndpointError, match="no such model"):
        _gather(work, 100, 4)
    assert finished == [1]


def test_an_interrupt_that_hits_a_worker_ends_the_work():
    class Interrupted(BaseException):
        """What Dagster's handler of SIGINT raises, wherever the program is."""

    worked = []

    async def work(number: int) -> None:
        worked.append(number)
        await asyncio.sleep(0)
        if number == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        asyncio.run(gathering.gather_all(range(1000), work, 2, lambda: None))
    assert len(worked) < 20
