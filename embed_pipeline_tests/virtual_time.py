"""Coroutines in virtual time: waiting takes none, and says exactly how long it would have taken."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Clock(selectors.DefaultSelector):
    """A selector that never waits: where nothing is ready, its time moves on to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("every task waits for another: this would never end")
        self.now += timeout if not ready and timeout else 0.0
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run_in_virtual_time(main: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``main``; ``asyncio.get_running_loop().time`` is the clock, from 0."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(main)
