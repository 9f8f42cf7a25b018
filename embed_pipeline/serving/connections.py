"""Connections: the address to listen on, names it is called by, headers that arrive in time, and no other protocol."""

from __future__ import annotations

import asyncio
import json
import socket
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

import httptools
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embed_pipeline.serving.serving_errors import RequestError, ServingError
from embed_pipeline.settings import Inspection, Serving

_BACKLOG = 2048
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADER_SECONDS = 10.0
_OFFERS = {b"upgrade", b"http2-settings"}
_BAD_REQUEST = RequestError(400, "this is no valid HTTP/1.1 request", code="bad_request")
_TOO_LARGE = RequestError(431, f"the headers have more than {MAX_HEADER_BYTES} bytes", code="headers_too_large")


def bind(serving: Serving | Inspection, port: int | None = None) -> socket.socket:
    """A listening socket on the group's ``host`` and ``port`` (None: its own ``port``; 0: any free one).

    Raises:
        ServingError: naming host and port.
    """
    wanted = (0 if serving.port == "auto" else serving.port) if port is None else port
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    # "::" is every address, of IPv4 too.
    both = serving.host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((serving.host, wanted), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        message = f"cannot listen on {serving.host} port {wanted}: {error.strerror}"
        group = type(serving).__name__.lower()
        raise ServingError(f"{message}; set {group}.host and {group}.port") from error


def free_port(host: str) -> int:
    """A port of ``host`` that is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        return int(listener.getsockname()[1])


class HostMiddleware:
    """ASGI middleware that refuses names which this machine is not called by.

    A web page may have its own name resolved to 127.0.0.1, and its scripts then read what is served there to this
    machine (DNS rebinding). Its requests carry that name, which has a dot in it.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        """Wrap ``app``; ``allowed`` are names that a proxy passes on."""
        self._app, self._allowed = app, {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 421."""
        given = next((value for name, value in scope.get("headers", ()) if name == b"host"), b"").decode("latin-1")
        if scope["type"] != "http" or self._is_known(_host_name(given)):
            await self._app(scope, receive, send)
            return
        message = f"this machine is not called {given[:80]!r}; a proxy's name goes into serving.allowed_hosts"
        error = RequestError(421, message, code="unknown_host")
        await JSONResponse(error.body(), status_code=error.status)(scope, receive, send)

    def _is_known(self, name: str) -> bool:
        return "." not in name or name in self._allowed or name.endswith(".localhost") or _is_address(name)


def _host_name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


class GuardedProtocol(HttpToolsProtocol):
    """A connection that is closed when the headers of a request take longer than :data:`MAX_HEADER_SECONDS`.

    The time runs from the connection for its first request and from the first byte for later ones; between
    requests uvicorn's own keep-alive time runs.

    An offer to change to another protocol (``Upgrade: h2c``, which Java's HttpClient sends with every request, or
    ``websocket``) is declined as RFC 9110 section 7.8 has it: the request is answered over HTTP/1.1.
    """

    _deadline: asyncio.TimerHandle | None = None
    _in_headers = True
    _header_bytes = 0
    _declined: bytes | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - as uvicorn has them
        """Parse with :class:`_OneProtocolParser`."""
        super().__init__(*arguments, **named)
        self.parser = _OneProtocolParser(self)  # type: ignore[assignment]  # it has all that uvicorn asks of it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the time of the first request."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse headers without end."""
        if self.transport.is_closing():
            return
        if self._in_headers:
            self._start()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.refuse_headers()

    def refuse_headers(self) -> None:
        """Answer that they are too large, and close."""
        self._answer(_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words are plain text
        """Answer what is no request in the form of every other error, and close."""
        self._answer(_BAD_REQUEST)

    def _answer(self, error: RequestError) -> None:
        body = json.dumps(error.body()).encode()
        phrase = HTTPStatus(error.status).phrase
        head = f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        self.transport.write(f"{head}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        """Start the time of a later request."""
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        """Stop the time; the headers of an offer to change the protocol are noted and parsed again without it."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._declined = self._head_without_offer()
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            raise _HeadersTooLargeError
        self._in_headers, self._header_bytes = False, 0
        self._stop()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request's headers."""
        if self._declined is not None:
            return
        self._in_headers = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop()
        super().connection_lost(exc)

    def take_declined(self) -> bytes | None:
        """The head of the request whose offer to change the protocol was declined, without the offer; once."""
        head, self._declined = self._declined, None
        return head

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                kept = [token for token in value.split(b",") if token.strip().lower() not in _OFFERS]
                lines.append(b"connection: " + b",".join(kept))
            elif name not in _OFFERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"\r\n"])

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(MAX_HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _HeadersTooLargeError(Exception):
    """Headers that arrived whole are larger than :data:`MAX_HEADER_BYTES`."""


class _OneProtocolParser:
    """httptools' parser, which leaves a connection at an offer to change its protocol; here it goes on with HTTP."""

    def __init__(self, protocol: GuardedProtocol) -> None:
        self._protocol = protocol
        self._renew()

    def _renew(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn has it: the first of several requests that were sent at once is answered.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes) -> None:
        """Parse ``data``.

        Raises:
            httptools.HttpParserError: it is not HTTP.
            httptools.HttpParserUpgrade: it is a CONNECT.
        """
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserCallbackError as error:
                if not isinstance(error.__context__, _HeadersTooLargeError):
                    raise
                self._protocol.refuse_headers()
                return
            except httptools.HttpParserUpgrade as offer:
                head = self._protocol.take_declined()
                if head is None:
                    raise
                data = head + data[offer.args[0] :]
                self._renew()
            else:
                return

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the parser has
        return getattr(self._parser, name)
