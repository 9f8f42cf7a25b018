"""A failed request as it is told: error bodies of every provider's shape, pages of proxies, broken connections.

What a failure means for the run is :mod:`embed_pipeline.llm.scope`'s.
"""

from __future__ import annotations

import errno
import html
import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from embed_pipeline.llm.throttle import retry_after

MAX_MESSAGE_CHARACTERS = 500
MAX_BODY_CHARACTERS = 200
_MAX_DEPTH = 8
_MAX_CODE_CHARACTERS = 64
_CODE_KEYS = frozenset({"code", "type", "status", "error_type", "error_code", "reason", "__type", "status_code"})
_PARAMETER_KEYS = frozenset({"param", "loc", "field", "parameter", "pointer"})
_MESSAGE_KEYS = frozenset(
    {"message", "msg", "error", "errors", "detail", "title", "description", "error_description", "status_msg", "raw",
     "error_msg", "err_msg", "errmsg", "error_message", "errormessage", "faultstring"}
)  # fmt: skip
_FIELD_LISTS = frozenset({"errors"})
"""Keys of an object that says, field by field, what is wrong."""
_ECHO_KEYS = frozenset({"input", "request", "ctx"})
_WAIT_KEYS = frozenset({"retrydelay", "retry_after", "estimated_time"})
_WAIT_WORDS = re.compile(
    r"(?:try again|retry|retrying|wait)\b[^\d\n]{0,30}"
    r"((?:\d+\s*h[a-z]*\s*)?(?:\d+\s*m(?!s)[a-z]*\s*)?(?:\d+(?:\.\d+)?\s*(?:ms|s)[a-z]*)?)",
    re.IGNORECASE,
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|h|m|s)", re.IGNORECASE)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*s?")


@dataclass(frozen=True)
class Failure:
    """Why one attempt brought no answer.

    Attributes:
        status: HTTP status, or the one that the body states; 0 where there is none.
        message: what the endpoint or the connection said, in sentences.
        shown: what came in place of an answer, and what the body names besides; for people alone.
        wait: seconds that the endpoint asked to wait, or None.
        codes: identifiers that the body gives for the trouble, in snake case.
        parameters: dotted names of request parameters that the body names in a field.
        no_endpoint: nothing at the address speaks the API: no connection, or a page in place of an answer.
        page: the refusal is an HTML page, of a proxy or a web server rather than of the model's endpoint.
        raw: what the model had written, where the endpoint shows it.
        tokens: prompt and completion tokens that it cost all the same, as an empty answer does.
    """

    status: int
    message: str
    wait: float | None = None
    codes: frozenset[str] = frozenset()
    parameters: frozenset[str] = frozenset()
    no_endpoint: bool = False
    page: bool = False
    raw: str = ""
    tokens: tuple[int, int] = (0, 0)
    shown: str = ""

    def __str__(self) -> str:
        text = f"{self.message} {self.shown}" if self.shown else self.message
        return f"HTTP {self.status}: {text}" if self.status else text

    def coded(self, pattern: re.Pattern[str]) -> bool:
        """True where a code of the body matches."""
        return any(pattern.search(code) for code in self.codes)


@dataclass
class _Found:
    """What a walk through an error body gathers."""

    messages: list[str] = field(default_factory=list)
    codes: dict[str, None] = field(default_factory=dict)
    parameters: dict[str, None] = field(default_factory=dict)
    wait: float | None = None
    raw: str = ""


def read_failure(status: int, content: str | bytes, headers: Mapping[str, str]) -> Failure:
    """The failure that a response's body describes, whichever provider's shape it has.

    Args:
        status: HTTP status of the response.
        content: its body.
        headers: its headers.
    """
    wait = retry_after(headers)
    content = decode_body(content, headers) if isinstance(content, bytes) else content
    try:
        body = json.loads(content, strict=False)
    except (ValueError, RecursionError):
        return Failure(status, describe_text(content) or "no words", wait, page=_is_page(content))
    return replace(failure_of(body, status), wait=wait) if wait is not None else failure_of(body, status)


def failure_of(body: object, status: int = 0) -> Failure:
    """The failure that decoded JSON describes; a code of 400 to 599 in it counts where ``status`` is no error."""
    found = _Found()
    _walk(body, found, "", 0)
    codes = [code for code in found.codes if not code.isdigit()]
    if status < 400:  # noqa: PLR2004 - the least status of a refusal
        numbers = (int(code) for code in found.codes if code.isdigit())
        status = next((number for number in numbers if 400 <= number < 600), 0)  # noqa: PLR2004 - refusals
    text = "; ".join(dict.fromkeys(message.strip() for message in found.messages if message.strip()))
    if not text:
        text = json.dumps(body, ensure_ascii=False)[:MAX_BODY_CHARACTERS]
    named = [*codes, *(f"param {name}" for name in found.parameters)]
    return Failure(
        status=status,
        message=text[:MAX_MESSAGE_CHARACTERS],
        shown=f"({', '.join(named)})"[:MAX_BODY_CHARACTERS] if named else "",
        wait=found.wait if found.wait is not None else _said_wait(text),
        codes=frozenset(found.codes),
        parameters=frozenset(found.parameters),
        raw=found.raw,
    )


def _said_wait(text: str) -> float | None:
    """Seconds that a sentence asks to wait: "Please try again in 6m7.2s"."""
    found = _WAIT_WORDS.search(text)
    parts = _DURATION.findall(found[1]) if found else []
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in parts) if parts else None


def _walk(node: object, found: _Found, key: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        return
    if isinstance(node, dict):
        if _is_by_field(node, key):
            for name, said in node.items():
                _note_parameter(name, found)
                found.messages += [said] if isinstance(said, str) else said
            return
        for name, value in node.items():
            _note(str(name).lower(), value, found, depth)
    elif isinstance(node, list):
        for value in node:
            if isinstance(value, str) and key in _MESSAGE_KEYS:
                found.messages.append(value)
            else:
                _walk(value, found, key, depth + 1)
    elif isinstance(node, str) and depth == 0:
        found.messages.append(node)


def _note(key: str, value: object, found: _Found, depth: int) -> None:
    """Sort one field of an error body into what is known of the failure."""
    if key in _ECHO_KEYS or value is None:
        return
    if key == "failed_generation" and isinstance(value, str):
        found.raw = value
        found.codes[key] = None
    elif key in _PARAMETER_KEYS:
        _note_parameter(value, found)
    elif key in _WAIT_KEYS and isinstance(value, str | int | float):
        seconds = _SECONDS.fullmatch(str(value))
        found.wait = float(seconds[1]) if seconds else found.wait
    elif key in _CODE_KEYS and isinstance(value, str | int) and len(str(value)) <= _MAX_CODE_CHARACTERS:
        code = _snake_case(str(value))
        if code not in {"", "none", "error"}:
            found.codes[code] = None
    elif isinstance(value, str) and key in _MESSAGE_KEYS | _CODE_KEYS:
        _note_text(value, found, depth)
    elif isinstance(value, dict | list):
        _walk(value, found, key, depth + 1)


def _note_parameter(named: object, found: _Found) -> None:
    """A parameter's name, however its path is written: ``body.seed``, ``/seed``, ``$.seed``, ``["body", "seed"]``."""
    parts = named if isinstance(named, list) else re.split(r"[.\[\]/$]+", str(named))
    name = ".".join(_snake_case(str(part)) for part in parts if part not in {"", "body", "None"})
    if name:
        found.parameters[name] = None


def _is_by_field(node: Mapping[str, object], key: str) -> bool:
    """Whether an object says, under each field's name, what is wrong with it."""
    values = list(node.values())
    lists = [value for value in values if isinstance(value, list) and value and all(isinstance(v, str) for v in value)]
    known = _MESSAGE_KEYS | _CODE_KEYS | _PARAMETER_KEYS
    if not values or known & {str(name).lower() for name in node}:
        return False
    return len(lists) == len(values) or (key in _FIELD_LISTS and all(isinstance(value, str) for value in values))


def _note_text(text: str, found: _Found, depth: int) -> None:
    """A message, or JSON of another provider that a gateway passes on as one."""
    start = text.find("{")
    try:
        inner = json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        inner = None
    if isinstance(inner, dict):
        before = text[:start].strip(" -:,")
        found.messages += [before] if before else []
        _walk(inner, found, "", depth + 1)
    else:
        found.messages.append(text)


def _snake_case(code: str) -> str:
    if " " in code.strip():
        return ""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", code.strip()).lower().replace("-", "_").replace(".", "_")


def decode_body(content: bytes, headers: Mapping[str, str]) -> str:
    """A body as text: UTF-8, UTF-16 or UTF-32 as JSON may have it, else by the charset that the headers name."""
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        charset = re.search(r"charset=\"?([\w.:-]+)", headers.get("content-type", ""))
    try:
        return content.decode(charset[1] if charset else "utf-8", errors="replace")
    except LookupError:
        return content.decode("utf-8", errors="replace")


def describe_text(content: str) -> str:
    """A body that is no JSON, in a line: of a page its title and words, else its beginning."""
    text = content.strip()
    if not _is_page(text):
        return " ".join(text.split())[:MAX_BODY_CHARACTERS]
    without = re.sub(r"(?is)<(script|style|head)\b.*?</\1>|<!--.*?-->", " ", text)
    title = re.search(r"(?is)<title[^>]*>(.*?)</title>", text)
    words = f"{title[1] if title else ''} {re.sub(r'<[^>]*>', ' ', without)}"
    return f"an HTML page: {' '.join(html.unescape(words).split())}"[:MAX_BODY_CHARACTERS]


def _is_page(content: str) -> bool:
    return content.lstrip()[:1] == "<"


def connection_failure(error: BaseException, timeout_seconds: float) -> Failure:
    """The failure of a request that got no response, in the words of the system rather than of the client library."""
    import aiohttp

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    first = next((part for part in chain if isinstance(part, aiohttp.ClientError)), chain[-1])
    if isinstance(first, aiohttp.ClientConnectorCertificateError):
        words = f"{first.host}:{first.port}: {first.certificate_error}"
        return Failure(0, f"the certificate is not trusted, {words} (SSL_CERT_FILE names another)", no_endpoint=True)
    if isinstance(first, aiohttp.ClientConnectorError):
        words = _system_words(first.os_error)
        return Failure(0, f"cannot connect to host {first.host}:{first.port} [{words}]", no_endpoint=True)
    no_way = aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | aiohttp.ClientHttpProxyError
    if isinstance(first, no_way | aiohttp.ConnectionTimeoutError):
        said = "no way to the address" if isinstance(first, no_way) else "no connection in time"
        return Failure(0, f"{said}: {first}", no_endpoint=True)
    if any(isinstance(part, TimeoutError) for part in chain):
        return Failure(0, f"no answer within {timeout_seconds:g} s")
    if isinstance(first, aiohttp.ClientResponseError):
        # Its words are about the bytes of the connection, not about a prompt.
        words = " ".join(first.message.split())[:200] or "no words"
        return Failure(0, f"the connection broke, this is no HTTP: {words}", codes=frozenset({"unavailable"}))
    return Failure(0, f"the connection broke: {first!r}")


def _system_words(error: OSError) -> str:
    """What the system calls an error: ``Connection refused``."""
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error)
    number = re.search(r"\[Errno (\d+)\]", str(error))
    code = int(number[1]) if number else error.errno
    return os.strerror(code) if code is not None and code in errno.errorcode else error.strerror or str(error)
