"""Structured answers: the schema that is asked for, and strict validation of whatever text comes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from embed_pipeline.text.blocks import whole_characters

_SCHEMA_INSTRUCTION = (
    "Answer with one JSON object and nothing else: no explanation, no code fence. It must follow this JSON schema:\n"
)
_MAX_PROBLEM_CHARACTERS = 2000
ITEM_REASONS = frozenset({"refused", "prompt_too_long", "prompt_filtered", "prompt_refused", "request_failed"})
"""Reasons of an :class:`InvalidAnswer` that say nothing about what the model can do."""
T = TypeVar("T", bound=BaseModel)
_CONTAINER_ERRORS = frozenset({"list_type", "dict_type", "model_type"})
_STRUCTURE_ERRORS = ("missing", "extra_forbidden", "literal_error", "enum")
# A string that is not closed goes on to the end: to look for others inside of it would take quadratic time.
_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[{}]', re.DOTALL)
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])|[\xa0\u200b\u3000\ufeff]', re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:((?:b(?:eta|ar|egin|ig\w*|inom|mod|ot|oxed|ullet|oldsymbol)|f(?:rac|orall|lat)|n(?:abla|eq|otin)|"
    r"r(?:ho|ight\w*|angle|ceil|floor)|t(?:heta|au|ext\w*|imes|anh|ilde|riangle\w*|herefore|frac))(?![a-z])|"
    r"u(?![0-9a-fA-F]{4})|[^\"\\/bfnrtu'])|.)",
    re.DOTALL,
)
"""An escape in a JSON string; its group is a word of LaTeX, or what is no escape, whose backslash was not doubled."""
_MOST_STARTS = 100
_WRITES_ON = re.compile(
    r"(?:```\w*|[\W_])*+|.*(?:<\|(?:im_end|eot_id|endoftext)\|>|<end_of_turn>|</s>|\n\s*(?:User|Human):).*", re.DOTALL
)
"""Between two objects: nothing, or the end of the model's turn; what follows is no second thought."""


class InvalidAnswer(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """One item has no usable answer: a refusal, a cut, or JSON that does not validate after the re-asks.

    Its text says what happened, in a sentence.

    Attributes:
        reason: ``refused``, ``cut_at_length``, ``invalid_answer``, ``prompt_too_long``, ``prompt_filtered``,
            ``prompt_refused`` or ``request_failed``, for the rejects table.
        raw: the last raw answer; empty when there was none.
    """

    def __init__(self, reason: str, detail: str, raw: str = "") -> None:
        super().__init__(detail)
        self.reason = reason
        self.raw = raw


def instruct(messages: list[dict[str, Any]], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages with the schema written into the first system message, or into one put in front."""
    instruction = _SCHEMA_INSTRUCTION + json.dumps(schema, ensure_ascii=False)
    if messages and messages[0].get("role") == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{instruction}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def strict_schema(answer: type[BaseModel], known: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The type's JSON schema in the strict form: every object closed, every property required, no defaults.

    Args:
        answer: the type.
        known: what one call knows beforehand, ``Type.property`` to keywords of its schema: how many entries, which
            labels, how long. A model that is held to them cannot ramble or leave out.
    """
    schema = answer.model_json_schema()
    for place, keywords in (known or {}).items():
        owner, _, name = place.partition(".")
        holder = schema if owner == answer.__name__ else schema["$defs"][owner]
        holder["properties"][name] |= keywords
    _close(schema)
    return schema


def exactly(count: int) -> dict[str, int]:
    """Keywords of a list of so many entries."""
    return {"minItems": count, "maxItems": count}


def some_of(labels: Sequence[str], most: int | None = None) -> dict[str, Any]:
    """Keywords of a list of one or more of these labels."""
    return {"items": {"type": "string", "enum": list(labels)}, "minItems": 1, "maxItems": most or len(labels)}


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
    """The object of the type that a model's text holds, validated strictly, without coercion.

    What stands around the object is let pass: prose, a code fence, a model's reasoning in whatever marks. Of several
    objects that validate the last one counts, as a model drafts before it answers; of objects that follow each other
    without a word between them, or past the end of the model's turn, the first, as a model may go on writing. One
    without content, such as an example of the form, counts only where there is no other. A comma after the last entry,
    a key that the type does not know and a wrapper of one key do no harm.

    Raises:
        ValueError: if there is no JSON object of the type (pydantic's ValidationError is one).
    """
    if text.lstrip().startswith('"'):
        # The object's text, encoded once more.
        with suppress(ValueError):
            text = str(json.loads(text, strict=False))
    problem = ValueError("there is no whole JSON object in it")
    runs: list[list[object]] = []
    end = 0
    for start, stop in _object_spans(text):
        try:
            value = _load(text[start:stop])
        except ValueError as error:
            problem = error
            continue
        if runs and _WRITES_ON.fullmatch(text, end, start):
            runs[-1].append(value)
        else:
            runs.append([value])
        end = stop
    for value in sorted((value for run in reversed(runs) for value in run), key=_is_empty):
        inner = _wrapped(value)
        try:
            return _validate(value, answer)
        except ValidationError as error:
            with suppress(ValueError):
                inner = _load(inner) if isinstance(inner, str) else inner
                if isinstance(inner, dict):
                    return _validate(inner, answer)
            problem = problem if isinstance(problem, ValidationError) else error
    raise problem


def _wrapped(value: object) -> object:
    """What an object wraps: its only value, or the only object next to a name, as in a call of a tool."""
    if not isinstance(value, dict):
        return None
    values = list(value.values())
    return values[0] if len(values) == 1 else next((part for part in values if isinstance(part, dict)), None)


def _is_empty(value: object) -> bool:
    """Whether an object holds no text and no entries; a number or a truth value is content."""
    return isinstance(value, dict) and all(part is None or part in ("", [], {}) for part in value.values())


def _object_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where a text's outermost balanced objects begin and end; one that is not closed is skipped for those inside."""
    starts = [match.start() for match in re.finditer(r"\{", text)]
    if len(starts) > 2 * _MOST_STARTS:
        starts = starts[:_MOST_STARTS] + starts[-_MOST_STARTS:]
    end = 0
    for start in starts:
        if start < end:
            continue
        depth = 0
        for token in _STRING_OR_BRACE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(token[0], 0)
            if depth == 0:
                span = text[start : token.end()]
                # A span that is no JSON may have begun at a brace of prose: look inside it too.
                end = token.end() if _is_json(span) else start + 1
                yield start, token.end()
                break


def _is_json(span: str) -> bool:
    try:
        _load(span)
    except ValueError:
        return False
    return True


def _load(span: str) -> object:
    """JSON as models write it: control characters in strings, LaTeX and a comma after the last entry are let pass."""
    mended = _TRAILING_COMMA.sub(lambda match: _ESCAPE.sub(_keep_latex, match[1] or ""), span)
    try:
        return json.loads(mended, strict=False, parse_constant=_refuse_constant, parse_float=_whole_or_float)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _keep_latex(escape: re.Match[str]) -> str:
    """The escape as JSON has it, with its backslash doubled where it is none."""
    if escape[0] == r"\'":
        return "'"
    return f"\\{escape[0]}" if escape[1] else escape[0]


def _whole_or_float(number: str) -> float:
    """A score of ``4.0`` is 4."""
    value = float(number)
    return int(value) if value.is_integer() else value


def _validate(value: object, answer: type[T]) -> T:
    """Validate as JSON; keys that the type forbids are left out, and a list or an object given as its text is read."""
    try:
        return answer.model_validate_json(_dumped(value), strict=True)
    except ValidationError as error:
        changed = False
        for part in error.errors():
            path = part["loc"]
            holder: Any = value
            for step in path[:-1]:
                holder = holder[step]
            if part["type"] == "extra_forbidden":
                del holder[path[-1]]
                changed = True
            elif path and part["type"] in _CONTAINER_ERRORS and isinstance(part["input"], str):
                with suppress(ValueError):
                    holder[path[-1]] = _load(part["input"])
                    changed = True
        if not changed:
            raise
        return answer.model_validate_json(_dumped(value), strict=True)


def _dumped(value: object) -> str:
    """A value as JSON; half of a character that takes two escapes becomes the replacement character."""
    return whole_characters(json.dumps(value, ensure_ascii=False))


def breaks_schema(error: ValueError) -> bool:
    """True where an endpoint that keeps to schemas could not have written this: the structure is wrong, not a value."""
    if not isinstance(error, ValidationError):
        return True
    return any(part["type"] in _STRUCTURE_ERRORS or part["type"].endswith("_type") for part in error.errors())


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def explain_problem(error: ValueError) -> str:
    """What is wrong with an answer, in words that help the model to fix it."""
    if not isinstance(error, ValidationError):
        return f"it is not JSON ({error})"
    lines = [f"{'.'.join(map(str, part['loc'])) or 'the object'}: {part['msg']}" for part in error.errors()]
    return "; ".join(lines)[:_MAX_PROBLEM_CHARACTERS]
