from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from embed_pipeline.llm.answers import explain_problem, instruct, parse_answer, strict_schema


class Part(BaseModel):
    name: str
    note: str = "none"


class Whole(BaseModel):
    parts: list[Part]
    count: int = 1


def test_the_schema_is_closed_and_requires_everything_at_every_depth() -> None:
    schema = strict_schema(Whole)
    part = schema["$defs"]["Part"]
    assert schema["additionalProperties"] is False
    assert part["additionalProperties"] is False
    assert (schema["required"], part["required"]) == (["parts", "count"], ["name", "note"])
    assert "default" not in part["properties"]["note"]


@pytest.mark.parametrize(
    "text",
    [
        '{"parts": []}',
        ' {"parts": [], "count": 1}\n',
        '```json\n{"parts": []}\n```',
        '<think>{"a"</think>{"parts": []}',
    ],
)
def test_what_stands_around_the_object_is_let_pass(text: str) -> None:
    assert parse_answer(text, Whole) == Whole(parts=[])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('Here: {"parts": []}', "it is not JSON"),
        ('{"parts": [{"name": 3}]}', "parts.0.name: Input should be a valid string"),
        ('{"parts": [], "count": "2"}', "count: Input should be a valid integer"),
        ('{"parts": [], "count": Infinity}', "Infinity is not JSON"),
        ("{}", "parts: Field required"),
        ("null", "the object: Input should be an object"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_coerced(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_answer(text, Whole)
    assert problem in explain_problem(caught.value)


def test_the_instruction_joins_the_system_message() -> None:
    user: dict[str, Any] = {"role": "user", "content": "go"}
    alone = instruct([user], Whole)
    joined = instruct([{"role": "system", "content": "You judge."}, user], Whole)
    assert [message["role"] for message in alone] == [message["role"] for message in joined] == ["system", "user"]
    assert joined[0]["content"].startswith("You judge.\n\nAnswer with one JSON object")
    assert '"parts"' in alone[0]["content"]
