"""A response's body to an answer, whatever an OpenAI-compatible endpoint makes of that shape.

Read here: errors inside a 200, event streams that nobody asked for, content in parts, answers given as a tool call, the
reasoning fields, and the words that providers have for why a model stopped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embed_pipeline.llm.failures import (
    MAX_BODY_CHARACTERS,
    Failure,
    decode_body,
    describe_text,
    failure_of,
    read_failure,
)
from embed_pipeline.llm.store import Answer
from embed_pipeline.text.blocks import whole_characters

CHARACTERS_PER_TOKEN = 4
_NO_ENDPOINT = "the answer is not that of an OpenAI-compatible endpoint:"
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_WRAPPERS = ("data", "result", "response", "body")
_FAILED = re.compile(
    r"error|malformed|abort|cancel|time_?out|fail|overload|insufficient|interrupt|unavailable", re.IGNORECASE
)
_FILTERED = re.compile(
    r"filter|safety|sensitive|prohibited|recitation|block|spii|guardrail|toxic|moderat|policy|refus", re.IGNORECASE
)
_CUT = re.compile(r"length|incomplete|max_?.*tokens?|token_limit|error_limit|context|truncat", re.IGNORECASE)
_STATES_ERROR = re.compile(r"err|fault|detail|base_?resp", re.IGNORECASE)


def read_response(content: bytes, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer | Failure:
    """The answer in the body of a 200, or the failure that stands there in its place.

    Args:
        content: the body.
        headers: the response's headers.
        body: the request.
    """
    text = decode_body(content, headers).strip()
    try:
        data = json.loads(text, strict=False)
        if isinstance(data, str):
            data = json.loads(data, strict=False)
    except (ValueError, RecursionError):
        data = _joined_stream(text)
        if data is None:
            page = describe_text(text) or "nothing"
            if _breaks_off(text):
                return Failure(0, "the answer breaks off:", shown=page)
            return Failure(0, _NO_ENDPOINT, no_endpoint=True, shown=page)
    for name in _WRAPPERS:
        if isinstance(data, dict) and "choices" not in data and isinstance(data.get(name), dict):
            inner = data[name]
            data = inner if "choices" in inner else data
    if not isinstance(data, dict) or not isinstance(data.get("choices"), list) or _says_error(data):
        return _no_answer(data, headers)
    if not data["choices"] or not isinstance(data["choices"][0], dict):
        codes = frozenset({"content_filter"} if _is_blocked(data) else ())
        return Failure(0, "the answer holds no choice:", codes=codes, shown=_beginning(data))
    return _read_choice(data["choices"][0], data, body)


def _says_error(data: Mapping[str, Any]) -> bool:
    """Whether an error is stated next to the choices, and none of them came to an end with a text."""
    ended = (c for c in data["choices"] if isinstance(c, dict) and (c.get("finish_reason") or "message" in c))
    return bool(data.get("error")) and not any(_text_of(c).strip() for c in ended)


def _is_blocked(node: object) -> bool:
    """Whether a body without an answer says somewhere that the prompt was blocked."""
    if isinstance(node, list):
        return any(map(_is_blocked, node))
    if not isinstance(node, dict):
        return False
    said = {str(key).lower().replace("_", ""): value for key, value in node.items()}
    return bool(said.get("blockreason")) or said.get("filtered") is True or any(map(_is_blocked, node.values()))


def _no_answer(data: object, headers: Mapping[str, str]) -> Failure:
    """The failure in a body without choices: an error that it states, else what came in its place."""
    told = failure_of(data)
    listed = data[0] if isinstance(data, list) and data else data
    if told.status or (isinstance(listed, dict) and _states_error(listed)):
        return read_failure(told.status, json.dumps(data), headers)
    return Failure(0, _NO_ENDPOINT, codes=told.codes, no_endpoint=True, shown=f"no choices, {_beginning(data)}")


def _states_error(data: Mapping[str, Any]) -> bool:
    """Whether an object without choices is an error, by the names of its fields or by what it calls itself."""
    kinds = {str(data.get(name)).lower() for name in ("object", "type", "status")}
    stated = any(value and _STATES_ERROR.search(name) for name, value in data.items())
    return "error" in kinds or stated or bool(data.get("code") and data.keys() & {"message", "msg"})


def _breaks_off(text: str) -> bool:
    """Whether a text that is no JSON is the beginning of some."""
    try:
        json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        return text[:1] in {"{", "["} or text.startswith("data:")
    return False


def _read_choice(choice: Mapping[str, Any], data: Mapping[str, Any], body: Mapping[str, Any]) -> Answer | Failure:
    chat = "messages" in body
    text = _text_of(choice)
    reported = _finish_of(choice) or str(data.get("stop_reason") or "")
    counts = _usage_of(data)
    asked = body.get("messages", body.get("prompt"))
    sent = _tokens(counts, ("prompt_tokens", "input_tokens", "promptTokens", "inputTokens"), asked)
    written = _tokens(counts, ("completion_tokens", "output_tokens", "completionTokens", "outputTokens"), text)
    # Some count what a model thinks in the total alone.
    total = _number(counts.get("total_tokens", counts.get("totalTokens"))) or 0
    tokens = (sent, max(written, total - sent))
    spent = tokens if counts else (0, 0)
    known = (_FILTERED.search(reported) or _CUT.search(reported)) and "malformed" not in reported.lower()
    if choice.get("error") or (_FAILED.search(reported) and not known):
        told = failure_of(choice.get("error") or {})
        words = told.message if choice.get("error") else f"the provider stopped with {reported!r}"
        return Failure(told.status, f"error inside an answer: {words}", told.wait, told.codes, tokens=spent)
    message = choice.get("message")
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if isinstance(refusal, str) and refusal:
        text, finish = refusal, "refusal"
    else:
        finish = "content_filter" if _FILTERED.search(reported) else "length" if _CUT.search(reported) else "stop"
    if not text.strip() and finish == "stop" and (chat or not reported):
        return Failure(0, "the answer is empty:", tokens=spent, shown=_beginning(choice))
    return Answer(text, finish, *tokens, log_probability=_log_probability(choice.get("logprobs")))


def _log_probability(told: object) -> float | None:
    """The mean over an answer's tokens, in the form of chat or of completions; None where it is not told."""
    if not isinstance(told, dict):
        return None
    content = told.get("content")
    listed = told.get("token_logprobs")
    if isinstance(content, list):
        listed = [entry.get("logprob") for entry in content if isinstance(entry, dict)]
    stated: list[object] = listed if isinstance(listed, list) else []
    values = [float(value) for value in stated if isinstance(value, float | int) and math.isfinite(value)]
    return sum(values) / len(values) if values else None


def _finish_of(choice: Mapping[str, Any]) -> str:
    """Why the model stopped, in the endpoint's word; empty where it says nothing."""
    return str(choice.get("finish_reason") or choice.get("finishReason") or "")


def _text_of(choice: Mapping[str, Any]) -> str:
    """What the model said: the content, else the arguments of its tool call, else its reasoning unless it was cut.

    White space alone says nothing, and is returned only where there is no more.
    """
    message = choice.get("message") or choice.get("delta") or {}
    if not isinstance(message, dict):
        message = {"content": message}
    places = (message.get("content"), message.get("parsed"), choice.get("text"))
    texts = [*map(_joined, places), _arguments(message)]
    said = next((text for text in texts if text.strip()), "")
    if not said and not _CUT.search(_finish_of(choice)):
        said = next((_joined(message[name]) for name in _REASONING_FIELDS if message.get(name)), "")
    return whole_characters(said or "".join(texts))


def _joined(content: object) -> str:
    """Content as text: itself, its text parts joined, or the object that it is."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_joined(part.get("text", "") if isinstance(part, dict) else part) for part in content)
    if isinstance(content, dict):
        return _joined(content["text"]) if "text" in content else json.dumps(content, ensure_ascii=False)
    return ""


def _arguments(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    first = calls[0] if isinstance(calls, list) and calls else {"function": message.get("function_call")}
    function = first.get("function") if isinstance(first, dict) else None
    return _joined(function.get("arguments")) if isinstance(function, dict) else ""


def _joined_stream(text: str) -> dict[str, Any] | None:
    """The whole answer of an event stream; None where the text is none.

    A stream that ends before the model said why it stopped was aborted.
    """
    events = list(_events(text))
    if not events:
        return None
    parts: dict[str, list[str]] = {"content": [], "arguments": [], "reasoning": []}
    finish: object = None
    whole: dict[str, Any] = {}
    for event in events:
        if "choices" not in event and _states_error(event):
            return {"error": event}
        whole["usage"] = _usage_of(event) or whole.get("usage")
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            continue
        choice = choices[0]
        finish = choice.get("finish_reason") or finish
        delta = choice.get("delta") or choice.get("message") or {}
        delta = delta if isinstance(delta, dict) else {"content": delta}
        parts["content"].append(_joined(delta.get("content")) or _joined(choice.get("text")))
        parts["arguments"].append(_arguments(delta))
        # Some send the same piece under two names.
        parts["reasoning"] += [_joined(delta[name]) for name in _REASONING_FIELDS if delta.get(name)][:1]
    said = {name: "".join(pieces) for name, pieces in parts.items()}
    content = said["content"] if said["content"].strip() else said["arguments"]
    message = {"content": content, "reasoning": said["reasoning"]}
    ended = finish or ("stop" if text.endswith("[DONE]") else "aborted")
    return {**whole, "choices": [{"message": message, "text": content, "finish_reason": ended}]}


def _events(text: str) -> Iterator[dict[str, Any]]:
    # str.splitlines would also cut at characters that JSON may hold as they are, such as U+2028.
    name = ""
    for line in re.split(r"\r\n|\n|\r", text):
        if not line:
            name = ""
        elif line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            try:
                event = json.loads(line.removeprefix("data:"), strict=False)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict):
                yield {"error": event} if name == "error" else event


def _beginning(data: object) -> str:
    return json.dumps(data, ensure_ascii=False)[:MAX_BODY_CHARACTERS]


def _usage_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of an answer or of a stream's event; Groq puts those of a stream under a field of its own."""
    own = data.get("x_groq")
    places = (data.get("usage"), own.get("usage") if isinstance(own, dict) else None)
    return next((usage for usage in places if isinstance(usage, dict) and usage), {})


def _tokens(counts: Mapping[str, Any], names: Sequence[str], said: object) -> int:
    """Tokens as reported; where none are reported of a text, four characters a token, so that caps still hold."""
    reported = next((number for name in names if (number := _number(counts.get(name)))), None)
    if reported is not None:
        return reported
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _number(reported: object) -> int | None:
    try:
        return max(0, int(float(reported)))  # type: ignore[arg-type]  # what is no number is none
    except (TypeError, ValueError, OverflowError):
        return None
