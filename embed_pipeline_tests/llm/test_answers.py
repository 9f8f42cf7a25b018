"""Structured answers: strict schemas, validation without coercion, and what an endpoint understands."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import BaseModel, Field

from embed_pipeline.llm.answers import breaks_schema, exactly, explain_problem, instruct, parse_answer, strict_schema
from embed_pipeline.llm.dialect import Dialect, Wording
from embed_pipeline.llm.failures import Failure
from embed_pipeline.llm.scope import scope_of


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


def test_parts_that_are_given_as_their_text_are_read() -> None:
    listed = json.dumps([{"name": "a", "note": "b"}])
    for value in ({"parts": listed, "count": 1}, {"parts": [json.dumps({"name": "a", "note": "b"})], "count": 1}):
        for text in (json.dumps(value), json.dumps(json.dumps(value)), json.dumps({"answer": json.dumps(value)})):
            assert parse_answer(text, Whole).parts == [Part(name="a", note="b")]


@pytest.mark.parametrize(
    "text",
    [
        '{"parts": []}',
        ' {"parts": [], "count": 1}\n',
        '```json\n{"parts": []}\n```',
        '<think>{"a"</think>{"parts": []}',
        '<thinking>{"parts": [{"name": 3}]} or {"parts": []}?</thinking>\n{"parts": []}',
        'Draft.</think>\n\n{"parts": []}',
        '[THINK]Braces { are fine.[/THINK]{"parts": []}',
        '<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{"parts": []}<|return|>',
        '\u25c1think\u25b7Hm.\u25c1/think\u25b7{"parts": []}',
        'Here is the JSON:\n```json\n{"parts": []}\n```\nLet me know! For example {"x": 1} would be wrong.',
        '```\n{"parts": [],}\n```',
        '{"parts": [], "note": "of no use"}',
        '{"answer": {"parts": []}}',
        '{"parts": []}      \n\n\n',
        '{"parts": [], "count": 1} For example: {"parts": []}',
    ],
)
def test_what_stands_around_the_object_is_let_pass(text: str) -> None:
    assert parse_answer(text, Whole) == Whole(parts=[])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Here: none.", "it is not JSON"),
        ('Here: {"parts": [', "it is not JSON"),
        ('{"parts": [{"name": 3}]}', "parts.0.name: Input should be a valid string"),
        ('{"parts": [], "count": "2"}', "count: Input should be a valid integer"),
        ('{"parts": [], "count": Infinity}', "Infinity is not JSON"),
        ("{}", "parts: Field required"),
        ("null", "it is not JSON"),
        ('[{"name": "a"}]', "parts: Field required"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_coerced(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_answer(text, Whole)
    assert problem in explain_problem(caught.value)


@pytest.mark.parametrize("name", ["</think>", "a, ]", "{", "}", '\\"', "```", "line\nbreak", "[THINK]"])
def test_marks_inside_an_answer_are_its_text(name: str) -> None:
    text = json.dumps({"parts": [{"name": name, "note": "n"}], "count": 1})
    assert parse_answer(f"<think>So.</think>```json\n{text}\n```", Whole).parts == [Part(name=name, note="n")]


def test_an_empty_example_after_the_answer_does_not_count() -> None:
    text = '{"parts": [{"name": "a"}]} For example: {"parts": []}'
    assert parse_answer(text, Whole).parts == [Part(name="a")]


def test_a_backslash_of_latex_stays_one() -> None:
    text = r'{"parts": [{"name": "$\frac{\beta}{\theta} \times \\frac$,\nof \tan angle\f", "note": "\rho"}]}'
    assert parse_answer(text, Whole).parts == [
        Part(name="$\\frac{\\beta}{\\theta} \\times \\frac$,\nof \tan angle\f", note="\\rho")
    ]


@pytest.mark.parametrize("loop", [r"\"", r"\\", r"\frac "])
def test_an_answer_that_loops_is_given_up_in_no_time(loop: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ValueError, match="no whole JSON object"):
        parse_answer('{"parts": [{"name": "' + loop * 8000, Whole)
    # Where each quote begins a search for its end, it takes more than three seconds.
    assert time.monotonic() - begun < 1.5


def test_only_a_wrong_structure_breaks_the_schema() -> None:
    class Bounded(BaseModel):
        count: int = Field(le=3)

    def problem(text: str) -> ValueError:
        with pytest.raises(ValueError) as caught:
            parse_answer(text, Bounded)
        return caught.value

    assert [breaks_schema(problem(text)) for text in ('{"count": 9}', '{"count": "1"}', "{}", "prose")] == [
        False, True, True, True
    ]  # fmt: skip


def test_the_instruction_joins_the_system_message() -> None:
    user: dict[str, Any] = {"role": "user", "content": "go"}
    alone = instruct([user], strict_schema(Whole))
    joined = instruct([{"role": "system", "content": "You judge."}, user], strict_schema(Whole))
    assert [message["role"] for message in alone] == [message["role"] for message in joined] == ["system", "user"]
    assert joined[0]["content"].startswith("You judge.\n\nAnswer with one JSON object")
    assert '"parts"' in alone[0]["content"]


def test_a_schema_says_what_the_call_knows() -> None:
    known = {
        "Whole.parts": exactly(3),
        "Part.name": {"enum": ["S1", "S2"]},
        "Part.note": {"maxLength": 9},
        "Whole.count": {"enum": [1, 2]},
    }
    schema = strict_schema(Whole, known)
    assert (schema["properties"]["parts"]["minItems"], schema["properties"]["parts"]["maxItems"]) == (3, 3)
    assert schema["properties"]["parts"]["items"] == {"$ref": "#/$defs/Part"}
    assert schema["$defs"]["Part"]["properties"]["name"]["enum"] == ["S1", "S2"]
    assert schema["$defs"]["Part"]["properties"]["note"]["maxLength"] == 9
    assert strict_schema(Whole) != schema, "of one call alone"


@pytest.mark.parametrize(
    ("words", "gone", "kept"),
    [
        ("In context=('properties', 'note'), 'maxLength' is not permitted.", {"maxLength"}, {"minItems", "maximum"}),
        ("Unknown name \"minItems\" at 'response_schema'", {"minItems", "maxItems"}, {"maxLength", "maximum"}),
        ("For 'integer' type, property 'maximum' is not supported", {"maximum"}, {"maxLength", "minItems"}),
        ("additionalProperties is unknown", {"additionalProperties"}, {"maxLength", "minItems", "maximum"}),
    ],
)
def test_of_a_schema_only_the_keywords_that_are_refused_are_left_out(
    words: str, gone: set[str], kept: set[str]
) -> None:
    schema = strict_schema(
        Whole, {"Whole.parts": exactly(2), "Part.note": {"maxLength": 9}, "Whole.count": {"maximum": 4}}
    )
    dialect = Dialect("auto")
    wording = Wording(dialect, {"model": "m", "messages": [{"role": "user", "content": "go"}]}, schema)
    failure = Failure(400, words)
    assert wording.adapt(failure, scope_of(failure, answered=False), answered=False)
    sent = json.dumps(wording.body()["response_format"])
    assert not any(f'"{word}"' in sent for word in gone)
    assert all(f'"{word}"' in sent for word in kept)
    assert dialect.changes == frozenset(), "a trial is no lesson until it is answered"
    wording.accepted()
    assert json.dumps(Wording(dialect, {"messages": []}, schema).body()["response_format"]) == sent
