"""One request until it is answered: retries under the throttle, and what each failure means for the run.

An :class:`InvalidAnswer` concerns one item, which the caller sets aside while the run goes on; everything else ends
the run. No message holds an API key: the client scrubs them and chains no exception that carries one.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embed_pipeline import settings
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.budget import Budget
from embed_pipeline.llm.embedded import PrimedServers
from embed_pipeline.llm.store import Answer
from embed_pipeline.llm.throttle import Stopped, Throttle, retry_after

if TYPE_CHECKING:
    import openai

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_CONNECT_SECONDS = 10.0
MAX_MESSAGE_CHARACTERS = 500
_RETRIED_STATUSES = frozenset({408, 409, 429})
_TOO_LONG_WORDS = ("context_length", "context length", "context size", "maximum context", "too long", "exceed_context")
_FILTERED_WORDS = ("content_filter", "content_policy", "content management policy")
CHARACTERS_PER_TOKEN = 4
FAILURE_WINDOW = 40
MIN_OUTCOMES = 10
_NO_KEY = "not-needed"


class EndpointError(RuntimeError):
    """The endpoint refuses in a way that repeating cannot fix (401, 402, 404, ...): the run stops."""


class TooManyFailures(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """More than half of the recent requests failed after all their tries: the run stops."""


class RequestFailed(InvalidAnswer):
    """The endpoint did not answer this request in all the tries that ``llm.max_attempts`` allows."""

    def __init__(self, detail: str) -> None:
        super().__init__("request_failed", detail)


@dataclass(frozen=True)
class Failure:
    """Why one attempt brought no answer.

    Attributes:
        status: HTTP status; 0 where none came.
        message: what the endpoint or the connection said, without secrets.
        wait: seconds that the endpoint asked to wait, or None.
    """

    status: int
    message: str
    wait: float | None = None

    @property
    def transient(self) -> bool:
        """True when the same request may succeed later."""
        return self.status == 0 or self.status in _RETRIED_STATUSES or self.status >= 500  # noqa: PLR2004 - server errors

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.message}" if self.status else self.message


class Transport:
    """Sends requests under a throttle; an async context manager.

    Attributes:
        throttle: the learned concurrency and rate.
    """

    def __init__(
        self, llm: settings.LLM, base_urls: Sequence[str], api_key: str | None, budget: Budget, *, primed: bool = False
    ) -> None:
        """Prepare clients, one per base URL.

        Args:
            llm: limits.
            base_urls: endpoints.
            api_key: sent to them; never logged or part of an error.
            budget: where usage is counted.
            primed: they are embedded servers of one sequence each, asked through :class:`PrimedServers`.

        Raises:
            EndpointError: if the API key cannot be an HTTP header.
        """
        key = (api_key or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise EndpointError("the API key holds characters that an HTTP header cannot carry; check its variable")
        self.throttle = Throttle(llm.max_concurrency)
        self._llm = llm
        self._budget = budget
        self._secrets = [secret for secret in (key, *(urlsplit(url).password for url in base_urls)) if secret]
        self._place = ", ".join(_without_user(url) for url in base_urls)
        self._reason: EndpointError | TooManyFailures | None = None
        self._outcomes: deque[str] = deque(maxlen=FAILURE_WINDOW)
        self._clients = [self._open_client(url, key or _NO_KEY) for url in base_urls]
        self._open = [0] * len(self._clients)
        self._primed = PrimedServers(len(self._clients)) if primed else None

    def __repr__(self) -> str:
        return f"Transport({self._place})"

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.close()

    async def ask(
        self,
        path: str,
        word: Callable[[], dict[str, Any]],
        adapt: Callable[[int, str], None],
        parts: tuple[str, ...] = (),
    ) -> Answer:
        """Send a request until it is answered.

        Args:
            path: ``/chat/completions`` or ``/completions``.
            word: gives the request body; called for every attempt, as the endpoint's dialect may have been learned.
            adapt: is told status and message of a refusal; when ``word`` then gives another body, that is sent.
            parts: the prompt in parts, for embedded servers.

        Raises:
            EndpointError: on a final refusal of this or an earlier request; nothing more is sent then.
            InvalidAnswer: if the endpoint refuses this prompt alone (too long, filtered).
            RequestFailed: if every attempt fails.
            TooManyFailures: if that is so for over half of the last 40 requests; nothing more is sent then.
        """
        failure = Failure(0, "not sent")
        attempt = 0
        while attempt < self._llm.max_attempts:
            body = word()
            try:
                outcome = await self._attempt(path, body, parts)
                if isinstance(outcome, Answer):
                    self._note_outcome("")
                    return outcome
                failure = outcome
                if not failure.transient:
                    adapt(failure.status, failure.message)
                    if word() == body:
                        raise self._refusal(failure)
                    continue
                attempt += 1
                if attempt < self._llm.max_attempts:
                    self._budget.usage.retries += 1
                    await self.throttle.sleep(_backoff(attempt) if failure.wait is None else 0.0)
            except Stopped:
                raise self._stopped() from None
        self._note_outcome(str(failure))
        raise RequestFailed(f"no answer in {attempt} tries, the last: {failure}")

    def check_failures(self, least: int = MIN_OUTCOMES) -> None:
        """Stop everything if over half of the last 40 requests failed after all their tries.

        Args:
            least: with fewer outcomes than this, nothing is concluded.

        Raises:
            TooManyFailures: with the last failure and how to go on.
        """
        failures = [outcome for outcome in self._outcomes if outcome]
        if len(self._outcomes) < least or 2 * len(failures) <= len(self._outcomes):
            return
        self._stop(
            TooManyFailures(
                f"{len(failures)} of the last {len(self._outcomes)} requests to {self._place} failed after all their "
                f"tries (the last: {failures[-1]}). Stopped early; every answer so far is stored. Once the endpoint "
                "has recovered, run the same command to resume."
            )
        )
        raise self._stopped()

    def _note_outcome(self, failure: str) -> None:
        self._outcomes.append(failure)
        self.check_failures()

    def _refusal(self, failure: Failure) -> InvalidAnswer | EndpointError | TooManyFailures:
        """What a final refusal means: for this prompt alone, or, everything being stopped here, for the run."""
        text = failure.message.lower()
        if failure.status == 413 or (failure.status == 400 and any(word in text for word in _TOO_LONG_WORDS)):  # noqa: PLR2004
            return InvalidAnswer("prompt_too_long", f"the prompt does not fit the model: {failure}")
        if failure.status == 400 and any(word in text for word in _FILTERED_WORDS):  # noqa: PLR2004 - bad request
            return InvalidAnswer("prompt_filtered", f"the endpoint's filter refused the prompt: {failure}")
        self._stop(
            EndpointError(
                f"{self._place} refused a request for good ({failure}). Nothing more is sent; every answer so far is "
                "stored. Check the API key, the model name and the address, then run the same command again."
            )
        )
        return self._stopped()

    def _stop(self, reason: EndpointError | TooManyFailures) -> None:
        """Send nothing more: what waits, and all that comes, raises the first reason."""
        self._reason = self._reason or reason
        self.throttle.stop()

    def _stopped(self) -> EndpointError | TooManyFailures:
        reason = self._reason or EndpointError(f"requests to {self._place} were stopped")
        return type(reason)(str(reason))

    async def _attempt(self, path: str, body: dict[str, Any], parts: tuple[str, ...]) -> Answer | Failure:
        async with self.throttle.slot() as started:
            outcome = await self._send(path, body, parts)
            if isinstance(outcome, Answer):
                self.throttle.succeeded()
                self._budget.record(outcome.prompt_tokens, outcome.completion_tokens, time.monotonic() - started)
                return outcome
            if outcome.status == 429:  # noqa: PLR2004 - too many requests
                self.throttle.refused(started, outcome.wait)
            elif outcome.wait is not None and outcome.transient:
                self.throttle.pause(outcome.wait)
            return outcome

    async def _send(self, path: str, body: dict[str, Any], parts: tuple[str, ...]) -> Answer | Failure:
        import openai

        if self._primed is not None:
            chosen = self._primed.choose(parts[:-1], self._open)
        else:
            chosen = min(range(len(self._clients)), key=self._open.__getitem__)

        async def post(worded: dict[str, Any]) -> object:
            return await self._clients[chosen].post(path, body=worded, cast_to=object)

        self._open[chosen] += 1
        try:
            data = await (self._primed.ask(chosen, body, parts, post) if self._primed else post(body))
            return _read_answer(data, body)
        except openai.APIStatusError as error:
            wait = retry_after(error.response.headers)
            return Failure(error.status_code, self._scrub(_message_of(error)), wait)
        except openai.APITimeoutError:
            return Failure(0, f"no answer within {self._llm.timeout_seconds:g} s")
        except openai.OpenAIError as error:
            return Failure(0, self._scrub(f"{type(error).__name__}: {error}: {error.__cause__!r}"))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return Failure(0, self._scrub(f"the answer is not that of an OpenAI-compatible endpoint: {error!r}"))
        finally:
            self._open[chosen] -= 1

    def _scrub(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:MAX_MESSAGE_CHARACTERS]

    def _open_client(self, base_url: str, key: str) -> openai.AsyncOpenAI:
        import openai

        timeout = openai.Timeout(self._llm.timeout_seconds, connect=min(MAX_CONNECT_SECONDS, self._llm.timeout_seconds))
        http = openai.DefaultAioHttpClient(timeout=timeout)
        return openai.AsyncOpenAI(api_key=key, base_url=base_url, max_retries=0, timeout=timeout, http_client=http)


def _backoff(attempt: int) -> float:
    """Full jitter: a random share of the exponential wait."""
    return random.uniform(0, min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**attempt))  # noqa: S311 - spreads load


def _read_answer(data: Any, body: dict[str, Any]) -> Answer:  # noqa: ANN401 - whatever JSON the endpoint sent
    """The answer in a response of either endpoint.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError: if it is not shaped as the API says.
    """
    choice = data["choices"][0]
    finish_reason = choice.get("finish_reason") or "unknown"
    if "messages" in body:
        message = choice["message"]
        text = message.get("content") or ""
        if message.get("refusal"):
            text, finish_reason = message["refusal"], "refusal"
    else:
        text = choice["text"]
    if not isinstance(text, str):
        raise TypeError(f"the answer's text is a {type(text).__name__}")
    usage = data.get("usage") or {}
    asked = body.get("messages", body.get("prompt"))
    return Answer(
        text=text,
        finish_reason=str(finish_reason),
        prompt_tokens=_tokens(usage.get("prompt_tokens"), asked),
        completion_tokens=_tokens(usage.get("completion_tokens"), text),
    )


def _tokens(reported: int | None, said: object) -> int:
    """Tokens as reported; where an endpoint reports none, four characters a token, so that caps still hold."""
    if reported is not None:
        return int(reported)
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _message_of(error: openai.APIStatusError) -> str:
    """The endpoint's message about a refusal, with the parameter that it names."""
    body = error.body
    if not isinstance(body, dict):
        return str(body) if body else error.message
    named = [f"{name} {body[name]}" for name in ("type", "code", "param") if body.get(name)]
    return f"{body.get('message') or body} ({', '.join(named)})" if named else str(body.get("message") or body)


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
