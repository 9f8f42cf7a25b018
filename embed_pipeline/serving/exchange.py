"""Around every request: an id, the counts, and a connection that is closed in order when a body goes unread."""

from __future__ import annotations

import asyncio
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_pipeline.serving.service import Service

# After an early answer the rest of the body is read and thrown away for so long: a client that is still sending
# would otherwise see its connection reset instead of the answer.
_LINGER_SECONDS = 2.0


class Exchange:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        """Wrap ``app``; ``paths`` are those counted under their own name."""
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        started = time.monotonic()
        self._service.open_requests += 1
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._service.open_requests -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.requests.labels(path, str(exchange.status)).inc()
            self._service.metrics.request_seconds.observe(time.monotonic() - started)


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status = 0
        self.request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        names = {name for name, value in scope["headers"] if value != b"0"}
        self._body_left = bool(names & {b"content-length", b"transfer-encoding"})

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._body_left = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.request_id.encode()))
            if self._body_left:
                message["headers"].append((b"connection", b"close"))
            await self._send(message)
        elif self._body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._body_left:
                    await self.receive()
        except TimeoutError:
            return
