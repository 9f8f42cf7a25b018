from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from embed_pipeline.llm import client as gathering
from embed_pipeline.llm.budget import BudgetExhausted
from embed_pipeline.llm.transport import EndpointError


def _gather(function: Callable[[int], Awaitable[int]], count: int, workers: int) -> tuple[list[int], int]:
    done = 0

    def on_done() -> None:
        nonlocal done
        done += 1

    return asyncio.run(gathering.gather_all(range(count), function, workers, on_done)), done


def test_results_are_in_the_order_of_the_items_whatever_ends_first() -> None:
    async def slow_first(number: int) -> int:
        await asyncio.sleep(0.02 if number % 7 == 0 else 0)
        return number * number

    assert _gather(slow_first, 50, 8) == ([n * n for n in range(50)], 50)
    assert _gather(slow_first, 0, 8) == ([], 0)


def test_only_so_many_are_begun_at_a_time() -> None:
    now, peak = 0, 0

    async def count(number: int) -> int:
        nonlocal now, peak
        now += 1
        peak = max(peak, now)
        await asyncio.sleep(0.001)
        now -= 1
        return number

    _gather(count, 200, 4)
    assert peak == 4


def test_after_an_exhausted_budget_all_in_flight_is_finished_and_nothing_begun() -> None:
    begun: list[int] = []
    finished: list[int] = []

    async def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            await asyncio.sleep(0.01)
            raise BudgetExhausted("cap")
        await asyncio.sleep(0.05)
        finished.append(number)
        return number

    with pytest.raises(BudgetExhausted, match="cap"):
        _gather(work, 100, 5)
    assert sorted(begun) == [0, 1, 2, 3, 4]
    assert sorted(finished) == [0, 1, 3, 4]


def test_after_another_error_what_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "GRACE_SECONDS", 0.1)
    finished: list[int] = []

    async def work(number: int) -> int:
        if number == 2:
            await asyncio.sleep(0.01)
            raise EndpointError("no such model")
        await asyncio.sleep(0.03 if number == 1 else 60)
        finished.append(number)
        return number

    with pytest.raises(EndpointError, match="no such model"):
        _gather(work, 100, 4)
    assert finished == [1]
