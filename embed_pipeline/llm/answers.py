"""Structured answers: the schema that is asked for, the instruction that asks for it, and strict validation."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

_INSTRUCTION = (
    "Answer with one JSON object and nothing else: no explanation, no code fence. It must follow this JSON schema:\n"
)
_MAX_PROBLEM_CHARACTERS = 2000

T = TypeVar("T", bound=BaseModel)


def instruct(messages: list[dict[str, Any]], answer: type[BaseModel]) -> list[dict[str, Any]]:
    """The messages with the schema written into the first system message, or into one put in front."""
    instruction = _INSTRUCTION + json.dumps(strict_schema(answer), ensure_ascii=False)
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
    """Validate strictly, without coercion; a code fence around the object and a thinking block before it are let pass.

    Raises:
        ValueError: if it is not JSON or not of the type (pydantic's ValidationError is one).
    """
    text = text.rpartition("</think>")[2].strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.removesuffix("```").partition("\n")[2]
    json.loads(text, parse_constant=_refuse_constant)
    return answer.model_validate_json(text, strict=True)


def is_valid(text: str, answer: type[BaseModel]) -> bool:
    """True when :func:`parse_answer` takes the text."""
    try:
        parse_answer(text, answer)
    except ValueError:
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def explain_problem(error: ValueError) -> str:
    """What is wrong with an answer, in words that the model can mend it by."""
    if not isinstance(error, ValidationError):
        return f"it is not JSON ({error})"
    lines = [f"{'.'.join(map(str, part['loc'])) or 'the object'}: {part['msg']}" for part in error.errors()]
    return "; ".join(lines)[:_MAX_PROBLEM_CHARACTERS]
