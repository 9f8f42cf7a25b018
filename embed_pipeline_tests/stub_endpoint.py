"""A stub OpenAI-compatible endpoint on a real socket, which can misbehave as told.

    with stub_endpoint(lambda request: "answer", script=[Status(429, {"retry-after": "1"}), Drop()]) as stub:
        ... LLMClient(..., base_url=stub.base_url) ...
    assert len(stub.requests) == 3

The first requests get the script's steps, one each; later ones what the responder returns for the request's JSON: the
text, or an :class:`Answer` or a step.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any


@dataclass(frozen=True)
class Status:
    """Answer with this status, headers and body (None: an OpenAI-shaped error with ``message``) after a delay."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "as the script says"
    body: bytes | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class Drop:
    """Close the connection without an answer."""


@dataclass(frozen=True)
class Truncate:
    """Send half of a good answer, then close the connection."""


@dataclass(frozen=True)
class Hang:
    """Hold the connection open and say nothing for so many seconds."""

    seconds: float = 30.0


@dataclass(frozen=True)
class Answer:
    """A good answer with more than its text; ``seconds`` are added to the stub's latency."""

    text: str
    finish_reason: str = "stop"
    refusal: str | None = None
    seconds: float = 0.0
    log_probability: float | None = None


Step = Status | Drop | Truncate | Hang | Answer
Responder = Callable[[dict[str, Any]], str | Step]


@dataclass
class Stub:
    """A running stub.

    Attributes:
        base_url: what an OpenAI client takes.
        requests: JSON bodies in the order received, refused ones among them.
        paths: their paths.
        headers: their headers, names in lower case.
        authorizations: their Authorization headers.
        times: their arrivals, monotonic seconds.
        refused: requests over the rate limit.
        peak: most requests in flight at once.
    """

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    refused: int = 0
    peak: int = 0


@contextmanager
def stub_endpoint(
    responder: Responder,
    *,
    latency: float = 0.0,
    rate_limit: float | None = None,
    script: Sequence[Step] = (),
    port: int = 0,
    host: str = "127.0.0.1",
    slots: int = 1000,
) -> Iterator[Stub]:
    """Serve ``/v1/chat/completions`` and ``/v1/completions`` while the block runs.

    Args:
        responder: request JSON to answer.
        latency: seconds before every good answer.
        rate_limit: requests a second, counted in whole seconds; more are refused with 429 and ``Retry-After: 1``.
        script: what the first requests get instead.
        port: where to listen; 0: any free port.
        host: address to listen on.
        slots: good answers that are written at once; others wait.
    """
    listener = socket.create_server((host, port), backlog=1024)
    stub = Stub(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    server = _Server(stub, responder, latency, rate_limit, deque(script), asyncio.Semaphore(slots))
    loop = asyncio.new_event_loop()
    ready, stopping = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with await asyncio.start_server(server.connection, sock=listener):
            ready.set()
            await stopping.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _Server:
    def __init__(  # noqa: PLR0917 - the arguments of stub_endpoint
        self,
        stub: Stub,
        responder: Responder,
        latency: float,
        rate_limit: float | None,
        script: deque[Step],
        slots: asyncio.Semaphore,
    ) -> None:
        self._stub, self._responder, self._latency = stub, responder, latency
        self._rate_limit, self._script, self._slots = rate_limit, script, slots
        self._second, self._in_second, self._open = 0, 0, 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        request = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
        self._record(first.split(" ")[1], headers, request)
        step: str | Step
        if self._over_rate():
            self._stub.refused += 1
            step = Status(429, {"retry-after": "1"}, "rate limit")
        else:
            step = self._script.popleft() if self._script else self._responder(request)
        self._open += 1
        self._stub.peak = max(self._stub.peak, self._open)
        try:
            return await self._answer(writer, request, step)
        finally:
            self._open -= 1

    def _record(self, path: str, headers: dict[str, str], request: dict[str, Any]) -> None:
        self._stub.requests.append(request)
        self._stub.paths.append(path)
        self._stub.headers.append(headers)
        self._stub.authorizations.append(headers.get("authorization", ""))
        self._stub.times.append(time.monotonic())

    def _over_rate(self) -> bool:
        if self._rate_limit is None:
            return False
        second = int(time.monotonic())
        self._in_second = 1 if second != self._second else self._in_second + 1
        self._second = second
        return self._in_second > self._rate_limit

    async def _answer(self, writer: asyncio.StreamWriter, request: dict[str, Any], step: str | Step) -> bool:
        if isinstance(step, Drop):
            return False
        if isinstance(step, Hang):
            await asyncio.sleep(step.seconds)
            return False
        if isinstance(step, Status):
            await asyncio.sleep(step.delay)
            error = {"error": {"message": step.message, "type": "stub_error", "code": None}}
            body = json.dumps(error).encode() if step.body is None else step.body
            return await _send(writer, step.code, step.headers, body)
        answer = Answer(step) if isinstance(step, str) else step if isinstance(step, Answer) else Answer("cut short")
        async with self._slots:
            await asyncio.sleep(self._latency + answer.seconds)
        body = json.dumps(_shape(request, answer)).encode()
        return await _send(writer, 200, {}, body, cut=isinstance(step, Truncate))


def _shape(request: dict[str, Any], answer: Answer) -> dict[str, Any]:
    prompt_tokens = len(json.dumps(request.get("messages", request.get("prompt")))) // 4
    completion_tokens = max(1, len(answer.text) // 4)
    choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish_reason}
    if "messages" in request:
        choice["message"] = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    else:
        choice["text"] = answer.text
    if answer.log_probability is not None:
        choice["logprobs"] = {"content": [{"token": "?", "logprob": answer.log_probability}]}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    return {"id": "stub", "object": "completion", "model": request.get("model"), "choices": [choice], "usage": usage}


async def _send(
    writer: asyncio.StreamWriter, code: int, headers: dict[str, str], body: bytes, *, cut: bool = False
) -> bool:
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    phrase = HTTPStatus(code).phrase if code in set(HTTPStatus) else "Unofficial"
    head = f"HTTP/1.1 {code} {phrase}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items())
    writer.write(head.encode("latin-1") + b"\r\n" + (body[: len(body) // 2] if cut else body))
    await writer.drain()
    return not cut
