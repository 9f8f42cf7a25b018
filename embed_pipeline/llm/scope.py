"""What a failed request is about: its own item, the moment, or the whole run.

Providers report the same trouble under different statuses and in different words. What a body states in fields (codes,
named parameters) decides first, then the HTTP status; sentences are looked at only where neither says enough, apart
from those that leave no doubt. A refusal that stays unexplained is ``odd``: it concerns its item until several in a row
say otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from embed_pipeline.llm.failures import Failure

Kind = Literal["item", "moment", "whole", "odd"]
LONGEST_WAIT_SECONDS = 900.0
"""An endpoint that asks to wait longer ends the run."""
_OVERLOADED = 429
_NOT_FOUND = 404
_MOMENT_STATUSES = frozenset({0, 408, 409, 424, 425, 429, 430, 460, 499})
_WHOLE_STATUSES = frozenset({401, 402, 407})
_TOO_LARGE_STATUSES = frozenset({413, 414})
_ROUTE_STATUSES = frozenset({404, 405, 410})
_SERVER_ERROR = 500
_WRAPPING_STATUSES = frozenset({424, 500})
"""Statuses under which gateways pass on whatever the model's server said."""


def _codes(*fragments: str) -> re.Pattern[str]:
    return re.compile("|".join(fragments))


def _words(*fragments: str) -> re.Pattern[str]:
    return re.compile("|".join(fragments), re.IGNORECASE)


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
_SPENT_CODES = _codes(
    "budget", "billing", "arrear", "^insufficient_(?:balance|credit|funds)", "exceeded_current_quota", "^1113$"
)
"""Codes that mean payment under any status."""
_PAYMENT_CODES = _codes("quota", "insufficient_(?:balance|credit|funds)", "payment", "^402$")
_SURE_PAYMENT_CODES = _codes("^insufficient_quota", "payment")
"""Codes that mean payment even with a 429, under which limits a minute are called a quota too."""
_KEY_CODES = _codes(
    "(?:invalid|incorrect|missing|expired|disabled)_?(?:api_?)?(?:key|token)", "api_?key_(?:invalid|expired)",
    "authentica", "unauthori[sz]ed", "permission", "access_denied", "^forbidden", "account", "subscription",
    "unsupported_country", "organi[sz]ation_restricted", "^401$",
)  # fmt: skip
_MODEL_CODES = _codes(
    "model_(?:not_|decommission|deprecat)", "(?:invalid|unknown|unsupported)_model", "deployment_?not"
)

_BOUND = (
    r"exceed|too long|too large|too many|longer than|must be <=|maximum|at most|limit|(?:less|fewer|more|greater) than"
)
_SIZE = r"\b(?:context|tokens?|prompt|inputs?|messages?|sequence)\b"
_TOO_LONG_WORDS = _words(
    rf"{_SIZE}[^\n]{{0,80}}(?:{_BOUND})",
    rf"(?:exceed|too long|too many|maximum|reduce)[^\n]{{0,60}}{_SIZE}",
    r"context (?:\w+ )?overflow",
    r"range of input length",
    r"(?:context|prompt)[^\n]{0,80}not enough",
    r"\bmax_tokens must be at least 1, got -",
    "超长",
)
_NEVER_FITS_WORDS = _words("request too large for", "must be reduced in order to")
# What ran out there is patience, not room.
_TRIES_RAN_OUT = _words(r"(?:retries|timeout|time limit|deadline) exceeded", r"exceeded (?:the )?(?:timeout|deadline)")
_FILTER_WORDS = _words(
    r"content.?(?:filter|policy|management|moderation|audit)",
    r"(?:usage|safety|content|community) (?:guideline|polic|standard)",
    r"(?<![-\w])(?:moderat|inappropriate|sensitive|flagged|violat(?!\w* the schema)|prohibited|unsafe|"
    r"harmful|guardrail|jailbreak|safety)",
    "new_sensitive",
    "content exists risk",
    r"\b(?:prompt|input|output|content|entity)\b[^.\n]{0,20}\bblocked\b",
    "blocked entity",
    "敏感|违规|不安全",
)
_MOMENT_WORDS = _words(
    r"rate.?limit|too many requests|throttl|overloaded|temporarily|\bbusy\b|resource.?exhausted|just a moment",
    r"(?:try again|retry) (?:later|in|shortly|soon|after)|scaling (?:up|from zero)",
    r"\b(?:is|still) (?:being )?load(?:ing|ed into)\b",
    r"\bdegraded\b|(?:model|engine|server) has crashed|model unloaded|out of memory",
    r"(?:tokens|requests) per (?:second|min|hour|day)|\b(?:429|503)\b",
)
_PARAMETER_WORDS = _words(
    r"\b(?:un(?:supported|known|recogni[sz]ed|expected)|missing|extra|additional|required|deprecated) (?:\w+ )?"
    r"(?:parameter|argument|field|property)\b",
    r"\b(?:requested|given|these|those) (?:parameter|argument)s\b",
)
_PROMPT_PARAMETERS = frozenset({"messages", "prompt", "input", "inputs", "content", "contents"})
_SPENT_WORDS = _words(
    r"\bbudget\b[^.\n]{0,40}\bexceed|exceed\w*[^.\n]{0,20}\bbudget\b|upgrade your plan|daily free allocation",
    r"insufficient (?:\w+ )?(?:balance|credit|fund)|balance is (?:insufficient|too low|not enough)",
    r"(?:credits?|quota) (?:is|are) not enough|key limit exceeded|reached your (?:\w+ ){0,2}usage limit",
    "余额不足|欠费",
)
_BARRED_WORDS = _words(
    r"account (?:\S+ ){0,4}(?:suspended|banned|disabled|deactivated|terminated)",
    r"api key (?:has |is )?(?:expired|not valid|invalid|revoked|disabled)|authentication failed|login fail",
    r"user location is not supported|organi[sz]ation (?:has been |is )?restricted",
)
"""Sentences about a balance, a key or an account that leave no doubt, whatever was answered before."""
_PAYMENT_WORDS = _words(
    r"\bquota\b|\bbudget\b|\bbilling\b|\bcredits?\b|payment|(?:monthly|usage|spending) (?:\w+ )?limit"
)
_KEY_WORDS = _words(r"api.?key|secret key|incorrect key|invalid (?:key|token)|authenticat|unauthori[sz]ed|credential")
_ADDRESS_WORDS = _words(
    r"(?:unexpected|unknown|invalid|unsupported|no such) (?:request )?(?:endpoint|url|path|route)\b",
    r"\b(?:endpoint|route) not found|cannot (?:get|post) /|no route matched",
)
_UNKNOWN = r"not (?:found|exist|a valid|available|deployed|loaded)|(?:does not|doesn.t) exist|invalid|unknown|no such"
_MODEL_WORDS = _words(
    rf"\bmodel\b[^.\n]{{0,60}}(?:{_UNKNOWN}|decommissioned|deprecated)",
    rf"(?:{_UNKNOWN})[^.\n]{{0,20}}\bmodel\b",
    r"\bmodels/\S+ is not found|no endpoints found for",
)
# Words that a message quotes from the prompt say nothing of the failure.
_QUOTED = re.compile(r"(?<!\w)(['\"`])(?:(?!\1)[^\n])*? (?:(?!\1)[^\n])*? (?:(?!\1)[^\n])*?\1(?!\w)")


@dataclass(frozen=True)
class Scope:
    """What a failure is about.

    Attributes:
        kind: ``item``: this prompt alone; ``moment``: the same request may succeed later; ``whole``: every request;
            ``odd``: a refusal that nothing explains.
        reason: for an item, the reason of the rejects table; for the whole, ``key``, ``model``, ``payment``,
            ``address`` or ``wait``; for the moment ``model`` where a model that answered before is not found.
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
    return (
        _without_doubt(failure)
        or _by_codes(failure, answered=answered)
        or _by_status(failure, answered=answered)
        or _by_words(failure, answered=answered)
    )


def says_moment(failure: Failure) -> bool:
    """Whether a failure's codes or words, and not its status alone, say that it will pass."""
    return failure.coded(_MOMENT_CODES) or _MOMENT_WORDS.search(_sentence(failure)) is not None


def _sentence(failure: Failure) -> str:
    return _QUOTED.sub(" ", failure.message)


def _without_doubt(failure: Failure) -> Scope | None:
    """What holds under any status, and whatever was answered before."""
    text = _sentence(failure)
    if failure.status in _TOO_LARGE_STATUSES or _NEVER_FITS_WORDS.search(text):
        return Scope("item", "prompt_too_long")
    if failure.page:
        return None
    if failure.coded(_SPENT_CODES) or _SPENT_WORDS.search(text):
        return Scope("whole", "payment")
    if _BARRED_WORDS.search(text):
        return Scope("whole", "key")
    return Scope("whole", "wait") if (failure.wait or 0.0) > LONGEST_WAIT_SECONDS else None


def _by_codes(failure: Failure, *, answered: bool) -> Scope | None:
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
    if failure.status == _NOT_FOUND and answered and _misses_model(failure):
        # One of the replicas behind the address lacks it.
        return Scope("moment", "model")
    if failure.coded(_MODEL_CODES) or "model" in failure.parameters:
        return Scope("whole", "model")
    return Scope("whole", "key") if failure.coded(_KEY_CODES) else None


def _by_status(failure: Failure, *, answered: bool) -> Scope | None:
    status = failure.status
    if status == 0 and not failure.no_endpoint:
        told = _by_words(failure, answered=answered)
        return Scope("moment") if told.kind == "odd" else told
    if status in _MOMENT_STATUSES or status >= _SERVER_ERROR:
        told = _by_words(failure, answered=True)
        too_long = told.reason == "prompt_too_long" and status >= _SERVER_ERROR
        return told if told.kind == "item" and (too_long or status in _WRAPPING_STATUSES) else Scope("moment")
    if status in _WHOLE_STATUSES:
        return Scope("whole", "payment" if status == 402 else "key")  # noqa: PLR2004 - payment required
    if status in _ROUTE_STATUSES:
        if answered or _names_parameter(failure):
            return Scope("odd")
        return Scope("whole", "model" if _misses_model(failure) else "address")
    return None


def _by_words(failure: Failure, *, answered: bool) -> Scope:
    text, first = _sentence(failure), not answered
    about_prompt = not failure.page and not _names_parameter(failure)
    found = (
        (about_prompt and _FILTER_WORDS.search(text), Scope("item", "prompt_filtered")),
        (_MOMENT_WORDS.search(text), Scope("moment")),
        (first and _KEY_WORDS.search(text), Scope("whole", "key")),
        (first and _PAYMENT_WORDS.search(text), Scope("whole", "payment")),
        (not failure.page and _is_too_long(text), Scope("item", "prompt_too_long")),
        (first and _MODEL_WORDS.search(text), Scope("whole", "model")),
        (first and _ADDRESS_WORDS.search(text), Scope("whole", "address")),
    )
    return next((scope for said, scope in found if said), Scope("odd"))


def _misses_model(failure: Failure) -> bool:
    """Whether a refusal says that there is no such model."""
    coded = failure.coded(_MODEL_CODES) or failure.parameters == {"model"}
    return coded or not (_names_parameter(failure) or _MODEL_WORDS.search(failure.message) is None)


def _is_too_long(text: str) -> bool:
    return _TOO_LONG_WORDS.search(text) is not None and _TRIES_RAN_OUT.search(text) is None


def _names_parameter(failure: Failure) -> bool:
    """Whether a refusal is about a parameter, and one other than the prompt."""
    named = {name.partition(".")[0] for name in failure.parameters}
    return bool(named - _PROMPT_PARAMETERS) or _PARAMETER_WORDS.search(failure.message) is not None
