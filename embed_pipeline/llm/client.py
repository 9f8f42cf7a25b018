"""Asking language models: completions, structured answers, and many requests at once with a clean end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel

from embed_pipeline import settings
from embed_pipeline.llm.answers import (
    InvalidAnswer,
    breaks_schema,
    explain_problem,
    instruct,
    parse_answer,
    strict_schema,
)
from embed_pipeline.llm.batch_api import BatchError
from embed_pipeline.llm.budget import Budget, Usage
from embed_pipeline.llm.dialect import Dialect, Wording
from embed_pipeline.llm.embedded import embedded_server, model_file
from embed_pipeline.llm.gathering import gather_all
from embed_pipeline.llm.prompts import read_prompt
from embed_pipeline.llm.store import EMBEDDED, Answer, ResponseStore, request_key
from embed_pipeline.llm.transport import Transport, without_user
from embed_pipeline.progress import progress

MAX_REASKS = 2
FORMAT_WAIT_SECONDS = 0.25
"""Longest wait for the first request to show whether the endpoint takes schemas: a refusal comes sooner."""
MAX_CUTS = 10
"""Answers cut at their length limit, of as many, that stop the run."""
_REFUSED = frozenset({"refusal", "content_filter"})
_CHATTY_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")
T = TypeVar("T", bound=BaseModel)
Completion = Answer
TICK_SECONDS = 1.0
Item = TypeVar("Item")
Result = TypeVar("Result")


class AnswersCut(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """Every answer so far was cut at ``llm.max_output_tokens``: the run stops."""


@dataclass(frozen=True)
class Structured(Generic[T]):
    """A structured answer.

    Attributes:
        value: the validated object.
        raw: the answer's text.
        cached: True when no call was made for it.
    """

    value: T
    raw: str
    cached: bool


class LLMClient:
    """Asks one model endpoint; an async context manager, for one event loop.

    Attributes:
        budget: usage so far and the caps.
        generator: the model's name as tables record it.
    """

    def __init__(
        self,
        llm: settings.LLM,
        store: ResponseStore,
        *,
        base_url: str | Sequence[str] | None = None,
        api_key: str | None = None,
        slots: int | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            llm: endpoint, model, limits and prices.
            store: answers to what was asked before.
            base_url: endpoint(s) in place of ``llm.base_url``; requests go to the one with the fewest in flight.
            api_key: sent to the endpoint; never stored, logged or part of an error.
            slots: sequences of each embedded server; None: an endpoint. With one, an answer depends on the request
                alone, whatever was asked before.

        Raises:
            ValueError: if there is no endpoint.
            EndpointError: if the API key cannot be an HTTP header.
        """
        chosen = base_url or llm.base_url
        if not chosen:
            raise ValueError("llm.base_url is None and no base_url is given: open_client starts the embedded server")
        self.budget = Budget(llm, store.used(llm.asking_since) if llm.capped and llm.asking_since else (0, 0, 0))
        self.generator = generator_name(llm)
        self._llm = llm
        self._store = store
        self._urls = [chosen] if isinstance(chosen, str) else list(chosen)
        self._slots = slots
        self._transport = Transport(llm, self._urls, api_key, self.budget, store, primed=slots == 1)
        self._dialect = Dialect(llm.structured_outputs)
        self._format_known = asyncio.Event()
        self._probing = False
        self._cuts = 0
        self._uncut = 0
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"LLMClient({self.generator!r}, {self._transport!r})"

    async def __aenter__(self) -> Self:
        # They log a line per request, with its URL.
        for name in _CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._transport.close()

    @property
    def concurrency(self) -> int:
        """Items worth working on at once: ``llm.max_concurrency``, or the embedded servers' slots if they are fewer.

        In batches all that one batch may hold.
        """
        if self._llm.batch:
            return self._llm.batch_requests
        most = self._llm.max_concurrency
        return most if self._slots is None else min(most, self._slots * len(self._urls))

    @property
    def place(self) -> str:
        """The endpoint as timed calls record it."""
        return EMBEDDED if self._slots is not None else ", ".join(map(without_user, self._urls))

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        return self.budget.usage

    async def gather(
        self,
        items: Sequence[Item],
        function: Callable[[Item], Awaitable[Result]],
        *,
        label: str,
        unit: str = "item",
        note: Callable[[], str] | None = None,
    ) -> list[Result]:
        """Run a function that asks this client over many items at once, with progress; results in their order.

        ``function`` turns an :class:`InvalidAnswer` of its item into a result of its own; any exception that it lets
        pass ends the run.

        Args:
            items: what to work on; any number, as only :attr:`concurrency` are begun at a time.
            function: one item's work.
            label: what the progress shows.
            unit: the noun for one of them.
            note: more to show next to usage, such as an acceptance rate.

        Raises:
            TooManyFailures: if over half of the last 40 requests failed after all their tries.
            BudgetExhausted: if a cap is reached; what was in flight is finished and stored first.
            EndpointError: if the endpoint refuses for good.
            ResponseStoreError: if the store fails.
        """
        begun = time.monotonic()
        with progress(label, len(items), unit) as bar:

            def show(count: int) -> None:
                notes = (self.usage.line(), self._transport.line(), note() if note else "")
                bar.advance(count, ", ".join(part for part in notes if part))

            async def tick() -> None:
                while True:
                    await asyncio.sleep(TICK_SECONDS)
                    show(0)

            ticking = asyncio.create_task(tick())
            try:
                results = await gather_all(items, function, self.concurrency, lambda: show(1))
            finally:
                ticking.cancel()
                self.usage.elapsed += time.monotonic() - begun
        self._transport.check_failures(least=1)
        self._transport.check_refusals()
        return results

    async def complete(
        self, *parts: str, stop: list[str], max_tokens: int, temperature: float, seed: int
    ) -> Completion:
        """Continue a text.

        Args:
            parts: the text, cut where other texts depart from it; an embedded server processes what they share once.
            stop: where the answer ends.
            max_tokens: where it is cut.
            temperature: sampling temperature.
            seed: sampling seed.

        Returns:
            The answer, with its log-probability where the endpoint tells it; ``finish_reason`` is ``length`` when
            ``max_tokens`` cut it.

        Raises:
            InvalidAnswer: if the endpoint refuses this prompt alone.
            RequestFailed: if the endpoint does not answer.
            EndpointError: if the endpoint refuses for good.
            BudgetExhausted: if a cap is reached and the answer is not in the store.
            ResponseStoreError: if the store fails.
        """
        request = {
            "model": self.generator,
            "prompt": "".join(parts),
            "stop": stop,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "logprobs": 1,
        }
        key = request_key(request)
        got = await self._answer((key, key), "/completions", Wording(self._dialect, request), parts=parts)
        # An endpoint that refuses to stop there goes on.
        ends = [place for mark in stop if (place := got.text.find(mark)) >= 0]
        return replace(got, text=got.text[: min(ends)]) if ends else got

    async def judge(
        self,
        prompt: str,
        asked: str,
        answer: type[T],
        *,
        seed: int,
        known: Mapping[str, Mapping[str, Any]] | None = None,
        about: str = "",
    ) -> Structured[T]:
        """Ask the judge by a prompt file, at temperature 0; the other arguments are those of :meth:`structured`.

        Raises:
            InvalidAnswer, AnswersCut, RequestFailed, EndpointError, BudgetExhausted, ResponseStoreError: as
                :meth:`structured`.
        """
        messages = [{"role": "system", "content": read_prompt(prompt)}, {"role": "user", "content": asked}]
        model = self._llm.judge_model
        return await self.structured(
            messages, answer, temperature=0.0, seed=seed, known=known, model=model, about=about
        )

    async def structured(
        self,
        messages: list[dict[str, Any]],
        answer: type[T],
        *,
        temperature: float,
        seed: int,
        known: Mapping[str, Mapping[str, Any]] | None = None,
        model: str | None = None,
        about: str = "",
    ) -> Structured[T]:
        """Ask for an object of a pydantic type; an answer that does not validate is asked for again, twice at most.

        Args:
            messages: the conversation, in the API's form; it ends with the user's message.
            answer: the type; validated strictly, so that no value is coerced.
            temperature: sampling temperature.
            seed: sampling seed.
            known: what the call knows of the answer beforehand, for the schema (:func:`strict_schema`).
            model: another model at the same endpoint; None: the generator.
            about: what the request is about, named in errors.

        Raises:
            InvalidAnswer: on a refusal, an answer cut at its length limit or one that stays invalid.
            AnswersCut: if every answer so far was cut at its length limit.
            RequestFailed, EndpointError, BudgetExhausted, ResponseStoreError: as :meth:`complete`.
        """
        schema = strict_schema(answer, known)
        conversation = list(messages)
        reason, detail, raw = "", "", ""
        for attempt in range(1 + MAX_REASKS):
            request = {
                "model": model or self.generator,
                "messages": conversation,
                "temperature": temperature,
                "seed": seed + attempt,
                "max_tokens": self._llm.max_output_tokens,
            }
            by_schema = attempt == 0 and self._dialect.format == "json_schema"
            try:
                got = await self._ask_structured(request, schema, answer.__name__, about, in_words=attempt > 0)
            except InvalidAnswer as error:
                if error.reason != "invalid_answer":
                    raise
                got = Answer(error.raw or str(error), "invalid", 0, 0)
            raw = got.text
            if got.finish_reason in _REFUSED:
                raise InvalidAnswer("refused", f"the model refused to answer ({got.finish_reason})", raw)
            try:
                value = parse_answer(raw, answer)
            except ValueError as error:
                problem = explain_problem(error)
                broken = breaks_schema(error)
            else:
                self._count_cut(cut=False)
                self._dialect.count(kept=by_schema and not got.cached)
                return Structured(value=value, raw=raw, cached=got.cached)
            if got.finish_reason == "length":
                reason = "cut_at_length"
                detail = f"the answer was cut at its length limit of {self._llm.max_output_tokens} tokens"
                self._count_cut(cut=True)
                if not raw:
                    # All of it was reasoning, of which a wish for brevity makes no less.
                    break
                conversation = _with_wish(messages, "Your last answer was cut at its length limit: be brief.")
                continue
            self._count_cut(cut=False)
            if broken and got.finish_reason == "stop":
                self._dialect.count(broken=True)
            reason = "invalid_answer"
            detail = f"the answer is not a valid {answer.__name__}: {problem}"
            conversation = [
                *messages,
                {"role": "assistant", "content": raw},
                {
                    "role": "user",
                    "content": f"That answer cannot be used: {problem}\n"
                    "Answer again with the corrected JSON object alone.",
                },
            ]
        raise InvalidAnswer(reason, detail, raw)

    def _count_cut(self, *, cut: bool) -> None:
        """Count an answer, and stop where all there were are cut.

        Raises:
            AnswersCut: naming the setting.
        """
        self._cuts += cut
        self._uncut += not cut
        if self._cuts >= MAX_CUTS and not self._uncut:
            raise AnswersCut(
                f"all {self._cuts} answers so far were cut at llm.max_output_tokens = {self._llm.max_output_tokens}; "
                "a model that reasons spends tokens on that before it answers. Stopped; every answer is stored: raise "
                "the setting and run the same command again, which asks again only for what was cut."
            )

    async def _ask_structured(
        self, request: dict[str, Any], schema: dict[str, Any], name: str, about: str, *, in_words: bool
    ) -> Answer:
        """One structured request; the first one shows whether the endpoint takes schemas."""
        asked = {**request, "messages": instruct(request["messages"], schema), "schema": schema}
        cut_key = request_key(asked)
        del asked["max_tokens"]
        wording = Wording(self._dialect, request, schema, name=name, in_words=in_words)
        got = await self._answer((request_key(asked), cut_key), "/chat/completions", wording, about=about)
        if not got.cached and self._dialect.format == "unknown" and got.finish_reason == "stop" and got.text.strip():
            self._dialect.settle(keeps_schema=got.text.lstrip().startswith("{"))
        return got

    async def _await_format(self) -> None:
        """Let the first structured request go ahead for a moment, so that a refusal of schemas is met once."""
        if self._dialect.format != "unknown" or self._llm.batch:
            return
        if not self._probing:
            self._probing = True
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._format_known.wait(), FORMAT_WAIT_SECONDS)

    async def _answer(
        self,
        keys: tuple[str, str],
        path: str,
        wording: Wording,
        *,
        about: str = "",
        parts: tuple[str, ...] = (),
    ) -> Answer:
        """From the store, else from the endpoint and into the store; equal requests at once are one call.

        Args:
            keys: where an answer that ended by itself is stored, and one that was cut at its length limit.
            path: of the API.
            wording: the request.
            about: what it is about.
            parts: its prompt in parts, for embedded servers.
        """
        lock = self._asking.setdefault(keys[1], asyncio.Lock())
        async with lock:
            stored = [found for key in dict.fromkeys(keys) if (found := self._store.get(key)) is not None]
            usable = next((found for found in stored if found.complete or not wording.structured), None)
            if usable is not None:
                self.budget.usage.cached += 1
                return usable
            if wording.structured:
                await self._await_format()
            try:
                with self.budget.call():
                    got = await self._transport.ask(path, wording, keys, about, parts)
                    key = keys[got.finish_reason == "length"]
                    return self._store.put(key, got, replace=bool(stored), call=wording.call(self.place))
            finally:
                self._format_known.set()


def generator_name(llm: settings.LLM) -> str:
    """The model's name as tables record it.

    Raises:
        EmbeddedModelError: the embedded model's file is missing.
    """
    return model_file(llm).stem if llm.embedded else llm.model


@asynccontextmanager
async def open_client(llm: settings.LLM, store_path: Path) -> AsyncIterator[LLMClient]:
    """Open the response store and a client: on the configured endpoint, else on embedded servers started here.

    Args:
        llm: the settings.
        store_path: file of the response store; the embedded model's faster copy is kept next to it.

    Raises:
        EmbeddedModelError: if the embedded server cannot be started.
        ResponseStoreError: if the store cannot be used.
        EndpointError: if the API key cannot be an HTTP header.
        BatchError: if batches are asked of the embedded server.
    """
    if llm.batch and llm.embedded:
        raise BatchError("llm.batch is true and llm.base_url is none: the embedded server takes no batches")
    async with AsyncExitStack() as opened:
        store = opened.enter_context(ResponseStore(store_path))
        if llm.embedded:
            servers = opened.enter_context(embedded_server(llm, store_path.parent / "weights"))
            client = LLMClient(llm, store, base_url=servers.urls, slots=servers.slots)
        else:
            client = LLMClient(llm, store, api_key=settings.llm_api_key())
        yield await opened.enter_async_context(client)


def _with_wish(messages: list[dict[str, Any]], wish: str) -> list[dict[str, Any]]:
    """The conversation with a wish at the end of its last message: some models take no two of the user in a row."""
    return [*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}\n\n{wish}"}]
