"""How requests are worded for one endpoint: which parameters and which form of a schema it takes is learned.

A refusal that names a parameter is answered by a trial without it. Only a trial that is answered is remembered, for the
endpoint: a refusal that was about something else teaches nothing.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

from embed_pipeline.llm.answers import instruct
from embed_pipeline.llm.failures import Failure
from embed_pipeline.llm.scope import Scope, says_moment
from embed_pipeline.llm.store import COMPLETION, Call

logger = logging.getLogger(__name__)
Format = Literal["unknown", "json_schema", "plain"]
_OPTIONAL = ("seed", "temperature", "max_tokens", "stop", "logprobs")
_SCHEMA = "response_format"
_SYSTEM = "system role"
_RENAMED = "max_completion_tokens"
_CLOSED = "additionalProperties"
_BOUNDS = {
    "bounds of lengths": ("minLength", "maxLength"),
    "bounds of lists": ("minItems", "maxItems"),
    "bounds of numbers": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
"""Groups of schema keywords that some endpoints refuse."""
_SCHEMA_WORDS = re.compile(
    r"response_?format|response_?schema|json_?schema|json_?object|json.?mode|json.?output|structured.?output|"
    r"guided.?(?:decoding|json)|grammar|"
    r"text\.format|\$(?:ref|defs)\b|schema",
    re.IGNORECASE,
)
_SYSTEM_WORDS = re.compile(
    r"\bsystem\b[^.\n]{0,40}\b(?:role|message|prompt|instruction)|\brole\b[^.\n]{0,40}\bsystem\b|developer instruction|"
    r"roles? must alternate|only user and assistant",
    re.IGNORECASE,
)
_MAX_TOKENS_WORDS = re.compile(
    r"maximum tokens you requested|max(?:imum)? (?:number of )?(?:output|completion|new|generated) tokens",
    re.IGNORECASE,
)
_TOO_COMPLEX = re.compile(
    r"too (?:many states|complex|deep|large)|complexity|too many (?:constraint|propert)", re.IGNORECASE
)
_MAY_BE_WORDING = frozenset({400, 404, 405, 415, 422, 500, 501})
_SERVER_FAULTS = frozenset({500, 501})


class Dialect:
    """What is known of one endpoint's wording.

    Attributes:
        changes: parameters left out, and other departures from the usual request that were answered.
        schema_answered: whether a request with a schema was ever answered.
        bare_tried: whether a request without anything optional was tried after a refusal that explained nothing.
    """

    def __init__(self, structured_outputs: Literal["auto", "json_schema", "plain"]) -> None:
        self.changes: frozenset[str] = frozenset({_SCHEMA} if structured_outputs == "plain" else ())
        self.may_change_format = structured_outputs == "auto"
        self.schema_answered = False
        self.bare_tried = False
        self._settled = structured_outputs != "auto"
        self._kept = self._broken = 0

    @property
    def format(self) -> Format:
        """How JSON is asked for; ``unknown`` until the first answer shows whether schemas work."""
        if _SCHEMA in self.changes:
            return "plain"
        return "json_schema" if self._settled else "unknown"

    def settle(self, *, keeps_schema: bool) -> None:
        """Conclude from the first structured answer whether the endpoint keeps to schemas."""
        if not self.may_change_format:
            return
        if not keeps_schema:
            self.changes |= {_SCHEMA}
        self._settled = True

    def count(self, *, kept: bool = False, broken: bool = False) -> None:
        """Count an answer that kept to a schema which no prompt told, or one that broke its schema.

        Schemas are given up where they are broken as often as they are kept.
        """
        self._kept += kept
        self._broken += broken
        if broken and self._broken >= self._kept:
            self.settle(keeps_schema=False)

    def remember(self, changes: frozenset[str]) -> None:
        """Word all later requests with these changes: one that had them was answered."""
        new = changes - self.changes
        self.changes |= changes
        if "max_tokens" in new:
            logger.warning(
                "The endpoint refuses llm.max_output_tokens as it is set; it is left out, its own limit holds"
            )
        if new:
            logger.info("The endpoint takes requests without: %s", ", ".join(sorted(new)))


class Wording:
    """One request, as the endpoint wants it."""

    def __init__(
        self,
        dialect: Dialect,
        request: Mapping[str, Any],
        schema: Mapping[str, Any] | None = None,
        *,
        name: str = "answer",
        in_words: bool = False,
    ) -> None:
        """Prepare.

        Args:
            dialect: what is known of the endpoint.
            request: model, messages or prompt, and parameters under their usual names.
            schema: that of a structured answer, or None.
            name: what the schema is called.
            in_words: put the schema into the messages too, whether or not the endpoint takes schemas.
        """
        self._dialect = dialect
        self._request = request
        self._schema = schema
        self._name = name
        self._in_words = in_words
        self._tried: frozenset[str] = frozenset()
        self._once: frozenset[str] = frozenset()
        self._faults = 0

    @property
    def structured(self) -> bool:
        """True where an object is asked for."""
        return self._schema is not None

    @property
    def changes(self) -> frozenset[str]:
        """Departures from the usual request: what is known of the endpoint and what is being tried."""
        return self._dialect.changes | self._tried | self._once

    @property
    def characters(self) -> int:
        """Length of the prompt, without the schema."""
        asked = self._request.get("messages")
        return len(self._request["prompt"]) if asked is None else sum(len(str(part["content"])) for part in asked)

    def call(self, place: str) -> Call:
        """What the request is, for the store.

        Args:
            place: the endpoint.
        """
        kind = self._name if self.structured else COMPLETION
        return Call(f"{self._request['model']} at {place}", kind, self._in_words, self.characters)

    def body(self) -> dict[str, Any]:
        """The request's body, by what is known and what is being tried."""
        changes = self.changes
        body = {name: value for name, value in self._request.items() if name not in changes}
        if _RENAMED in changes and "max_tokens" in body:
            body[_RENAMED] = body.pop("max_tokens")
        if self._schema is not None:
            if self._in_words or _SCHEMA in changes or self._dialect.format == "unknown":
                body["messages"] = instruct(body["messages"], self._schema)
            if _SCHEMA not in changes:
                schema = {"name": self._name, "strict": True, "schema": _without(self._schema, changes)}
                body[_SCHEMA] = {"type": "json_schema", "json_schema": schema}
        if _SYSTEM in changes and "messages" in body:
            body["messages"] = _without_system(body["messages"])
        return body

    def adapt(self, failure: Failure, scope: Scope, *, answered: bool) -> bool:
        """Word the request in another way after a refusal; False where nothing is left to try.

        Args:
            failure: the refusal.
            scope: what it is about.
            answered: whether the endpoint has answered a request before.
        """
        body = self.body()
        named = {part for name in failure.parameters for part in name.split(".")} & body.keys() - {"model", "messages"}
        other = scope.reason in {"prompt_filtered", "invalid_answer", "key"} or scope.kind == "moment"
        self._faults += failure.status in _SERVER_FAULTS and not says_moment(failure)
        stated = failure.status in _SERVER_FAULTS or (failure.status == 0 and names_schema(failure))
        may_be_wording = failure.status in _MAY_BE_WORDING or (stated and not failure.no_endpoint)
        if not may_be_wording or (other and not named and not stated):
            return False
        done = self.changes
        wanted = self._named(failure, body) - done
        if wanted:
            self._tried |= wanted
        elif scope.reason == "prompt_too_long" and "max_tokens" not in done:
            # The prompt may fit once no room is kept for the longest answer.
            self._once |= {"max_tokens"}
        elif scope.kind == "odd" and not answered and not self._dialect.bare_tried:
            self._dialect.bare_tried = True
            bare = {"seed", "temperature", *([_SCHEMA] if _SCHEMA in body and self._dialect.may_change_format else ())}
            self._tried |= bare - done
        return self.body() != body

    def accepted(self) -> None:
        """Remember what was tried: the endpoint answered."""
        self._dialect.schema_answered |= _SCHEMA in self.body()
        self._dialect.remember(self._tried)

    def _named(self, failure: Failure, body: Mapping[str, Any]) -> set[str]:
        """The changes that a refusal asks for: by the parameters that its fields name, else by its words."""
        fields = {part for name in failure.parameters for part in name.split(".")}
        text = failure.message
        if _RENAMED in text and "max_tokens" in body and re.search(r"\bmax_tokens\b", text):
            return {_RENAMED}
        own = {name: _RENAMED if name == "max_tokens" and _RENAMED in body else name for name in _OPTIONAL}
        sent = {name: key for name, key in own.items() if key in body}
        named = {name for name, key in sent.items() if key in fields}
        if not named and not fields & {_SCHEMA, "messages", "role"}:
            named = {name for name, key in sent.items() if re.search(rf"(?<!\w){key}(?!\w)", text, re.IGNORECASE)}
        if not named and "max_tokens" in sent and _MAX_TOKENS_WORDS.search(text):
            named = {"max_tokens"}
        if named:
            return named
        if _SCHEMA in body:
            if _CLOSED.lower() in text.lower():
                return {_CLOSED}
            # "maximum" is a word of many refusals, and a keyword in those that speak of keywords.
            of_keywords = re.search(r"propert|keyword|schema", text, re.IGNORECASE) is not None
            bounds = {
                group
                for group, keywords in _BOUNDS.items()
                if any(
                    re.search(rf"\b{word}\b", text) and (not word.islower() or of_keywords or f"'{word}'" in text)
                    for word in keywords
                )
            }
            if not bounds and _TOO_COMPLEX.search(text) and _SCHEMA_WORDS.search(text):
                bounds = set(_BOUNDS)
            if bounds - self._tried:
                return bounds
            # One fault may be chance.
            server_fault = self._faults > 1 and not self._dialect.schema_answered
            if self._dialect.may_change_format and (
                server_fault or fields & {_SCHEMA} or _SCHEMA_WORDS.search(text) is not None
            ):
                return {_SCHEMA}
        has_system = any(message.get("role") == "system" for message in body.get("messages", ()))
        return {_SYSTEM} if has_system and ("role" in fields or _SYSTEM_WORDS.search(text)) else set()


def names_schema(failure: Failure) -> bool:
    """True where a refusal is about the form of the answer that was asked for."""
    return any(name.startswith(_SCHEMA) for name in failure.parameters) or bool(_SCHEMA_WORDS.search(failure.message))


def _without(schema: Mapping[str, Any], changes: frozenset[str]) -> dict[str, Any]:
    """The schema without the keywords that the endpoint refuses."""
    refused = {_CLOSED} & changes | {word for group, words in _BOUNDS.items() if group in changes for word in words}

    def strip(node: Any, *, names: bool = False) -> Any:  # noqa: ANN401 - JSON
        if isinstance(node, dict):
            # Under "properties" and "$defs" the keys are names, not keywords.
            return {
                key: strip(value, names=not names and key in {"properties", "$defs"})
                for key, value in node.items()
                if names or key not in refused
            }
        return [strip(part) for part in node] if isinstance(node, list) else node

    stripped: dict[str, Any] = strip(json.loads(json.dumps(schema)))
    return stripped


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with what the system message says put before the first user message."""
    if not messages or messages[0].get("role") != "system":
        return messages
    said = messages[0]["content"]
    if len(messages) > 1 and messages[1].get("role") == "user":
        return [{**messages[1], "content": f"{said}\n\n{messages[1]['content']}"}, *messages[2:]]
    return [{"role": "user", "content": said}, *messages[1:]]
