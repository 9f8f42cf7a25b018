"""One request until it is answered: retries under the throttle, and what each failure means for the run.

An :class:`InvalidAnswer` concerns one item, which the caller sets aside while the run goes on; everything else ends
the run. No message holds an API key: the client scrubs them and chains no exception that carries one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from embed_pipeline import settings
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.batch_api import Batches
from embed_pipeline.llm.budget import Budget
from embed_pipeline.llm.dialect import Wording, names_schema
from embed_pipeline.llm.embedded import PrimedServers
from embed_pipeline.llm.failures import Failure, connection_failure, read_failure
from embed_pipeline.llm.responses import read_response
from embed_pipeline.llm.scope import Scope, scope_of
from embed_pipeline.llm.secrets import Secrets, basic_credentials
from embed_pipeline.llm.store import Answer, ResponseStore
from embed_pipeline.llm.throttle import Stopped, Throttle

if TYPE_CHECKING:
    import openai

BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 30.0
MAX_CONNECT_SECONDS = 10.0
FAILURE_WINDOW = 40
MIN_OUTCOMES = 10
ODD_IN_A_ROW = 10
"""Unexplained refusals of different items, without an answer between them, that stop the run."""
ODD_AT_FIRST = 5
"""The same where no request was ever answered."""
ODD_TRIES = 2
"""Tries of a request that is refused without a reason while others are answered."""
MODELS_IN_A_ROW = 3
"""Requests, without an answer between them, whose every try found no such model, that stop the run."""
ADDRESS_TRIES = 3
ADDRESS_SECONDS = 8.0
"""Tries and time after which an address where nothing ever answered is given up."""
_NO_KEY = "not-needed"
_ENDPOINT_PATHS = ("/chat/completions", "/completions", "/embeddings", "/models")
_ADVICE = {
    "key": f"Check the API key ({settings.LLM_KEY_VARIABLE}) and what it may use",
    "model": "Check llm.model and llm.judge_model",
    "payment": "Check the account's balance and limits",
    "address": "Check llm.base_url and that the endpoint is running",
    "wait": "Wait as long as it asks",
    "format": "Set llm.structured_outputs to auto or plain",
    "": "Check the API key, the model name and the address",
}
_REFUSED = {
    "prompt_too_long": "the prompt does not fit the model",
    "prompt_filtered": "the endpoint's filter refused the prompt",
    "prompt_refused": "the endpoint refused the prompt",
    "invalid_answer": "the model's answer broke the schema at the endpoint",
}


class EndpointError(RuntimeError):
    """The endpoint refuses in a way that repeating cannot fix (key, model, address, payment): the run stops."""


class TooManyFailures(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """More than half of the recent requests failed after all their tries: the run stops."""


class RequestFailed(InvalidAnswer):
    """The endpoint did not answer this request in all the tries that ``llm.max_attempts`` allows."""

    def __init__(self, detail: str) -> None:
        super().__init__("request_failed", detail)


class Transport:
    """Sends requests under a throttle; an async context manager.

    Attributes:
        throttle: the learned concurrency and rate.
    """

    def __init__(
        self,
        llm: settings.LLM,
        base_urls: Sequence[str],
        api_key: str | None,
        budget: Budget,
        store: ResponseStore,
        *,
        primed: bool = False,
    ) -> None:
        """Prepare clients, one per base URL.

        Args:
            llm: limits.
            base_urls: endpoints.
            api_key: sent to them; never logged or part of an error.
            budget: where usage is counted.
            store: keeps which batches are open.
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
        self._secrets = Secrets(key, base_urls)
        self._place = ", ".join(without_user(url) for url in base_urls)
        self._reason: EndpointError | TooManyFailures | None = None
        self._outcomes: deque[str] = deque(maxlen=FAILURE_WINDOW)
        self._answered = False
        self._odd: dict[str, str] = {}
        self._missed = 0
        self._clients = [self._open_client(url, key or _NO_KEY) for url in base_urls]
        self._open = [0] * len(self._clients)
        self._started: dict[int, float] = {}
        self._primed = PrimedServers(len(self._clients)) if primed else None
        self._batches = Batches(llm, self._clients[0], store, self._place, self._secrets) if llm.batch else None

    def __repr__(self) -> str:
        return f"Transport({self._place})"

    async def close(self) -> None:
        """Close all connections."""
        if self._batches is not None:
            await self._batches.close()
        for client in self._clients:
            await client.close()

    def line(self) -> str:
        """Requests in flight and the age of the oldest, or the batches' counts, as a note next to a progress bar."""
        if self._batches is not None:
            return self._batches.line()
        if not self._started:
            return ""
        oldest = time.monotonic() - min(self._started.values())
        return f"{len(self._started)} in flight, oldest {oldest:.0f} s"

    async def ask(
        self, path: str, wording: Wording, keys: tuple[str, str], about: str = "", parts: tuple[str, ...] = ()
    ) -> Answer:
        """Send a request until it is answered.

        Args:
            path: ``/chat/completions`` or ``/completions``.
            wording: gives the request's body, and another one where the endpoint refuses its parameters.
            keys: where the store keeps an answer that ended by itself, and one that was cut.
            about: what the request is about, for messages; several refusals about one thing count as one.
            parts: the prompt in parts, for embedded servers.

        Raises:
            EndpointError: on a final refusal of this or an earlier request; nothing more is sent then.
            InvalidAnswer: if the endpoint refuses this prompt alone (too long, filtered, unexplained).
            RequestFailed: if every attempt fails.
            BatchError: if the endpoint takes no batches, or one cannot be followed.
            TooManyFailures: if that is so for over half of the last 40 requests; nothing more is sent then.
        """
        failure, scope = Failure(0, "not sent"), None
        attempt = 0
        begun = time.monotonic()
        while attempt < self._llm.max_attempts:
            try:
                changes = wording.changes
                outcome = await self._attempt(path, wording.body(), keys, parts)
                if isinstance(outcome, Answer):
                    wording.accepted()
                    self._note_answer()
                    return outcome
                failure = outcome
                if any(failure.tokens):
                    self._budget.record(*failure.tokens, 0.0, batch=self._batches is not None)
                given_up = attempt + 1 >= ADDRESS_TRIES or time.monotonic() - begun > ADDRESS_SECONDS
                nowhere = failure.no_endpoint and given_up
                scope = await self._scope_of(failure, wording, changes, about, wait=nowhere, first=attempt == 0)
                failure = self._without_secrets(failure)
                if scope is None:
                    continue
                if nowhere and not self._known:
                    raise self._whole(failure, "address", about)
                tries = 1 if self._batches else min(ODD_TRIES, self._llm.max_attempts)
                again = scope.kind == "odd" and self._known and attempt + 1 < tries
                if scope.kind != "moment" and not again:
                    raise self._refusal(failure, scope, about)
                attempt += 1
                if attempt < self._llm.max_attempts:
                    self._budget.check(held=1)
                    self._budget.usage.retries += 1
                    # A shorter wait, down to "Retry-After: 0", would burn all tries at once.
                    asked = failure.wait is not None and failure.wait >= BACKOFF_SECONDS
                    await self.throttle.sleep(0.0 if self._batches or asked else _backoff(attempt))
            except Stopped:
                raise self._stopped() from None
        self._missed += scope is not None and scope.reason == "model"
        if self._missed >= MODELS_IN_A_ROW:
            raise self._whole(failure, "model", about)
        self._note_outcome(str(failure))
        raise RequestFailed(f"no answer in {attempt} tries, the last: {failure}")

    async def _scope_of(
        self, failure: Failure, wording: Wording, changes: frozenset[str], about: str, *, wait: bool, first: bool
    ) -> Scope | None:
        """What a failure is about; None: it is answered by another wording.

        Before what would end the run is believed, requests in flight may prove it wrong.

        Args:
            failure: the failure.
            wording: the request, which is changed.
            changes: those of the request that failed.
            about: what the request is about.
            wait: wait for the requests in flight in any case.
            first: it was not refused before; only then a refusal counts.
        """
        scope = scope_of(failure, answered=self._known)
        if wording.adapt(failure, scope, answered=self._known):
            return None
        if scope.kind == "odd" and first:
            self._odd[about or f"request {len(self._odd)}"] = str(self._without_secrets(failure))
        if self._known or not (wait or scope.kind in {"odd", "whole"}):
            return scope
        await self._first_answer()
        # Another request may have shown meanwhile how this one has to be worded.
        return scope_of(failure, answered=self._known) if wording.changes == changes else None

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

    def check_refusals(self) -> None:
        """Stop if every request was refused for a reason that nothing explains.

        Raises:
            EndpointError: with the last refusal.
        """
        if self._odd and not self._known:
            about, refusal = list(self._odd.items())[-1]
            raise self._whole(Failure(0, refusal), "", about)

    @property
    def _known(self) -> bool:
        """True once the endpoint has answered a request, in this run or in an earlier one."""
        return self._answered or self._budget.usage.cached > 0

    def _note_answer(self) -> None:
        self._answered = True
        self._odd.clear()
        self._missed = 0
        self._note_outcome("")

    def _note_outcome(self, failure: str) -> None:
        self._outcomes.append(failure)
        self.check_failures()

    def _refusal(self, failure: Failure, scope: Scope, about: str) -> InvalidAnswer | EndpointError | TooManyFailures:
        """What a final refusal means: for this prompt alone, or, everything being stopped here, for the run."""
        if scope.kind == "whole":
            return self._whole(failure, scope.reason, about)
        reason = scope.reason
        if scope.kind == "odd":
            if names_schema(failure) and self._llm.structured_outputs == "json_schema":
                return self._whole(failure, "format", about)
            if len(self._odd) >= (ODD_IN_A_ROW if self._known else ODD_AT_FIRST):
                return self._whole(failure, "", about)
            reason = "prompt_refused"
        return InvalidAnswer(reason, f"{_REFUSED[reason]}: {failure}", failure.raw)

    async def _first_answer(self) -> None:
        """Wait for one while requests are in flight and nothing was ever answered: a refusal comes sooner."""
        while not self._known and any(self._open):
            await self.throttle.sleep(0.05)

    def _whole(self, failure: Failure, reason: str, about: str) -> EndpointError | TooManyFailures:
        """Stop everything: a refusal that every request would get."""
        at = f", about {about}" if about else ""
        self._stop(
            EndpointError(
                f"{self._place} refused a request for good ({failure}){at}. Nothing more is sent; every answer so far "
                f"is stored. {_ADVICE[reason]}, then run the same command again."
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

    async def _attempt(
        self, path: str, body: dict[str, Any], keys: tuple[str, str], parts: tuple[str, ...]
    ) -> Answer | Failure:
        if self._batches is not None:
            outcome = await self._batches.send(path, body, keys)
            if isinstance(outcome, Answer):
                self._budget.record(outcome.prompt_tokens, outcome.completion_tokens, 0.0, batch=True)
            return outcome
        async with self.throttle.slot() as started:
            ticket = id(body)
            self._started[ticket] = time.monotonic()
            try:
                outcome = await self._send(path, body, parts)
            finally:
                del self._started[ticket]
            if isinstance(outcome, Answer):
                seconds = time.monotonic() - started
                self.throttle.succeeded()
                self._budget.record(outcome.prompt_tokens, outcome.completion_tokens, seconds)
                return replace(outcome, seconds=seconds)
            if outcome.status == 429:  # noqa: PLR2004 - too many requests
                self.throttle.refused(started, outcome.wait)
            elif outcome.wait is not None and scope_of(outcome, answered=self._known).kind == "moment":
                self.throttle.pause(outcome.wait)
            return outcome

    async def _send(self, path: str, body: dict[str, Any], parts: tuple[str, ...]) -> Answer | Failure:
        import aiohttp
        import httpx
        import openai

        if self._primed is not None:
            chosen = self._primed.choose(parts[:-1], self._open)
        else:
            chosen = min(range(len(self._clients)), key=self._open.__getitem__)

        async def post(worded: dict[str, Any]) -> httpx.Response:
            # The client's own timeout begins again with every byte.
            async with asyncio.timeout(self._llm.timeout_seconds):
                return await self._clients[chosen].post(path, body=worded, cast_to=httpx.Response)

        self._open[chosen] += 1
        response: Any = None
        try:
            response = await (self._primed.ask(chosen, body, parts, post) if self._primed else post(body))
            outcome = read_response(self._secrets.hide_keys(response.content), response.headers, body)
        except openai.APIStatusError as error:
            response = error.response
            content = self._secrets.hide_keys(response.content)
            outcome = read_failure(error.status_code, content, response.headers)
        except (openai.OpenAIError, aiohttp.ClientError, TimeoutError) as error:
            outcome = connection_failure(error, self._llm.timeout_seconds)
        finally:
            self._open[chosen] -= 1
        if isinstance(outcome, Answer):
            return outcome
        moved = response.url if response is not None and response.history else None
        redirected = f" (redirected to {moved.copy_with(query=None)}: set llm.base_url accordingly)" if moved else ""
        return replace(outcome, shown=outcome.shown + redirected)

    def _without_secrets(self, failure: Failure) -> Failure:
        hide = self._secrets.hide
        return replace(failure, message=hide(failure.message), shown=hide(failure.shown), raw=hide(failure.raw))

    def _open_client(self, base_url: str, key: str) -> openai.AsyncOpenAI:
        import openai

        longest = self._llm.timeout_seconds
        # Shorter than the whole request, so that a host that does not connect is told from a slow answer.
        timeout = openai.Timeout(longest, connect=min(MAX_CONNECT_SECONDS, longest / 2))
        http = openai.DefaultAioHttpClient(timeout=timeout)
        parts = urlsplit(base_url)
        path = parts.path.rstrip("/")
        path = next((path.removesuffix(end) for end in _ENDPOINT_PATHS if path.endswith(end)), path)
        headers = {}
        if parts.username is not None:
            headers["Authorization"] = f"Basic {basic_credentials(base_url)}"
        if parts.query and key != _NO_KEY:
            # Azure's gateways look for the key here.
            headers["api-key"] = key
        return openai.AsyncOpenAI(
            api_key=key,
            base_url=parts._replace(netloc=_host_of(base_url), path=path, query="", fragment="").geturl(),
            default_query=dict(parse_qsl(parts.query)),
            default_headers=headers,
            max_retries=0,
            timeout=timeout,
            http_client=http,
        )


def _backoff(attempt: int) -> float:
    """Full jitter: a random share of the exponential wait."""
    return random.uniform(0, min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**attempt))  # noqa: S311 - spreads load


def _host_of(url: str) -> str:
    """The host and port of an address."""
    return urlsplit(url).netloc.rpartition("@")[2]


def without_user(url: str) -> str:
    """An address without its user, password and query."""
    return urlsplit(url)._replace(netloc=_host_of(url), query="").geturl()
