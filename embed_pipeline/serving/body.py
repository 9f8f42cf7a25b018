"""A request's body, read within its limits of size and time before anything looks at it."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from embed_pipeline.serving.errors import RequestError, invalid

MAX_SECONDS = 30.0
"""A request whose body takes longer is refused and its connection closed."""
_GZIP = 16 + zlib.MAX_WBITS


async def read_body(request: Request, max_bytes: int, *, seconds: float = MAX_SECONDS) -> bytes:
    """The body as bytes, unpacked where it is gzip.

    Raises:
        RequestError: 413 as soon as more than ``max_bytes`` are announced, come in or are unpacked; 415 for a
            body that is not JSON or is packed in another way; 408 for one that takes too long.
        ClientDisconnect: the client left.
    """
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(seconds):
            body = await _receive(request, max_bytes)
    except TimeoutError as error:
        message = f"the body took longer than {seconds:g} s"
        raise RequestError(408, message, code="request_timeout") from error
    if request.headers.get("content-encoding", "identity").strip().lower() == "gzip":
        return await asyncio.to_thread(unpack, body, max_bytes)
    return body


def _check_headers(request: Request, limit: int) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if media_type.strip().lower() != "application/json":
        message = f"Content-Type is {media_type.strip()[:80]!r}, must be application/json"
        raise RequestError(415, message, code="unsupported_media_type")
    charset = parameters.strip().lower()
    if charset.startswith("charset=") and charset.removeprefix("charset=").strip('"') not in {"utf-8", "utf8"}:
        raise RequestError(415, f"{charset[:80]!r}: JSON is UTF-8", code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        message = f"Content-Encoding is {encoding[:80]!r}, must be gzip or identity"
        raise RequestError(415, message, code="unsupported_media_type")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)


async def _receive(request: Request, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def unpack(body: bytes, limit: int) -> bytes:
    """Unpack gzip, never to more than ``limit`` bytes.

    Raises:
        RequestError: 413 when it would be more, 400 when it is not one whole gzip stream.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(f"the body is not gzip: {error}") from error
    if len(plain) > limit:
        raise _too_large(limit)
    if not unpacker.eof or unpacker.unused_data:
        raise invalid("the body is not one whole gzip stream")
    return plain


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the body is larger than {limit} bytes", code="body_too_large")
