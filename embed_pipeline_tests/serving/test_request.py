"""Every field of a request: what is read, and how a wrong one is named."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from embed_pipeline.serving.request import check_dimensions, check_kind, count_values, parse_request
from embed_pipeline.serving.serving_errors import RequestError


def body(**fields: Any) -> bytes:
    return json.dumps({"input": "text", "model": "m", **fields}).encode()


def refusal(raw: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_request(raw)
    assert caught.value.status == 400
    return caught.value


def test_the_least_request_gets_the_defaults():
    asked = parse_request(body())
    assert (list(asked.texts), asked.model, asked.kind, asked.base64, asked.truncate, asked.dimensions) == (
        ["text"],
        "m",
        None,
        False,
        None,
        None,
    )


def test_every_field_is_read():
    fields = {"input_type": "passage", "encoding_format": "base64", "truncate": "START", "dimensions": 16, "user": "u"}
    asked = parse_request(body(input=["a", "b"], **fields, extra=1, more=[2]))
    assert (list(asked.texts), asked.kind, asked.base64, asked.truncate) == (["a", "b"], "passage", True, "START")
    assert (asked.dimensions, asked.unknown_fields) == (16, 2)


def test_null_counts_as_absent():
    names = ("input_type", "encoding_format", "truncate", "dimensions", "user")
    assert parse_request(body(**dict.fromkeys(names))) == parse_request(body())


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"input": None}, "input", "input is required"),
        ({"input": ""}, "input", "input is empty"),
        ({"input": ["a", ""]}, "input", r"input\[1\] is empty"),
        ({"input": []}, "input", "holds 0 texts, must hold 1 to 2048"),
        ({"input": ["a"] * 2049}, "input", "holds 2049 texts"),
        ({"input": {"a": 1}}, "input", "got an object"),
        ({"input": 3}, "input", "got a number"),
        ({"input": ["a", None]}, "input", r"input\[1\] must be a string, got null"),
        ({"input": [True]}, "input", r"input\[0\] must be a string, got a boolean"),
        ({"input": [1, 2]}, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "input", "check_embedding_ctx_length=False"),
        ({"model": None}, "model", "model is required"),
        ({"model": 1}, "model", "must be a string, got a number"),
        ({"input_type": "document"}, "input_type", "is 'document', must be one of query, passage"),
        ({"encoding_format": "int8"}, "encoding_format", "must be one of float, base64"),
        ({"truncate": True}, "truncate", "is a boolean, must be one of NONE, END, START"),
        ({"truncate": ["END"]}, "truncate", "is an array"),
        ({"dimensions": "16"}, "dimensions", "must be an integer, got a string"),
        ({"dimensions": True}, "dimensions", "must be an integer, got a boolean"),
        ({"dimensions": 16.5}, "dimensions", "must be an integer"),
        ({"user": 1}, "user", "must be a string"),
    ],
)
def test_a_wrong_field_is_named(fields, param, message):
    error = refusal(body(**fields))
    assert error.param == param
    with pytest.raises(RequestError, match=message):
        raise error


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"input": "\xff", "model": "m"}',
        b'{"input": "\\ud800", "model": "m"}',
        b'{"input": "a", "model": "m", "dimensions": NaN}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_object_or_no_text_is_refused(raw):
    refusal(raw)


def test_a_number_of_any_size_is_refused_like_any_other():
    asked = parse_request(b'{"input": "a", "model": "m", "dimensions": 1' + b"0" * 4000 + b"}")
    with pytest.raises(RequestError, match="dimensions is 1000"):
        check_dimensions(asked.dimensions, 32, [])


def test_dimensions_are_the_models_own():
    assert [check_dimensions(asked, 32, [16]) for asked in (None, 16, 32)] == [32, 16, 32]
    for asked in (0, -1, 8, 17, 33, 64):
        with pytest.raises(RequestError, match=f"dimensions is {asked}, this model offers 16, 32"):
            check_dimensions(asked, 32, [16, 64])


def test_the_input_type_comes_from_the_field_or_the_name_and_never_from_both_against_each_other():
    assert check_kind(None, None, strict=False) == "query"
    assert check_kind("passage", None, strict=True) == check_kind(None, "passage", strict=True) == "passage"
    with pytest.raises(RequestError, match="input_type is query, but the model's name ends in -passage"):
        check_kind("query", "passage", strict=False)
    with pytest.raises(RequestError, match="input_type is required"):
        check_kind(None, None, strict=True)


def test_values_are_counted_outside_strings_only():
    for value in ({"a": [1, 2, {"b": [[]]}]}, ['a,[{\\"', "\\\\", '",["'], "x,[{" * 50, [["\\", "["], "]"]):
        for text in (json.dumps(value), json.dumps(value, indent=2)):
            expected = {"plain": 0}
            walk(value, expected)
            assert count_values(text.encode()) == expected["plain"], text


def walk(value: Any, seen: dict[str, int]) -> None:
    """Count a comma between two values and a bracket for each container."""
    if isinstance(value, dict | list):
        children = list(value.values()) if isinstance(value, dict) else value
        seen["plain"] += 1 + max(0, len(children) - 1)
        for child in children:
            walk(child, seen)


@pytest.mark.parametrize("filling", [b"[],", b"{},", b"1,", b'"",', b"1.5,"])
def test_a_large_body_of_tiny_values_is_refused_before_it_is_parsed(filling):
    raw = b'{"model":"m","input":[' + filling * (4_000_000 // len(filling)) + b"1]}"
    started = time.perf_counter()
    assert "JSON values, more than" in refusal(raw).message
    # Parsing it takes several times as long, without letting another thread run.
    assert time.perf_counter() - started < 2.0


def test_a_large_body_of_text_is_read():
    text = 'word, "quoted" [x] {y} \\ ' * 40_000
    assert parse_request(body(input=[text] * 4)).texts == [text] * 4
