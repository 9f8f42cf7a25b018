"""Structured answers: the schema and parameters that an endpoint understands, and strict validation of answers."""

from __future__ import annotations

import json
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

_SCHEMA_INSTRUCTION = (
    "Answer with one JSON object and nothing else: no explanation, no code fence. It must follow this JSON schema:\n"
)
_MAX_PROBLEM_CHARACTERS = 2000
T = TypeVar("T", bound=BaseModel)
_SCHEMA_WORDS = ("response_format", "json_schema", "structured output", "guided decoding", "grammar")
_UNSUPPORTED = ("unsupported", "not support", "unrecognized", "unknown", "only the default")
_OPTIONAL_PARAMETERS = ("temperature", "seed")
_MAY_BE_FORMAT = frozenset({400, 404, 422, 501})
_MAY_BE_PARAMETER = frozenset({400, 422})
Format = Literal["unknown", "json_schema", "plain"]


class InvalidAnswer(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """One item has no usable answer: a refusal, a cut, or JSON that does not validate after the re-asks.

    Its text says what happened, in a sentence.

    Attributes:
        reason: ``refused``, ``cut_at_length``, ``invalid_answer``, ``prompt_too_long``, ``prompt_filtered`` or
            ``request_failed``, for the rejects table.
        raw: the last raw answer; empty when there was none.
    """

    def __init__(self, reason: str, detail: str, raw: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.raw = raw


def instruct(messages: list[dict[str, Any]], answer: type[BaseModel]) -> list[dict[str, Any]]:
    """The messages with the schema written into the first system message, or into one put in front."""
    instruction = _SCHEMA_INSTRUCTION + json.dumps(strict_schema(answer), ensure_ascii=False)
    if messages and messages[0].get("role") == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{instruction}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def strict_schema(answer: type[BaseModel]) -> dict[str, Any]:
    """The type's JSON schema in the strict form: every object closed, every property required, no defaults."""
    schema = answer.model_json_schema()
    _close(schema)
    return schema


def _close(node: object) -> None:
    if isinstance(node, list):
        for part in node:
            _close(part)
    elif isinstance(node, dict):
        properties = node.get("properties")
        if isinstance(properties, dict):
            node["additionalProperties"] = False
            node["required"] = list(properties)
            for schema in properties.values():
                if isinstance(schema, dict):
                    schema.pop("default", None)
        for part in node.values():
            _close(part)


def parse_answer(text: str, answer: type[T]) -> T:
    """Validate strictly, without coercion; a code fence around the object and a thinking block before it are allowed.

    Raises:
        ValueError: if it is not JSON or not of the type (pydantic's ValidationError is one).
    """
    text = text.rpartition("</think>")[2].strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removesuffix("```").partition("\n")[2]
    json.loads(text, parse_constant=_refuse_constant)
    return answer.model_validate_json(text, strict=True)


def is_valid(text: str, answer: type[BaseModel]) -> bool:
    """True when :func:`parse_answer` accepts the text."""
    try:
        parse_answer(text, answer)
    except ValueError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def explain_problem(error: ValueError) -> str:
    """What is wrong with an answer, in words that help the model to fix it."""
    if not isinstance(error, ValidationError):
        return f"it is not JSON ({error})"
    lines = [f"{'.'.join(map(str, part['loc'])) or 'the object'}: {part['msg']}" for part in error.errors()]
    return "; ".join(lines)[:_MAX_PROBLEM_CHARACTERS]


class Dialect:
    """How requests are worded for one endpoint: OpenAI-compatible servers differ in a few parameters.

    A 400 or 422 that names a parameter switches that parameter for the rest of the run; all else stays an error.

    Attributes:
        format: how JSON is asked for; ``unknown`` until the first answer shows whether schemas work.
    """

    def __init__(self, structured_outputs: Literal["auto", "json_schema", "plain"]) -> None:
        self.format: Format = "unknown" if structured_outputs == "auto" else structured_outputs
        self._may_change_format = structured_outputs == "auto"
        self._length_name = "max_tokens"
        self._dropped: set[str] = set()

    def word(self, request: dict[str, Any], answer: type[BaseModel] | None) -> dict[str, Any]:
        """The request as this endpoint wants it.

        Args:
            request: model, messages or prompt, and parameters under their usual names.
            answer: the type of a structured answer, or None.
        """
        body = {name: value for name, value in request.items() if name not in self._dropped}
        if "max_tokens" in body:
            body[self._length_name] = body.pop("max_tokens")
        if answer is not None and self.format != "plain":
            schema = {"name": answer.__name__, "strict": True, "schema": strict_schema(answer)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def adapt(self, status: int, message: str) -> None:
        """Learn from a refusal; :meth:`word` gives another request when something was learned."""
        text = message.lower()
        if status in _MAY_BE_FORMAT and self._may_change_format and any(word in text for word in _SCHEMA_WORDS):
            self.format = "plain"
        elif status not in _MAY_BE_PARAMETER:
            return
        elif "max_completion_tokens" in text:
            self._length_name = "max_completion_tokens"
        elif any(word in text for word in _UNSUPPORTED):
            self._dropped.update(name for name in _OPTIONAL_PARAMETERS if name in text)

    def settle(self, *, valid: bool) -> None:
        """Conclude from the first structured answer whether the endpoint really keeps to schemas."""
        if self.format == "unknown":
            self.format = "json_schema" if valid else "plain"
