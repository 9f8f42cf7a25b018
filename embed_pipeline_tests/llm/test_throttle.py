"""Concurrency and rate as the throttle learns them, in virtual time."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

import numpy as np
import pytest

from embed_pipeline.llm.throttle import Stopped, Throttle, retry_after
from embed_pipeline_tests.virtual_time import run_in_virtual_time


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": formatdate(1_700_000_007, usegmt=True)}, 7.0),
        ({"retry-after": formatdate(1_600_000_000, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(1_900_000_000, usegmt=True)}, 86_400.0),
        ({"retry-after": "86400"}, 86_400.0),
        ({"retry-after": "1e999"}, 86_400.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Tue, 99 Foo 2020 99:99:99 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1_700_000_000) == seconds


def throttle_of(max_concurrency: int) -> Throttle:
    """A throttle on the clock of the running loop."""
    return Throttle(max_concurrency, asyncio.get_running_loop().time)


async def starts_of(throttle: Throttle, count: int, seconds: float = 0.0) -> list[float]:
    """When each of so many requests starts that are asked for at once and take so long."""
    starts: list[float] = []

    async def one() -> None:
        async with throttle.slot() as started:
            starts.append(started)
            await asyncio.sleep(seconds)

    await asyncio.gather(*(one() for _ in range(count)))
    return starts


def test_a_burst_cuts_once_by_a_quarter_and_the_next_burst_again() -> None:
    now = 5.0
    throttle = Throttle(64, lambda: now)
    assert throttle.concurrency.limit == 12
    for _ in range(20):
        throttle.refused(4.9, None)
    assert (throttle.concurrency.cuts, throttle.refusals, throttle.concurrency.limit) == (1, 20, 9)
    now = 6.0
    throttle.refused(5.1, None)
    assert (throttle.concurrency.cuts, throttle.concurrency.limit) == (2, 6.75)


def test_after_a_cut_the_limit_grows_by_one_a_round_trip() -> None:
    throttle = Throttle(1000, lambda: 0.0)
    throttle.refused(0.0, None)
    for _ in range(9):
        throttle.succeeded()
    assert 9.8 < throttle.concurrency.limit < 10.2


def test_it_opens_without_a_rush() -> None:
    async def run() -> list[float]:
        return await starts_of(throttle_of(64), 64, seconds=60)

    starts = run_in_virtual_time(run())
    assert starts[:12] == [0.0] * 12
    assert starts.count(0.0) <= 24, "a second dozen at most, by the credit of a wake-up that came late"
    assert np.diff(starts[25:50]) == pytest.approx([0.004] * 24)
    assert starts[-1] < 60, "all are in flight before the first ends"


def test_the_limit_stays_between_one_and_the_maximum() -> None:
    throttle = Throttle(3, lambda: 0.0)
    assert throttle.concurrency.limit == 3
    throttle.refused(0.0, None)
    for _ in range(50):
        throttle.succeeded()
    assert throttle.concurrency.limit == 3
    for burst in range(50):
        throttle.refused(burst + 1.0, None)
    assert throttle.concurrency.limit == 1
    with pytest.raises(ValueError, match="max_concurrency is 0"):
        Throttle(0)


def test_no_more_than_the_limit_are_in_flight() -> None:
    async def run() -> list[float]:
        return await starts_of(throttle_of(5), 40, seconds=1.0)

    assert run_in_virtual_time(run()) == [float(number // 5) for number in range(40)]


def test_nothing_starts_during_a_pause_and_then_not_all_at_once() -> None:
    async def run() -> list[float]:
        throttle = throttle_of(10)
        throttle.pause(0.3)
        return await starts_of(throttle, 10)

    starts = run_in_virtual_time(run())
    assert starts[0] == pytest.approx(0.3)
    # Half the pause, divided among the ten.
    assert np.diff(starts) == pytest.approx([0.015] * 9)


def test_a_learned_rate_spaces_the_starts() -> None:
    async def run() -> tuple[float | None, list[float]]:
        throttle = throttle_of(64)
        for _ in range(20):
            async with throttle.slot() as begun:
                throttle.succeeded()
        throttle.refused(begun, 0.5)
        await asyncio.sleep(0.5)
        return throttle.rate, await starts_of(throttle, 15)

    rate, starts = run_in_virtual_time(run())
    # Twenty answers, then a wait of half a second: some 40 a second may start, a little less to be safe.
    assert rate is not None
    assert 35 < rate < 40
    assert np.diff(starts) == pytest.approx([1 / rate] * 14, rel=0.02)


def test_stop_wakes_those_that_wait() -> None:
    async def run() -> float:
        throttle = throttle_of(1)
        throttle.pause(60)
        waiting = [asyncio.create_task(starts_of(throttle, 1)) for _ in range(3)]
        await asyncio.sleep(1)
        throttle.stop()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, Stopped) for outcome in outcomes)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(run()) == 1
