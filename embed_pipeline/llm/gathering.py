"""Working on many items at once: bounded workers, results in order, a clean end when something stops the run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, TypeVar

from embed_pipeline.llm.errors import BudgetExhausted

GRACE_SECONDS = 10.0

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    run = _Run(items, function, on_done)
    await run.work(min(workers, len(items)))
    return run.results()


class _Run(Generic[Item, Result]):
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
            hurried = self._stopped_by is not None and not isinstance(self._stopped_by, BudgetExhausted)
            done, tasks = await asyncio.wait(
                tasks, timeout=GRACE_SECONDS if hurried else None, return_when=asyncio.FIRST_COMPLETED
            )
            if hurried and not done:
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
