"""Many coroutines at once, with a clean end: after an error, at a cap, and when a person or the system interrupts."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Generic, TypeVar

from embed_pipeline.llm.budget import BudgetExhausted

GRACE_SECONDS = 10.0
"""How long answers on their way are waited for after an error."""
Item = TypeVar("Item")
Result = TypeVar("Result")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptibly(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in an event loop of its own, as ``asyncio.run`` does; Ctrl-C and SIGTERM end it at once.

    A signal handler that raises, as an orchestrator's does, raises in whatever the loop does at that moment, and a task
    or a callback may swallow it. Here a signal cancels the coroutine; once that has closed what it holds, the signal
    goes to the handler that was there before.
    """
    caught: list[int] = []
    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        async def guarded() -> Result:
            task = asyncio.create_task(main)

            def stop(number: int, _: FrameType | None) -> None:
                caught.append(number)
                loop.call_soon_threadsafe(task.cancel)

            with _signals_to(stop):
                return await task

        try:
            result = runner.run(guarded())
        except BaseException:
            if not caught:
                raise
    if caught:
        signal.raise_signal(caught[0])
        raise InterruptedError("interrupted by a signal that was ignored before")
    return result


@contextmanager
def _signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a handler called at an interruption; other threads than the main one get no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former if former is not None else signal.SIG_DFL)


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
