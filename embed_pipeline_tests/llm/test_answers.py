"""Structured answers: strict schemas, validation without coercion, and what an endpoint understands."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from embed_pipeline.llm.answers import Dialect, explain_problem, instruct, parse_answer, strict_schema


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


REQUEST = {"model": "m", "max_tokens": 9, "temperature": 0.3, "seed": 1}


class Thing(BaseModel):
    name: str


def test_a_schema_goes_along_until_it_is_refused() -> None:
    dialect = Dialect("auto")
    assert dialect.word(REQUEST, Thing)["response_format"]["json_schema"]["name"] == "Thing"
    assert dialect.word(REQUEST, None) == REQUEST
    dialect.adapt(400, "'response_format.type' must be one of text, json_object")
    assert dialect.format == "plain"
    assert dialect.word(REQUEST, Thing) == REQUEST


def test_a_forced_format_stays() -> None:
    for forced in ("json_schema", "plain"):
        dialect = Dialect(forced)
        dialect.adapt(400, "json_schema is not supported")
        dialect.settle(valid=False)
        assert dialect.format == forced


def test_the_first_answer_settles_the_format_once() -> None:
    dialect = Dialect("auto")
    dialect.settle(valid=True)
    dialect.settle(valid=False)
    assert dialect.format == "json_schema"


def test_only_a_parameter_that_is_named_as_unsupported_is_dropped() -> None:
    dialect = Dialect("auto")
    for status, message in ((401, "seed is not supported"), (400, "seed must be positive"), (400, "no such model")):
        dialect.adapt(status, message)
        assert dialect.word(REQUEST, None) == REQUEST
    dialect.adapt(422, "Unrecognized request argument: seed")
    assert set(dialect.word(REQUEST, None)) == {"model", "max_tokens", "temperature"}
