"""The Batch API at a stub on a real socket: limits, partial failures, expiry, kills at every moment."""

# ruff: noqa: E501 - bodies as endpoints give them
from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from embed_pipeline.llm import batch_api
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.batch_api import BatchError
from embed_pipeline.llm.client import LLMClient, open_client
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.llm.transport import EndpointError
from embed_pipeline.settings import LLM

Request = dict[str, Any]
Line = dict[str, Any] | None
ITEMS = 6
KEY = "sk-proj-AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"


class Verdict(BaseModel):
    verdict: Literal["yes", "no"]


GOOD = json.dumps({"verdict": "yes"})


def _answered(text: str = GOOD, finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    body = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
    return {"response": {"status_code": 200, "body": body}, "error": None}


def _refused(status: int, message: str, **fields: object) -> dict[str, Any]:
    return {"response": {"status_code": status, "body": {"error": {"message": message, **fields}}}, "error": None}


@dataclass
class BatchStub:
    """What the stub was told to do, and what it got.

    Attributes:
        respond: a request's line to that of its outcome; None: the batch holds none.
        polls: how often a batch is in progress before it ends.
        ends: what a batch ends as, by its number; completed unless named.
        errors: of batches that fail, by number.
        kill: process to kill, and at which request.
        broken: answers with ``status`` to the first so many requests of a kind, after what they ask for is done.
        status: of those answers, which repeat the key.
        routes: whether it knows the Batch API at all.
    """

    respond: Callable[[Request], Line] = lambda _: _answered()
    polls: int = 1
    ends: dict[int, str] = field(default_factory=dict)
    errors: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    kill: tuple[int, str] | None = None
    broken: Counter[str] = field(default_factory=Counter)
    status: int = 503
    routes: bool = True
    base_url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    seen: threading.Event = field(default_factory=threading.Event)

    @property
    def submitted(self) -> list[str]:
        """Names of all requests of all batches."""
        return [line["custom_id"] for batch in self.batches for line in self.lines(batch)]

    def lines(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def end(self, batch: dict[str, Any]) -> None:
        number = self.batches.index(batch)
        status = self.ends.get(number, "completed")
        batch["status"] = status
        if status == "failed":
            batch["errors"] = {"object": "list", "data": self.errors[number]}
            return
        outcomes = {line["custom_id"]: self.respond(line["body"]) for line in self.lines(batch)}
        good: list[bytes] = []
        bad: list[bytes] = []
        for name, told in reversed(outcomes.items()):
            if told is not None:
                ok = told["response"] is not None and told["response"]["status_code"] == 200
                (good if ok else bad).append(json.dumps({"custom_id": name, **told}).encode())
        for kind, lines in (("output", good), ("error", bad)):
            if lines:
                batch[f"{kind}_file_id"] = f"{kind}-{number}"
                self.files[f"{kind}-{number}"] = b"\n".join(lines)
        batch["request_counts"] = {"total": len(outcomes), "completed": len(good), "failed": len(bad)}


@contextmanager
def batch_stub(stub: BatchStub) -> Iterator[BatchStub]:  # noqa: C901 - a server and its handler
    """Serve ``/v1/files`` and ``/v1/batches`` while the block runs."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            with lock:
                if not stub.routes:
                    return self._say(404, {"error": {"message": "Not found"}})
                if self.path == "/v1/files":
                    uploaded = re.search(rb"\r\n\r\n(\{.*\})\s*\r\n--", content, re.DOTALL)
                    assert uploaded
                    assert b'name="purpose"\r\n\r\nbatch' in content
                    made: dict[str, Any] = {"id": f"file-{len(stub.files)}", "object": "file", "bytes": 1,
                                            "created_at": 0, "filename": "f", "purpose": "batch"}  # fmt: skip
                    stub.files[made["id"]] = uploaded[1]
                    return self._give("file", made)
                asked = json.loads(content)
                made = {"id": f"batch-{len(stub.batches)}", "object": "batch", "status": "validating", "created_at": 0,
                        "polls": 0, **asked}  # fmt: skip
                stub.batches.append(made)
                return self._give("batch", made)

        def do_GET(self) -> None:
            with lock:
                path = self.path.partition("?")[0].removeprefix("/v1/")
                if path == "batches":
                    return self._give("list", {"object": "list", "data": stub.batches, "has_more": False})
                if path.startswith("files/"):
                    return self._give("content", stub.files[path.split("/")[1]])
                batch = next((one for one in stub.batches if path == f"batches/{one['id']}"), None)
                if batch is None:
                    return self._say(404, {"error": {"message": "No such batch"}})
                batch["polls"] += 1
                if batch["polls"] > 1:
                    stub.seen.set()
                if batch["polls"] > stub.polls and batch["status"] in {"validating", "in_progress"}:
                    stub.end(batch)
                elif batch["status"] == "validating":
                    batch["status"] = "in_progress"
                return self._give("poll", batch)

        def _give(self, kind: str, body: bytes | dict[str, Any]) -> None:
            if stub.kill is not None and stub.kill[1] == kind:
                os.kill(stub.kill[0], signal.SIGKILL)
                stub.kill = None
                return None
            if stub.broken[kind] > 0:
                stub.broken[kind] -= 1
                said = f"Not now, {self.headers['authorization']}"
                return self._say(stub.status, {"error": {"message": said}})
            return self._say(200, body)

        def _say(self, status: int, body: bytes | dict[str, Any]) -> None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("QUIET_SECONDS", 0.05), ("FIRST_POLL_SECONDS", 0.02), ("RETRY_SECONDS", 0.01)):
        monkeypatch.setattr(batch_api, name, seconds)


def _item(request: Request) -> int:
    said = next(m["content"] for m in request["messages"] if m["content"].startswith("item "))
    return int(re.match(r"item (\d+)", said)[1])  # type: ignore[index]  # it begins so


async def _judge_all(client: LLMClient, count: int = ITEMS) -> Counter[str]:
    async def ask(number: int) -> str:
        messages = [{"role": "system", "content": "Judge."}, {"role": "user", "content": f"item {number}"}]
        try:
            await client.structured(messages, Verdict, temperature=0.0, seed=1, about=f"document {number}")
        except InvalidAnswer as error:
            return error.reason
        return "answered"

    return Counter(await client.gather(range(count), ask, label="t"))


def _run(stub: BatchStub, store: ResponseStore, count: int = ITEMS, **limits: Any) -> tuple[Counter[str], LLMClient]:
    llm = LLM(base_url=stub.base_url, model="stub", batch=True, **limits)

    async def run() -> tuple[Counter[str], LLMClient]:
        async with LLMClient(llm, store, api_key=KEY) as client:
            return await _judge_all(client, count), client

    return asyncio.run(run())


def test_all_requests_go_in_one_batch_and_are_stored(store: ResponseStore) -> None:
    with batch_stub(BatchStub()) as stub:
        prices = {"price_per_million_prompt_tokens": 10, "price_per_million_completion_tokens": 100}
        found, client = _run(stub, store, **prices)
        assert found == {"answered": ITEMS}
        assert len(stub.batches) == 1
        assert [batch["endpoint"] for batch in stub.batches] == ["/v1/chat/completions"]
        assert client.usage.calls == ITEMS
        assert client.usage.cost == pytest.approx(ITEMS * (100 * 10 + 10 * 100) / 1e6 / 2), "half the price"
        again, client = _run(stub, store)
        assert (again, client.usage.calls, len(stub.batches)) == (found, 0, 1)
    assert store.open_batches(stub.base_url) == []


@pytest.mark.parametrize("limit", [{"batch_requests": 2}, {"batch_megabytes": 0.0013}])
def test_the_limits_of_a_batch_are_kept(store: ResponseStore, limit: dict[str, float]) -> None:
    with batch_stub(BatchStub()) as stub:
        found, _ = _run(stub, store, **limit)
    assert found == {"answered": ITEMS}
    assert len(stub.batches) >= ITEMS // 2
    assert len(stub.submitted) == len(set(stub.submitted)) == ITEMS
    for batch in stub.batches:
        assert len(stub.lines(batch)) <= limit.get("batch_requests", ITEMS)
        assert len(stub.files[batch["input_file_id"]]) <= limit.get("batch_megabytes", 1) * 1e6


def _once(told: Line, *items: int) -> Callable[[Request], Line]:
    """Answer these items so the first time, and well from then on."""
    seen: set[int] = set()

    def respond(request: Request) -> Line:
        number = _item(request)
        first = number in items and number not in seen
        seen.add(number)
        return told if first else _answered()

    return respond


PARTIAL = {
    "a server fault": (_once(_refused(500, "oops"), 1, 2), {"answered": ITEMS}, 2),
    "expired": (_once({"response": None, "error": {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."}}, 4, 5), {"answered": ITEMS}, 2),
    "missing": (_once(None, 0), {"answered": ITEMS}, 2),
    "an empty answer": (_once(_answered(""), 3), {"answered": ITEMS}, 2),
    "an error inside a 200": (_once({"response": {"status_code": 200, "body": {"error": {"code": 429, "message": "Rate limit"}}}, "error": None}, 3), {"answered": ITEMS}, 2),
    "no JSON": (_once(_answered("Well, yes."), 3), {"answered": ITEMS}, 2),
    "flagged": (lambda r: _refused(400, "no", code="content_filter") if _item(r) == 2 else _answered(), {"answered": ITEMS - 1, "prompt_filtered": 1}, 1),
    "a refused parameter": (lambda r: _refused(400, "Unsupported parameter: 'seed'", param="seed") if "seed" in r else _answered(), {"answered": ITEMS}, 2),
    "never valid": (lambda r: _answered("Well.") if _item(r) == 2 else _answered(), {"answered": ITEMS - 1, "invalid_answer": 1}, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTIAL)
def test_what_a_batch_does_not_answer_is_treated_as_a_request_of_its_own(store: ResponseStore, name: str) -> None:
    respond, expected, batches = PARTIAL[name]
    with batch_stub(BatchStub(respond, ends={0: "expired"} if name in {"expired", "missing"} else {})) as stub:
        found, _ = _run(stub, store)
        assert found == expected
        assert len(stub.batches) == batches
        assert _run(stub, store)[0] == expected
    times = Counter(stub.submitted)
    assert sum(times.values()) - len(times) <= ITEMS


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([{"code": "model_not_found", "message": "The model `stub` does not exist"}], r"llm\.model"),
        ([{"code": "invalid_api_key", "message": "No"}], "API key"),
        ([{"code": "billing_hard_limit_reached", "message": "Billing hard limit has been reached"}], "balance"),
    ],
)
def test_a_batch_that_fails_for_all_stops_the_run(
    store: ResponseStore, errors: list[dict[str, Any]], said: str
) -> None:
    with batch_stub(BatchStub(ends={0: "failed"}, errors={0: errors})) as stub:
        with pytest.raises(EndpointError, match=said):
            _run(stub, store)
        assert _run(stub, store)[0] == {"answered": ITEMS}, "mended, it goes on"
    assert len(stub.batches) == 2


def test_a_batch_that_fails_for_one_line_is_about_that_one(store: ResponseStore) -> None:
    errors = [{"code": "content_filter", "message": "flagged", "line": 3}]
    with batch_stub(BatchStub(ends={0: "failed"}, errors={0: errors})) as stub:
        found, _ = _run(stub, store)
    assert found == {"answered": ITEMS - 1, "prompt_filtered": 1}
    assert len(stub.batches) == 2


@pytest.mark.slow
def test_a_batch_too_large_for_the_queue_is_halved(store: ResponseStore) -> None:
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    with batch_stub(BatchStub(ends={0: "failed"}, errors={0: full})) as stub:
        assert _run(stub, store)[0] == {"answered": ITEMS}
    assert [len(stub.lines(batch)) for batch in stub.batches] == [ITEMS, ITEMS // 2, ITEMS // 2]


@pytest.mark.slow
def test_a_queue_that_stays_full_is_waited_for(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_api, "FIRST_ROOM_SECONDS", 0.05)
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    numbers = range(3)
    stub = BatchStub(ends=dict.fromkeys(numbers, "failed"), errors=dict.fromkeys(numbers, full))
    with batch_stub(stub):
        assert _run(stub, store)[0] == {"answered": ITEMS}
    assert [len(stub.lines(batch)) for batch in stub.batches] == [ITEMS, *[ITEMS // 2] * 4]


def test_no_message_holds_the_key(store: ResponseStore) -> None:
    with batch_stub(BatchStub(broken=Counter(file=1), status=401)) as stub, pytest.raises(BatchError) as caught:
        _run(stub, store)
    assert "Not now, Bearer ***" in str(caught.value)


def test_an_endpoint_without_batches_names_the_setting(store: ResponseStore) -> None:
    with batch_stub(BatchStub(routes=False)) as stub, pytest.raises(BatchError, match=r"no Batch API.*llm\.batch"):
        _run(stub, store)


def test_the_embedded_server_takes_no_batches(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_client(LLM(batch=True), tmp_path / "responses.sqlite"):
            pass

    with pytest.raises(BatchError, match=r"llm\.batch is true and llm\.base_url is none"):
        asyncio.run(run())


def test_a_cancelled_batch_keeps_its_answers_and_stops(store: ResponseStore) -> None:
    half = BatchStub(lambda r: _answered() if _item(r) < 2 else None, ends={0: "cancelled"})
    with batch_stub(half) as stub:
        with pytest.raises(BatchError, match="batch-0 was cancelled.*2 answers are stored"):
            _run(stub, store)
        stub.respond = lambda _: _answered()
        assert _run(stub, store)[0] == {"answered": ITEMS}
    assert [len(stub.lines(batch)) for batch in stub.batches] == [ITEMS, ITEMS - 2]


@pytest.mark.parametrize(
    ("kind", "status"), [("file", 503), ("batch", 503), ("poll", 503), ("poll", 404), ("content", 404)]
)
def test_a_moment_of_weakness_submits_nothing_twice(store: ResponseStore, kind: str, status: int) -> None:
    with batch_stub(BatchStub(broken=Counter({kind: 2}), status=status)) as stub:
        assert _run(stub, store)[0] == {"answered": ITEMS}
    assert len(stub.batches) == 1


_PROCESS = """
import asyncio, sys
from pathlib import Path
from embed_pipeline.llm import batch_api
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.settings import LLM
from embed_pipeline_tests.llm.test_batch_api import _judge_all
batch_api.QUIET_SECONDS = 0.05

async def run():
    with ResponseStore(Path(sys.argv[2])) as store:
        async with LLMClient(LLM(base_url=sys.argv[1], model="stub", batch=True), store) as client:
            await _judge_all(client)

asyncio.run(run())
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["file", "batch", "poll"])
def test_a_run_that_is_killed_finds_its_batch_again(store: ResponseStore, moment: str) -> None:
    with batch_stub(BatchStub(polls=3)) as stub:
        process = subprocess.Popen([sys.executable, "-c", _PROCESS, stub.base_url, str(store.path)])
        stub.kill = (process.pid, moment)
        assert process.wait(60) == -signal.SIGKILL
        assert len(store) == 0
        found, client = _run(stub, store)
        assert found == {"answered": ITEMS}
        assert client.usage.calls == ITEMS
    assert len(stub.batches) == 1
    assert len(stub.submitted) == len(set(stub.submitted)) == ITEMS


def test_an_open_batch_is_taken_even_if_it_has_ended_meanwhile(store: ResponseStore) -> None:
    """The answers of a batch that nobody waited for are there before the first request is submitted again."""
    with batch_stub(BatchStub(polls=10_000)) as stub:
        llm = LLM(base_url=stub.base_url, model="stub", batch=True)

        async def give_up() -> None:
            async with LLMClient(llm, store) as client:
                task = asyncio.create_task(_judge_all(client))
                await asyncio.to_thread(stub.seen.wait, 30)
                task.cancel()

        asyncio.run(give_up())
        assert len(store.open_batches(stub.base_url)) == 1
        stub.polls = 0
        found, _ = _run(stub, store, count=ITEMS + 2)
    assert found == {"answered": ITEMS + 2}
    assert [len(stub.lines(batch)) for batch in stub.batches] == [ITEMS, 2]


def test_the_progress_shows_counts(store: ResponseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("embed_pipeline.llm.client.TICK_SECONDS", 0.02)
    monkeypatch.setattr("embed_pipeline.progress.Bar.advance", lambda _, __, note: shown.append(note))
    with batch_stub(BatchStub(polls=5)) as stub:
        _run(stub, store)
    assert any("1 batch: 0 of 6 done, 0 failed" in line for line in shown), shown


@pytest.mark.slow
def test_two_processes_share_a_batch(tmp_path: Path) -> None:
    with batch_stub(BatchStub(polls=3)) as stub:
        path = tmp_path / "responses.sqlite"
        with ResponseStore(path) as one, ResponseStore(path) as two:
            llm = LLM(base_url=stub.base_url, model="stub", batch=True)

            async def run(store: ResponseStore) -> Counter[str]:
                async with LLMClient(llm, store) as client:
                    return await _judge_all(client)

            async def both() -> list[Counter[str]]:
                return await asyncio.gather(run(one), run(two))

            assert asyncio.run(both()) == [{"answered": ITEMS}] * 2
    assert len(stub.submitted) == len(set(stub.submitted)) == ITEMS
