from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import pytest

from embed_pipeline.llm.throttle import CUT, FIRST_LIMIT, OPENING_SECONDS, Stopped, Throttle, retry_after


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": formatdate(1_700_000_007, usegmt=True)}, 7.0),
        ({"retry-after": formatdate(1_600_000_000, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(1_900_000_000, usegmt=True)}, 120.0),
        ({"retry-after": "86400"}, 120.0),
        ({"retry-after": "1e999"}, 120.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Tue, 99 Foo 2020 99:99:99 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1_700_000_000) == seconds


def test_a_burst_cuts_once_and_the_next_burst_again() -> None:
    throttle = Throttle(64)
    started = time.monotonic()
    for _ in range(20):
        throttle.refused(started, None)
    assert (throttle.cuts, throttle.refusals, throttle.limit) == (1, 20, FIRST_LIMIT * CUT)
    throttle.refused(time.monotonic() + 1e-3, None)
    assert (throttle.cuts, throttle.limit) == (2, FIRST_LIMIT * CUT * CUT)


def test_after_a_cut_the_limit_grows_by_one_a_round_trip() -> None:
    throttle = Throttle(1000)
    throttle.refused(time.monotonic(), None)
    cut = throttle.limit
    for _ in range(round(cut)):
        throttle.succeeded()
    assert cut + 0.8 < throttle.limit < cut + 1.2


def test_it_opens_without_a_rush() -> None:
    async def run() -> list[float]:
        throttle = Throttle(64)
        starts: list[float] = []

        async def one() -> None:
            async with throttle.slot() as started:
                starts.append(started)
                await asyncio.sleep(0.5)

        await asyncio.gather(*(one() for _ in range(64)))
        return starts

    starts = asyncio.run(run())
    assert starts[FIRST_LIMIT - 1] - starts[0] < 0.05
    opening = starts[-1] - starts[0]
    assert 20 * OPENING_SECONDS < opening < 0.45, "spaced, yet all in flight before the first ends"


def test_the_limit_stays_between_one_and_the_maximum() -> None:
    throttle = Throttle(3)
    assert throttle.limit == 3
    throttle.refused(time.monotonic(), None)
    for _ in range(50):
        throttle.succeeded()
    assert throttle.limit == 3
    for burst in range(50):
        throttle.refused(time.monotonic() + burst + 1, None)
    assert throttle.limit == 1
    with pytest.raises(ValueError, match="max_concurrency is 0"):
        Throttle(0)


async def _peak(throttle: Throttle, count: int) -> int:
    now, peak = 0, 0

    async def one() -> None:
        nonlocal now, peak
        async with throttle.slot():
            now += 1
            peak = max(peak, now)
            await asyncio.sleep(0.002)
            now -= 1

    await asyncio.gather(*(one() for _ in range(count)))
    return peak


def test_no_more_than_the_limit_are_in_flight() -> None:
    assert asyncio.run(_peak(Throttle(5), 40)) == 5


def test_nothing_starts_during_a_pause_and_then_not_all_at_once() -> None:
    async def run() -> tuple[float, list[float]]:
        throttle = Throttle(10)
        paused_at = time.monotonic()
        throttle.pause(0.3)
        starts: list[float] = []

        async def one() -> None:
            async with throttle.slot() as started:
                starts.append(started - paused_at)

        await asyncio.gather(*(one() for _ in range(10)))
        return min(starts), starts

    earliest, starts = asyncio.run(run())
    assert earliest >= 0.3
    assert max(starts) - min(starts) > 0.02


def test_a_learned_rate_spaces_the_starts() -> None:
    async def run() -> tuple[float | None, list[float]]:
        throttle = Throttle(64)
        for _ in range(20):
            async with throttle.slot() as begun:
                throttle.succeeded()
        throttle.refused(begun, 0.5)
        starts: list[float] = []

        async def one() -> None:
            async with throttle.slot() as started:
                starts.append(started)

        await asyncio.gather(*(one() for _ in range(15)))
        return throttle.rate, starts

    rate, starts = asyncio.run(run())
    # Twenty answers, then a wait of half a second: some 40 a second may start, a little less to be safe.
    assert 30 < rate < 40
    assert 14 / 40 * 0.9 < max(starts) - min(starts) < 14 / 30 * 1.5


def test_stop_wakes_those_that_wait() -> None:
    async def run() -> float:
        throttle = Throttle(1)
        throttle.pause(60)

        async def wait() -> None:
            async with throttle.slot():
                pass

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        throttle.stop()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, Stopped) for outcome in outcomes)
        return time.monotonic() - begun

    assert asyncio.run(run()) < 1
