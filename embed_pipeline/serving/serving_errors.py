"""What goes wrong when the endpoint starts, and what it answers when a request is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ServingError(RuntimeError):
    """The endpoint cannot start, or a deployment cannot be verified."""


class RequestError(Exception):
    """A request that is answered with an error, in the shape that OpenAI clients read.

    Attributes:
        status: HTTP status.
        message: what is wrong, with the value and the bound.
        param: field of the request that is wrong.
        code: machine-readable reason.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON: OpenAI's ``error`` object, and ``detail`` for clients that look there."""
        kind = "invalid_request_error"
        if self.status == 429:  # noqa: PLR2004 - an HTTP status
            kind = "rate_limit_exceeded"
        elif self.status >= 500:  # noqa: PLR2004 - an HTTP status
            kind = "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error, "detail": self.message}


def invalid(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """A 400: the request itself is wrong."""
    return RequestError(400, message, param=param, code=code)


def unavailable(message: str) -> RequestError:
    """A 503: the endpoint is loading or draining."""
    return RequestError(503, message, code="service_unavailable", headers={"Retry-After": "5"})
