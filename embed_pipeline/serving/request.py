"""The body of an embedding request: JSON to a checked request, or an error that names the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeVar, cast

import numpy as np
from pydantic_core import from_json

from embed_pipeline.embedding.encoder import Kind
from embed_pipeline.serving.errors import invalid

Truncate = Literal["NONE", "END", "START"]
Choice = TypeVar("Choice", bound=str)

MAX_INPUTS = 2048
KINDS: tuple[Kind, ...] = ("query", "passage")
ENCODING_FORMATS: tuple[Literal["float", "base64"], ...] = ("float", "base64")
TRUNCATE: tuple[Truncate, ...] = ("NONE", "END", "START")
FIELDS = frozenset({"input", "model", "input_type", "encoding_format", "truncate", "dimensions", "user"})
# Parsing builds an object for every value and holds the interpreter lock while it does. Bodies up to the first size
# are parsed within milliseconds whatever they hold; a larger one may hold so many values and no more.
FREE_BODY_BYTES = 512 * 1024
MAX_JSON_VALUES = 16_384
_IDS_REFUSED = (
    "input holds token ids; decoding them with another model's vocabulary would be silently wrong, so send text "
    "(langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
)


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request that is right by itself; whether the model has what it asks for is still open.

    Attributes:
        texts: what is to be embedded.
        model: name as the client wrote it.
        kind: query or passage, where the request says so.
        base64: True for little-endian float32 in base64, False for JSON numbers.
        truncate: which end of a text that is too long is kept; NONE: it is an error.
        dimensions: length of the vectors, where the request says so.
        unknown_fields: how many fields it has that nothing reads.
    """

    texts: Sequence[str]
    model: str
    kind: Kind | None
    base64: bool
    truncate: Truncate
    dimensions: int | None
    unknown_fields: int


def parse_request(body: bytes) -> EmbeddingRequest:
    """Read the JSON ``body`` of an embedding request. A field that is null counts as absent.

    Raises:
        RequestError: naming the field, the value and the bound.
    """
    values = {name: value for name, value in _read_object(body).items() if value is not None}
    if not isinstance(values.get("user", ""), str):
        raise invalid("user must be a string", "user")
    return EmbeddingRequest(
        texts=_texts(values),
        model=_model(values),
        kind=_choice(values, "input_type", KINDS),
        base64=_choice(values, "encoding_format", ENCODING_FORMATS) == "base64",
        truncate=_choice(values, "truncate", TRUNCATE) or "NONE",
        dimensions=_dimensions(values),
        unknown_fields=len(values.keys() - FIELDS),
    )


def _read_object(body: bytes) -> dict[str, Any]:
    if len(body) > FREE_BODY_BYTES and (count := count_values(body)) > MAX_JSON_VALUES:
        message = f"the body holds {count} JSON values, at most {MAX_JSON_VALUES} are read; token ids are not accepted"
        raise invalid(f"{message} (langchain's OpenAIEmbeddings: check_embedding_ctx_length=False)", "input")
    try:
        values = from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise invalid(f"the body must be a JSON object, got {_name(values)}")
    return values


def count_values(body: bytes) -> int:
    """About how many values JSON text holds: its commas and opening brackets outside strings.

    Nearly all of the time is spent in numpy, which lets other threads run.
    """
    plain = np.frombuffer(body.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), dtype=np.uint8)
    outside = np.cumsum(plain == ord('"'), dtype=np.uint8) & 1 == 0
    openers = (plain == ord(",")) | (plain == ord("[")) | (plain == ord("{"))
    return int(np.count_nonzero(outside & openers))


def _texts(values: dict[str, Any]) -> list[str]:
    if "input" not in values:
        raise invalid("input is required: a string or a list of strings", "input")
    given = values["input"]
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise invalid(f"input must be a string or a list of strings, got {_name(given)}", "input")
    if not 1 <= len(texts) <= MAX_INPUTS:
        raise invalid(f"input holds {len(texts)} texts, must hold 1 to {MAX_INPUTS}", "input")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            _refuse_text(index, text)
        if not text:
            raise invalid(f"input[{index}] is empty" if isinstance(given, list) else "input is empty", "input")
    return cast("list[str]", texts)


def _refuse_text(index: int, text: object) -> NoReturn:
    number = isinstance(text, int) and not isinstance(text, bool)
    if number or (isinstance(text, list) and all(isinstance(item, int) for item in text)):
        raise invalid(_IDS_REFUSED, "input")
    raise invalid(f"input[{index}] must be a string, got {_name(text)}", "input")


def _model(values: dict[str, Any]) -> str:
    model = values.get("model")
    if model is None:
        raise invalid("model is required", "model")
    if not isinstance(model, str):
        raise invalid(f"model must be a string, got {_name(model)}", "model")
    return model


def _choice(values: dict[str, Any], name: str, choices: tuple[Choice, ...]) -> Choice | None:
    value = values.get(name)
    if value is None:
        return None
    for choice in choices:
        if value == choice:
            return choice
    shown = repr(value[:40]) if isinstance(value, str) else _name(value)
    raise invalid(f"{name} is {shown}, must be one of {', '.join(choices)}", name)


def _dimensions(values: dict[str, Any]) -> int | None:
    value = values.get("dimensions")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise invalid(f"dimensions must be an integer, got {_name(value)}", "dimensions")
    return value


def _name(value: object) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def check_dimensions(asked: int | None, dimensions: int, matryoshka: Sequence[int]) -> int:
    """The length of the vectors to answer with.

    Raises:
        RequestError: the model's vectors may not be cut to that length.
    """
    if asked is None:
        return dimensions
    allowed = sorted({size for size in matryoshka if size < dimensions} | {dimensions})
    if asked not in allowed:
        shown = ", ".join(str(size) for size in allowed)
        raise invalid(f"dimensions is {str(asked)[:20]}, this model offers {shown}", "dimensions")
    return asked


def check_kind(asked: Kind | None, named: Kind | None, *, strict: bool) -> Kind:
    """Query or passage, from ``input_type`` and the model name's suffix.

    Raises:
        RequestError: the two contradict each other, or neither is there and ``strict`` wants one.
    """
    if asked and named and asked != named:
        raise invalid(f"input_type is {asked}, but the model's name ends in -{named}", "input_type")
    kind = asked or named
    if kind is None and strict:
        raise invalid("input_type is required: query or passage", "input_type")
    return kind or "query"
