from __future__ import annotations

from pydantic import BaseModel

from embed_pipeline.llm.answers import Dialect

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
