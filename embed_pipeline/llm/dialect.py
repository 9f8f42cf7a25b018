"""What an endpoint understands: OpenAI-compatible servers differ in a few parameters, found out by asking.

A 400 or 422 that names a parameter switches that parameter for the rest of the run; everything else stays an error.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from embed_pipeline.llm.answers import strict_schema

_SCHEMA_WORDS = ("response_format", "json_schema", "structured output", "guided decoding", "grammar")
_UNSUPPORTED = ("unsupported", "not support", "unrecognized", "unknown", "only the default")
_OPTIONAL = ("temperature", "seed")
_MAY_BE_FORMAT = frozenset({400, 404, 422, 501})
_MAY_BE_PARAMETER = frozenset({400, 422})
Format = Literal["unknown", "json_schema", "plain"]


class Dialect:
    """How requests are worded for one endpoint.

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
            self._dropped.update(name for name in _OPTIONAL if name in text)

    def settle(self, *, valid: bool) -> None:
        """Conclude from the first structured answer whether the endpoint really keeps to schemas."""
        if self.format == "unknown":
            self.format = "json_schema" if valid else "plain"
