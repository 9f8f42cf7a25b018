"""Asking language models: completions, structured answers, and many requests at once with a clean end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from weakref import WeakValueDictionary

from pydantic import BaseModel

from embed_pipeline import settings
from embed_pipeline.llm.answers import (
    Dialect,
    InvalidAnswer,
    explain_problem,
    instruct,
    is_valid,
    parse_answer,
    strict_schema,
)
from embed_pipeline.llm.budget import Budget, BudgetExhausted, Usage
from embed_pipeline.llm.embedded import embedded_server, model_file
from embed_pipeline.llm.store import Answer, ResponseStore, request_key
from embed_pipeline.llm.transport import Transport
from embed_pipeline.progress import progress

MAX_REASKS = 2
_REFUSED = frozenset({"refusal", "content_filter"})
_CHATTY_LOGGERS = ("httpx", "httpx2", "httpcore", "httpcore2", "openai")
T = TypeVar("T", bound=BaseModel)
Completion = Answer
GRACE_SECONDS = 10.0
Item = TypeVar("Item")
Result = TypeVar("Result")


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
        self.budget = Budget(llm)
        self.generator = model_file(llm).stem if llm.embedded else llm.model
        self._llm = llm
        self._store = store
        self._urls = [chosen] if isinstance(chosen, str) else list(chosen)
        self._slots = slots
        self._transport = Transport(llm, self._urls, api_key, self.budget, primed=slots == 1)
        self._dialect = Dialect(llm.structured_outputs)
        self._probing = asyncio.Lock()
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
        """Items worth working on at once: ``llm.max_concurrency``, or the embedded servers' slots if they are fewer."""
        most = self._llm.max_concurrency
        return most if self._slots is None else min(most, self._slots * len(self._urls))

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
        unit: str = "items",
        note: Callable[[], str] | None = None,
    ) -> list[Result]:
        """Run a function that asks this client over many items at once, with progress; results in their order.

        ``function`` turns an :class:`InvalidAnswer` of its item into a result of its own; any exception that it lets
        pass ends the run.

        Args:
            items: what to work on; any number, as only :attr:`concurrency` are begun at a time.
            function: one item's work.
            label: what the progress shows.
            unit: what is counted.
            note: more to show next to usage, such as an acceptance rate.

        Raises:
            TooManyFailures: if over half of the last 40 requests failed after all their tries.
            BudgetExhausted: if a cap is reached; what was in flight is finished and stored first.
            EndpointError: if the endpoint refuses for good.
            ResponseStoreError: if the store fails.
        """
        with progress(label, len(items), unit) as bar:

            def on_done() -> None:
                bar.advance(1, ", ".join([self.usage.line(), *([note()] if note else [])]))

            results = await gather_all(items, function, self.concurrency, on_done)
        self._transport.check_failures(least=1)
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
            The answer; ``finish_reason`` is ``length`` when ``max_tokens`` cut it.

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
        }
        return await self._answer(request_key(request), "/completions", request, None, parts)

    async def structured(
        self,
        messages: list[dict[str, Any]],
        answer: type[T],
        *,
        temperature: float,
        seed: int,
        model: str | None = None,
    ) -> Structured[T]:
        """Ask for an object of a pydantic type; an answer that does not validate is asked for again, twice at most.

        Args:
            messages: the conversation, in the API's form.
            answer: the type; validated strictly, so that no value is coerced.
            temperature: sampling temperature.
            seed: sampling seed.
            model: another model at the same endpoint; None: the generator.

        Raises:
            InvalidAnswer: on a refusal, an answer cut at its length limit or one that stays invalid.
            RequestFailed, EndpointError, BudgetExhausted, ResponseStoreError: as :meth:`complete`.
        """
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
            got = await self._ask_structured(request, answer)
            raw = got.text
            if got.finish_reason in _REFUSED:
                raise InvalidAnswer("refused", f"the model refused to answer ({got.finish_reason})", raw)
            if got.finish_reason == "length":
                reason = "cut_at_length"
                detail = f"the answer was cut at its length limit of {self._llm.max_output_tokens} tokens"
                conversation = [*messages, _user("Your answer was cut at its length limit; answer more briefly.")]
                continue
            try:
                return Structured(value=parse_answer(raw, answer), raw=raw, cached=got.cached)
            except ValueError as error:
                problem = explain_problem(error)
            reason = "invalid_answer"
            detail = f"the answer is not a valid {answer.__name__}: {problem}"
            conversation = [
                *messages,
                {"role": "assistant", "content": raw},
                _user(f"That answer cannot be used: {problem}\nAnswer again with the corrected JSON object alone."),
            ]
        raise InvalidAnswer(reason, detail, raw)

    async def _ask_structured(self, request: dict[str, Any], answer: type[BaseModel]) -> Answer:
        """One structured request, first in turn while it is unknown whether the endpoint has schemas."""
        key = request_key(
            {**request, "messages": instruct(request["messages"], answer), "schema": strict_schema(answer)}
        )
        if self._dialect.format != "unknown":
            return await self._answer(key, "/chat/completions", request, answer)
        async with self._probing:
            got = await self._answer(key, "/chat/completions", request, answer)
            if not got.cached and got.finish_reason == "stop":
                self._dialect.settle(valid=is_valid(got.text, answer))
            return got

    async def _answer(
        self, key: str, path: str, request: dict[str, Any], answer: type[BaseModel] | None, parts: tuple[str, ...] = ()
    ) -> Answer:
        """From the store, else from the endpoint and into the store; equal requests at once are one call."""
        lock = self._asking.setdefault(key, asyncio.Lock())
        async with lock:
            stored = self._store.get(key)
            if stored is not None:
                self.budget.usage.cached += 1
                return stored

            def word() -> dict[str, Any]:
                plain = answer is not None and self._dialect.format == "plain"
                asked = {**request, "messages": instruct(request["messages"], answer)} if plain and answer else request
                return self._dialect.word(asked, answer)

            with self.budget.call():
                got = await self._transport.ask(path, word, self._dialect.adapt, parts)
                return self._store.put(key, got)


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
    """
    async with AsyncExitStack() as opened:
        store = opened.enter_context(ResponseStore(store_path))
        if llm.embedded:
            servers = opened.enter_context(embedded_server(llm, store_path.parent / "weights"))
            client = LLMClient(llm, store, base_url=servers.urls, slots=servers.slots)
        else:
            client = LLMClient(llm, store, api_key=settings.llm_api_key())
        yield await opened.enter_async_context(client)


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def gather_all(
    items: Sequence[Item],
    function: Callable[[Item], Awaitable[Result]],
    workers: int,
    on_done: Callable[[], None],
) -> list[Result]:
    """Run an async function over many items.

    Args:
        items: what to work on; any number, as only ``workers`` are begun at a time.
        function: one item's work.
        workers: items worked on at once.
        on_done: called after every item.

    Returns:
        The results in the order of the items.

    Raises:
        Exception: the first that ``function`` raises. No further item is begun then. What is in flight is waited for,
            so that answers on their way are stored: until its end after BudgetExhausted, else for 10 s.
    """
    gathering = _Gathering(items, function, on_done)
    await gathering.work(min(workers, len(items)))
    return gathering.results()


class _Gathering(Generic[Item, Result]):
    """One gathering: the queue of items, their results, and why it stopped early."""

    def __init__(
        self, items: Sequence[Item], function: Callable[[Item], Awaitable[Result]], on_done: Callable[[], None]
    ) -> None:
        self._function = function
        self._on_done = on_done
        self._queue: Iterator[tuple[int, Item]] = iter(enumerate(items))
        self._count = len(items)
        self._results: dict[int, Result] = {}
        self._stopped_by: Exception | None = None

    async def work(self, workers: int) -> None:
        tasks = [asyncio.create_task(self._worker()) for _ in range(workers)]
        try:
            await self._watch(set(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._stopped_by is not None:
            raise self._stopped_by

    def results(self) -> list[Result]:
        return [self._results[number] for number in range(self._count)]

    async def _watch(self, tasks: set[asyncio.Task[None]]) -> None:
        while tasks:
            interrupted = self._stopped_by is not None and not isinstance(self._stopped_by, BudgetExhausted)
            done, tasks = await asyncio.wait(
                tasks, timeout=GRACE_SECONDS if interrupted else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                # A worker keeps exceptions for work(); what comes through is an interrupt that hit it.
                task.result()
            if interrupted and not done:
                return

    async def _worker(self) -> None:
        for number, item in self._queue:
            if self._stopped_by is not None:
                return
            try:
                self._results[number] = await self._function(item)
            except Exception as error:  # noqa: BLE001 - kept, and raised by work() when the others have ended
                self._stopped_by = self._stopped_by or error
                return
            self._on_done()
