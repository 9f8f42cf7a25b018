"""What a failed request is about: its own item, the moment, or the whole run.

Providers report the same trouble under different statuses and in different words. What a body states in fields (codes,
named parameters) decides first, then the HTTP status; sentences are looked at only where neither says enough. A refusal
that stays unexplained is ``odd``: it concerns its item until several in a row say otherwise.
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
from typing import Literal

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

Kind = Literal["item", "moment", "whole", "odd"]
_OVERLOADED = 429
_MOMENT_STATUSES = frozenset({0, 408, 409, 424, 425, 429, 430, 460, 499})
_WHOLE_STATUSES = frozenset({401, 402, 407})
_TOO_LARGE_STATUSES = frozenset({413, 414})
_ROUTE_STATUSES = frozenset({404, 405, 410})
_SERVER_ERROR = 500


def _codes(*fragments: str) -> re.Pattern[str]:
    return re.compile("|".join(fragments))


_FILTER_CODES = _codes(
    "content_?(?:filter|policy|moderat|management|block|violation)", "data_?inspection", "responsible_?ai",
    "invalid_prompt", "safety", "moderation", "sensitive", "prohibited", "guardrail", "policy_violation", "jailbreak",
)  # fmt: skip
_TOO_LONG_CODES = _codes(
    "context_(?:length|window|size)", "exceed_context", "string_(?:too_long|above_max)", "too_(?:long|large)",
    "max_length_exceeded", "tokens?_(?:limit_)?exceeded", "prompt_too",
)  # fmt: skip
_BROKEN_ANSWER_CODES = _codes("json_validate", "failed_generation", "tool_use_failed", "invalid_output")
_MOMENT_CODES = _codes(
    "rate_?limit", "too_many_requests", "throttl", "resource_exhausted", "overload", "server_busy", "engine_busy",
    "slow_down", "unavailable", "capacity", "^429$", "^503$", "^529$",
)  # fmt: skip
_PAYMENT_CODES = _codes(
    "quota", "budget", "insufficient_(?:balance|credit|funds)", "billing", "payment", "arrear", "^402$"
)
_SURE_PAYMENT_CODES = _codes("^insufficient_(?:quota|balance|credit|funds)", "billing", "payment", "arrear")
"""Codes that mean payment even with a 429, under which limits a minute are called a quota too."""
_KEY_CODES = _codes(
    "(?:invalid|incorrect|missing|expired|disabled)_(?:api_)?(?:key|token)", "authentica", "unauthori[sz]ed",
    "permission", "access_denied", "^forbidden", "account", "subscription", "unsupported_country", "^401$",
)  # fmt: skip
_MODEL_CODES = _codes(
    "model_(?:not_|decommission|deprecat)", "(?:invalid|unknown|unsupported)_model", "deployment_?not"
)

_BOUND = r"exceed|too long|too large|too many|longer than|must be <=|maximum|at most|limit|(?:less|fewer|more) than"
_SIZE = r"\b(?:context|tokens?|prompt|inputs?|messages?|sequence)\b"
_TOO_LONG_WORDS = re.compile(
    rf"{_SIZE}[^\n]{{0,80}}(?:{_BOUND})|(?:exceed|too long|too many|maximum|reduce)[^\n]{{0,60}}{_SIZE}|"
    r"context (?:\w+ )?overflow|range of input length|(?:context|prompt)[^\n]{0,80}not enough",
    re.IGNORECASE,
)
# What ran out there is patience, not room.
_TRIES_RAN_OUT = re.compile(
    r"(?:retries|timeout|time limit|deadline) exceeded|exceeded (?:the )?(?:timeout|deadline)", re.IGNORECASE
)
_FILTER_WORDS = re.compile(
    r"content.?(?:filter|policy|management|moderation)|(?:usage|safety|content|community) (?:guideline|polic|standard)|"
    r"(?<![-\w])(?:moderat|inappropriate|sensitive|flagged|violat(?!\w* the schema)|prohibited|unsafe|"
    r"harmful|guardrail|jailbreak|safety)",
    re.IGNORECASE,
)
_MOMENT_WORDS = re.compile(
    r"rate.?limit|too many requests|throttl|overloaded|try again (?:later|in|shortly|soon|after)|temporarily|\bbusy\b|"
    r"resource.?exhausted|"
    r"(?:tokens|requests) per (?:second|min|hour|day)|\b(?:429|503)\b",
    re.IGNORECASE,
)
_PARAMETER_WORDS = re.compile(
    r"\b(?:un(?:supported|known|recogni[sz]ed|expected)|missing|extra|additional|required|deprecated) (?:\w+ )?"
    r"(?:parameter|argument|field|property)\b|\b(?:requested|given|these|those) (?:parameter|argument)s\b",
    re.IGNORECASE,
)
_PROMPT_PARAMETERS = frozenset({"messages", "prompt", "input", "inputs", "content", "contents"})
# What is said of a budget or an account, whatever else the sentence speaks of.
_SPENT = r"\bbudget\b|upgrade your plan"
_BARRED = r"account (?:\w+ ){0,3}(?:suspended|banned|disabled|deactivated|terminated)"
_STANDING = re.compile(f"{_SPENT}|{_BARRED}", re.IGNORECASE)
_PAYMENT_WORDS = re.compile(
    r"\bquota\b|insufficient (?:balance|credit|fund)|\bbilling\b|\bcredits?\b|payment|"
    rf"{_SPENT}|(?:monthly|usage|spending) (?:\w+ )?limit",
    re.IGNORECASE,
)
_KEY_WORDS = re.compile(
    r"api.?key|incorrect key|invalid (?:key|token)|authenticat|unauthori[sz]ed|credential|"
    rf"{_BARRED}",
    re.IGNORECASE,
)
_ADDRESS_WORDS = re.compile(
    r"(?:unexpected|unknown|invalid|unsupported|no such) (?:request )?(?:endpoint|url|path|route)\b|"
    r"\b(?:endpoint|route) not found|cannot (?:get|post) /|no route matched",
    re.IGNORECASE,
)
_UNKNOWN = r"not (?:found|exist|a valid|available|deployed|loaded)|(?:does not|doesn.t) exist|invalid|unknown|no such"
_MODEL_WORDS = re.compile(
    rf"\bmodel\b[^.\n]{{0,60}}(?:{_UNKNOWN}|decommissioned|deprecated)|(?:{_UNKNOWN})[^.\n]{{0,20}}\bmodel\b",
    re.IGNORECASE,
)

_WHOLE_WORDS = (
    ("key", _KEY_WORDS), ("model", _MODEL_WORDS), ("payment", _PAYMENT_WORDS), ("address", _ADDRESS_WORDS),
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """Why one attempt brought no answer.

    Attributes:
        status: HTTP status, or the one that the body states; 0 where there is none.
        message: what the endpoint or the connection said.
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

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.message}" if self.status else self.message

    def coded(self, pattern: re.Pattern[str]) -> bool:
        """True where a code of the body matches."""
        return any(pattern.search(code) for code in self.codes)


@dataclass(frozen=True)
class Scope:
    """What a failure is about.

    Attributes:
        kind: ``item``: this prompt alone; ``moment``: the same request may succeed later; ``whole``: every request;
            ``odd``: a refusal that nothing explains.
        reason: for an item, the reason of the rejects table; for the whole, ``key``, ``model``, ``payment`` or
            ``address``.
    """

    kind: Kind
    reason: str = ""


_CODED = (
    (_BROKEN_ANSWER_CODES, Scope("item", "invalid_answer")),
    (_FILTER_CODES, Scope("item", "prompt_filtered")),
    (_TOO_LONG_CODES, Scope("item", "prompt_too_long")),
    (_MOMENT_CODES, Scope("moment")),
)


def scope_of(failure: Failure, *, answered: bool) -> Scope:
    """Say what a failure is about.

    Args:
        failure: the failure.
        answered: whether the endpoint has answered a request before; then a sentence that sounds like a wrong key or
            model is no proof of one.
    """
    scope = _by_codes(failure, answered=answered) or _by_status(failure, answered=answered)
    return scope or _by_words(failure, answered=answered)


def _by_codes(failure: Failure, *, answered: bool) -> Scope | None:
    if failure.status in _TOO_LARGE_STATUSES:
        return Scope("item", "prompt_too_long")
    known = next((scope for pattern, scope in _CODED if failure.coded(pattern)), None)
    if known is not None and known.reason == "prompt_too_long" and failure.status == _OVERLOADED:
        # Too many tokens in a minute.
        known = Scope("moment")
    if known is not None or failure.status >= _SERVER_ERROR:
        return known
    if failure.coded(_SURE_PAYMENT_CODES if failure.status in _MOMENT_STATUSES else _PAYMENT_CODES):
        # Some providers report a passing limit under the same code.
        passing = failure.status == _OVERLOADED and (answered or failure.wait is not None)
        return Scope("moment") if passing else Scope("whole", "payment")
    if failure.status in _MOMENT_STATUSES:
        return None
    if failure.coded(_MODEL_CODES) or "model" in failure.parameters:
        return Scope("whole", "model")
    return Scope("whole", "key") if failure.coded(_KEY_CODES) else None


def _by_status(failure: Failure, *, answered: bool) -> Scope | None:
    status = failure.status
    if status == 0 and not failure.no_endpoint:
        told = _by_words(failure, answered=answered)
        return Scope("moment") if told.kind == "odd" else told
    about_length = not failure.page and _is_too_long(failure.message)
    if status in _MOMENT_STATUSES or (status >= _SERVER_ERROR and not about_length):
        return Scope("moment")
    if status in _WHOLE_STATUSES:
        return Scope("whole", "payment" if status == 402 else "key")  # noqa: PLR2004 - payment required
    if status in _ROUTE_STATUSES:
        if answered or _names_parameter(failure):
            return Scope("odd")
        says_model = failure.coded(_MODEL_CODES) or _MODEL_WORDS.search(failure.message)
        return Scope("whole", "model" if says_model else "address")
    return None


def _by_words(failure: Failure, *, answered: bool) -> Scope:
    text = failure.message
    if not answered and _STANDING.search(text):
        return Scope("whole", "payment" if _PAYMENT_WORDS.search(text) else "key")
    if _FILTER_WORDS.search(text) and not failure.page and not _names_parameter(failure):
        return Scope("item", "prompt_filtered")
    if _MOMENT_WORDS.search(text):
        return Scope("moment")
    if not answered:
        for reason, pattern in _WHOLE_WORDS:
            if pattern.search(text):
                return Scope("whole", reason)
    return Scope("item", "prompt_too_long") if _is_too_long(text) and not failure.page else Scope("odd")


def _is_too_long(text: str) -> bool:
    return _TOO_LONG_WORDS.search(text) is not None and _TRIES_RAN_OUT.search(text) is None


def _names_parameter(failure: Failure) -> bool:
    """Whether a refusal is about a parameter, and one other than the prompt."""
    named = {name.partition(".")[0] for name in failure.parameters}
    return bool(named - _PROMPT_PARAMETERS) or _PARAMETER_WORDS.search(failure.message) is not None


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
    extra = f" ({', '.join(named)})" if named else ""
    return Failure(
        status=status,
        message=text[: MAX_MESSAGE_CHARACTERS - len(extra)] + extra,
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
