"""A request before it is answered: its API key, its body within limits, its fields checked one by one."""

from __future__ import annotations

import asyncio
import codecs
import hmac
import ipaddress
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any, Literal, NoReturn, TypeVar, cast

import numpy as np
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from embed_pipeline.embedding.families import Kind
from embed_pipeline.serving.serving_errors import RequestError, invalid

_BEARER = b"bearer "
MAX_SECONDS = 30.0
"""A request whose body takes longer is refused and its connection closed."""
_GZIP = 16 + zlib.MAX_WBITS
Truncate = Literal["NONE", "END", "START"]
Choice = TypeVar("Choice", bound=str)
MAX_INPUTS = 2048
KINDS: tuple[Kind, ...] = ("query", "passage")
ENCODING_FORMATS: tuple[Literal["float", "base64"], ...] = ("float", "base64")
TRUNCATE: tuple[Truncate, ...] = ("NONE", "END", "START")
FIELDS = frozenset({"input", "model", "input_type", "encoding_format", "truncate", "dimensions", "user"})
# Parsing builds an object for every value and holds the interpreter lock while it does. Bodies up to the first size
# are parsed within milliseconds whatever they hold; a larger one may hold so many values and no more.
FREE_BODY_BYTES = 512 * 1024
MAX_JSON_VALUES = 16_384
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = {chr(0xDC00 + byte) for byte in range(0x80, 0x100)}
"""What ``surrogateescape`` makes of bytes that are not UTF-8."""
_IDS_REFUSED = (
    "input holds token ids; decoding them with another model's vocabulary would be silently wrong, so send text "
    "(langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)


def require_key(request: Request, key: bytes | None) -> None:
    """Let the request pass when it brings ``key``, or when there is none to bring.

    Raises:
        RequestError: 401.
    """
    if key is not None and not _sends_key(request, key):
        raise _unauthorized("a valid API key is required: Authorization: Bearer KEY")


def require_metrics_access(request: Request, key: bytes | None, *, open_metrics: bool) -> None:
    """Let the request see metrics: from this machine, where they are open, or with the key.

    Raises:
        RequestError: 401.
    """
    if open_metrics or _is_local(request) or (key is not None and _sends_key(request, key)):
        return
    raise _unauthorized("metrics are open on the loopback address only, unless serving.open_metrics is set")


def _sends_key(request: Request, key: bytes) -> bool:
    # Header values are bytes on the wire and compared as such; a key need not be ASCII.
    header = next((value for name, value in request.scope["headers"] if name == b"authorization"), b"")
    given = header[len(_BEARER) :].strip() if header[: len(_BEARER)].lower() == _BEARER else b""
    return hmac.compare_digest(given, key)


def _is_local(request: Request) -> bool:
    return request.client is not None and is_loopback(request.client.host)


def is_loopback(host: str) -> bool:
    """True for an address that this machine alone reaches; an IPv4 address may come in the form of IPv6."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _unauthorized(message: str) -> RequestError:
    return RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


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
            body = await _receive_body(request, max_bytes)
    except TimeoutError as error:
        message = f"the body took longer than {seconds:g} s to arrive"
        raise RequestError(408, message, code="request_timeout") from error
    if request.headers.get("content-encoding", "identity").strip().lower() == "gzip":
        return await asyncio.to_thread(unpack, body, max_bytes)
    return body


def _check_headers(request: Request, limit: int) -> None:
    given = Message()
    given["content-type"] = request.headers.get("content-type", "")
    (media_type, _), *parameters = given.get_params() or [("", "")]
    if media_type.strip().lower() != "application/json":
        message = f"Content-Type is {media_type.strip()[:80]!r}, must be application/json"
        raise RequestError(415, message, code="unsupported_media_type")
    for name, value in parameters:
        charset = collapse_rfc2231_value(value)
        if name.lower() == "charset" and not _is_utf8(charset):
            message = f"Content-Type says charset {charset[:80]!r}; JSON is UTF-8"
            raise RequestError(415, message, code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "").strip().lower() or "identity"
    if encoding not in {"identity", "gzip"}:
        message = f"Content-Encoding is {encoding[:80]!r}, must be gzip or identity"
        raise RequestError(415, message, code="unsupported_media_type")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)


def _is_utf8(charset: str) -> bool:
    """True for a name of UTF-8, or of ASCII, which is a part of it."""
    try:
        return codecs.lookup(charset).name in {"utf-8", "utf-8-sig", "ascii"}
    except (LookupError, ValueError):
        return False


async def _receive_body(request: Request, limit: int) -> bytes:
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


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request that is right by itself; whether the model has what it asks for is still open.

    Attributes:
        texts: what is to be embedded.
        model: name as the client wrote it.
        kind: query or passage, where the request says so.
        base64: True for little-endian float32 in base64, False for JSON numbers.
        truncate: which end of a text that is too long is kept; NONE: it is an error; None: as the endpoint has it.
        dimensions: length of the vectors, where the request says so.
        unknown_fields: how many fields it has that nothing reads.
    """

    texts: Sequence[str]
    model: str
    kind: Kind | None
    base64: bool
    truncate: Truncate | None
    dimensions: int | None
    unknown_fields: int


def parse_request(body: bytes) -> EmbeddingRequest:
    """Read the JSON ``body`` of an embedding request. A field that is null counts as absent.

    Raises:
        RequestError: naming the field, the value and the bound.
    """
    values = {name: value for name, value in _read_object(body).items() if value is not None}
    if not isinstance(values.get("user", ""), str):
        raise invalid("user must be a string", "user")
    return EmbeddingRequest(
        texts=_texts(values),
        model=_model(values),
        kind=_choice(values, "input_type", KINDS),
        base64=_choice(values, "encoding_format", ENCODING_FORMATS) == "base64",
        truncate=_choice(values, "truncate", TRUNCATE),
        dimensions=_dimensions(values),
        unknown_fields=len(values.keys() - FIELDS),
    )


def _read_object(body: bytes) -> dict[str, Any]:
    body = body.removeprefix(codecs.BOM_UTF8)
    if len(body) > FREE_BODY_BYTES and (count := count_values(body)) > MAX_JSON_VALUES:
        message = (
            f"the body has {count} JSON values, more than {MAX_JSON_VALUES}; send texts, token ids are not accepted"
        )
        raise invalid(f"{message} (langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)", "input")
    try:
        values = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise _malformed(body, error) from error
    if not isinstance(values, dict):
        raise invalid(f"the body must be a JSON object, got {_name(values)}")
    return values


def _malformed(body: bytes, error: ValueError) -> RequestError:
    """What is wrong with a body that is not JSON; where it is the text of an input, which one."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return invalid("the body is UTF-16; JSON is UTF-8")
    decoded = body.decode("utf-8", "surrogateescape")
    undecoded = _SURROGATE.search(decoded) is not None
    try:
        # This parser lets single surrogates through.
        values = json.loads(decoded)
    except (ValueError, RecursionError):
        values = None
    given = values.get("input") if isinstance(values, dict) else None
    for index, text in enumerate([given] if isinstance(given, str) else given if isinstance(given, list) else []):
        found = _SURROGATE.search(text) if isinstance(text, str) else None
        if found is not None:
            where = f"input[{index}]" if isinstance(given, list) else "input"
            if undecoded and found[0] in _UNDECODED:
                what = f"byte 0x{ord(found[0]) - 0xDC00:02x}, which is not UTF-8,"
            else:
                what = f"half a surrogate pair (\\u{ord(found[0]):04x})"
            return invalid(f"{where} holds {what} at character {found.start()}; cut texts between characters", "input")
    return invalid(f"the body is not JSON: {error}")


def count_values(body: bytes) -> int:
    """About how many values JSON text holds: its commas and opening brackets outside strings.

    Nearly all of the time is spent in numpy, which lets other threads run.
    """
    plain = np.frombuffer(body.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), dtype=np.uint8)
    outside = np.cumsum(plain == ord('"'), dtype=np.uint8) & 1 == 0
    openers = (plain == ord(",")) | (plain == ord("[")) | (plain == ord("{"))
    return int(np.count_nonzero(outside & openers))


def _texts(values: dict[str, Any]) -> list[str]:
    if "input" not in values:
        raise invalid("input is required: a string or a list of strings", "input")
    given = values["input"]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise invalid(f"input must be a string or a list of strings, got {_name(given)}", "input")
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise invalid(f"input holds {len(texts)} texts, must hold 1 to {MAX_INPUTS}", "input")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse_text(index, text)
        if not text:
            raise invalid(f"input[{index}] is empty" if isinstance(given, list) else "input is empty", "input")
    return cast("list[str]", texts)


def _refuse_text(index: int, text: object) -> NoReturn:
    number = isinstance(text, int) and not isinstance(text, bool)
    if number or (isinstance(text, list) and all(isinstance(item, int) for item in text)):
        raise invalid(_IDS_REFUSED, "input")
    raise invalid(f"input[{index}] must be a string, got {_name(text)}", "input")


def _model(values: dict[str, Any]) -> str:
    model = values.get("model")
    if model is None:
        raise invalid("model is required", "model")
    if not isinstance(model, str):
        raise invalid(f"model must be a string, got {_name(model)}", "model")
    return model


def _choice(values: dict[str, Any], name: str, choices: tuple[Choice, ...]) -> Choice | None:
    value = values.get(name)
    if value is None:
        return None
    for choice in choices:
        if value == choice:
            return choice
    shown = repr(value[:40]) if isinstance(value, str) else _name(value)
    raise invalid(f"{name} is {shown}, must be one of {', '.join(choices)}", name)


def _dimensions(values: dict[str, Any]) -> int | None:
    value = values.get("dimensions")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise invalid(f"dimensions must be an integer, got {_name(value)}", "dimensions")
    return value


def _name(value: object) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def check_dimensions(asked: int | None, dimensions: int, matryoshka: Sequence[int]) -> int:
    """The length of the vectors to answer with.

    Raises:
        RequestError: the model's vectors may not be cut to that length.
    """
    if asked is None:
        return dimensions
    allowed = sorted({size for size in matryoshka if size < dimensions} | {dimensions})
    if asked not in allowed:
        shown = ", ".join(str(size) for size in allowed)
        raise invalid(f"dimensions is {str(asked)[:20]}, this model offers {shown}", "dimensions")
    return asked


def check_kind(asked: Kind | None, named: Kind | None, *, strict: bool) -> Kind:
    """Query or passage, from ``input_type`` and the model name's suffix.

    Raises:
        RequestError: the two contradict each other, or neither is there and ``strict`` wants one.
    """
    if asked and named and asked != named:
        raise invalid(f"input_type is {asked}, but the model's name ends in -{named}", "input_type")
    kind = asked or named
    if kind is None and strict:
        raise invalid("input_type is required: query or passage", "input_type")
    return kind or "query"
