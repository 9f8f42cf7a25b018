"""Connections: the address that the endpoint listens on, and headers that must arrive in time."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Serving

_BACKLOG = 2048
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADER_SECONDS = 10.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def bind(serving: Serving, port: int | None = None) -> socket.socket:
    """A listening socket on ``serving.host`` and ``port`` (None: ``serving.port``; 0: any free one).

    Raises:
        ServingError: naming host and port.
    """
    wanted = (0 if serving.port == "auto" else serving.port) if port is None else port
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    try:
        return socket.create_server((serving.host, wanted), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"cannot listen on {serving.host} port {wanted}: {error.strerror}"
        raise ServingError(f"{message}; set serving.host and serving.port") from error


def free_port(host: str) -> int:
    """A port of ``host`` that is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        return int(listener.getsockname()[1])


class GuardedProtocol(HttpToolsProtocol):
    """A connection that is closed when the headers of a request take longer than :data:`MAX_HEADER_SECONDS`.

    The time runs from the connection for its first request and from the first byte for later ones; between
    requests uvicorn's own keep-alive time runs.
    """

    _deadline: asyncio.TimerHandle | None = None
    _in_headers = True
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Start the time of the first request."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and refuse headers without end."""
        if self._in_headers:
            self._start()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Start the time of a later request."""
        super().on_message_begin()
        self._start()

    def on_headers_complete(self) -> None:
        """Stop the time."""
        self._in_headers, self._header_bytes = False, 0
        self._stop()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request's headers."""
        self._in_headers = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(MAX_HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
