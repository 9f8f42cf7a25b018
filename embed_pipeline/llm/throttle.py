"""How many requests are in flight, and how fast they start: learned from the endpoint's own answers.

Two things are learned. :class:`ConcurrencyLimit` bounds the requests in flight, as TCP bounds its window (RFC 5681):
in slow start it grows by one with every request that starts; the first 429 cuts it by a quarter, and from then on it
grows by one per round trip. The 429s of requests that started before a cut belong to the same burst and cut nothing
again.

:class:`LearnedRate` spaces the starts where 429s show a limit on requests per second. It is measured from the answers
that came through; like CUBIC (RFC 9438) it then stays just below the rate that was refused and later probes ever
faster, so that a fixed limit is rarely hit and a lifted one is soon forgotten.

:class:`Throttle` applies both, and the pauses that the endpoint asks for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

# Concurrency: the first dozen requests start at once, the others of slow start a few milliseconds apart.
INITIAL_CONCURRENCY = 12
CUT_FACTOR = 0.75
SLOW_START_SPACING_SECONDS = 0.004

# Rate, in requests per second.
MIN_RATE = 0.5
_MEASURED_SECONDS = 10.0
_MIN_MEASURED_ANSWERS = 8
_PLATEAU_FACTOR = 0.97
_CUBIC_DEPTH = 0.06
_CUBIC_SECONDS = 20.0

# Pauses and late wake-ups.
MAX_PAUSE_SECONDS = 900.0
_LONGEST_WAIT_SECONDS = 24 * 3600.0
_MAX_RAMP_SECONDS = 2.0
_MAX_CATCH_UP_SECONDS = 0.05


class Stopped(Exception):  # noqa: N818 - a signal between the parts of this room, never seen by callers
    """The throttle was told to let nothing more through."""


class Throttle:
    """Lets requests start within a learned concurrency and rate; for one event loop.

    Attributes:
        concurrency: the limit on requests in flight.
        refusals: 429s altogether.
    """

    def __init__(self, max_concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin in slow start, with no limit on the rate.

        Args:
            max_concurrency: upper bound of requests in flight, at least 1.
            clock: gives the time in seconds; that of the event loop in which the requests run.

        Raises:
            ValueError: if ``max_concurrency`` is below 1.
        """
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency is {max_concurrency}; it must be at least 1")
        self.concurrency = ConcurrencyLimit(max_concurrency)
        self.refusals = 0
        self._learned_rate = LearnedRate()
        self._clock = clock
        self._in_flight = 0
        self._freed = asyncio.Condition()
        self._starting = asyncio.Lock()
        self._last_start = -math.inf
        self._paused_until = -math.inf
        self._ramp_seconds = 0.0
        self._stop = asyncio.Event()

    @property
    def rate(self) -> float | None:
        """Requests that may start per second, as learned; None: no limit was met."""
        return self._learned_rate.current(self._clock())

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a turn and hold it while the block runs; yields the start time (seconds of the clock).

        Raises:
            Stopped: if :meth:`stop` was called before the turn came.
        """
        async with self._freed:
            await self._freed.wait_for(lambda: self._in_flight < int(self.concurrency.limit) or self._stop.is_set())
            self._in_flight += 1
        try:
            await self._await_start()
            yield self._clock()
        finally:
            self._in_flight -= 1
            async with self._freed:
                self._freed.notify(2)

    def succeeded(self) -> None:
        """Count an answer: the rate is measured from them, and after a cut the concurrency grows."""
        self._learned_rate.answered(self._clock())
        self.concurrency.answered()

    def refused(self, started: float, wait: float | None) -> None:
        """Count a 429: one cut per burst, and nothing starts before ``wait`` seconds have passed.

        Args:
            started: when the refused request started (what :meth:`slot` yielded).
            wait: seconds that the response asked for; None: it asked for none.
        """
        now = self._clock()
        self.refusals += 1
        if started > self.concurrency.cut_at:
            self._learned_rate.refused(now, wait or 0.0)
            self.concurrency.cut(now)
        self.pause(wait or 0.0)

    def pause(self, seconds: float) -> None:
        """Let nothing start for some seconds, at most 900."""
        until = self._clock() + min(seconds, MAX_PAUSE_SECONDS)
        if until > self._paused_until:
            self._paused_until = until
            self._ramp_seconds = min(seconds / 2, _MAX_RAMP_SECONDS)

    async def sleep(self, seconds: float) -> None:
        """Sleep, unless stopped.

        Raises:
            Stopped: as soon as :meth:`stop` is called, or was called before.
        """
        try:
            await asyncio.wait_for(self._stop.wait(), max(seconds, 0.0))
        except TimeoutError:
            return
        raise Stopped

    def stop(self) -> None:
        """Let nothing more through, and wake all that wait."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """True once :meth:`stop` was called."""
        return self._stop.is_set()

    async def _await_start(self) -> None:
        """Wait for the end of a pause and for the spacing after the last start, one request after another."""
        async with self._starting:
            while True:
                if self._stop.is_set():
                    raise Stopped
                now = self._clock()
                due = max(self._paused_until, self._last_start + self._spacing(now))
                if due <= now:
                    break
                await self.sleep(due - now)
            # A late wake-up is made up for, within bounds.
            self._last_start = max(due, now - _MAX_CATCH_UP_SECONDS)
            self._learned_rate.started(now)
        if self.concurrency.slow_start:
            self.concurrency.started()
            async with self._freed:
                self._freed.notify()

    def _spacing(self, now: float) -> float:
        """Seconds between two starts: by the learned rate; without one, enough to avoid a rush after a pause."""
        rate = self._learned_rate.current(now)
        if rate is not None:
            return 1 / rate
        if now < self._paused_until + self._ramp_seconds:
            return self._ramp_seconds / self.concurrency.limit
        crowded = self._in_flight > INITIAL_CONCURRENCY
        return SLOW_START_SPACING_SECONDS if crowded and self.concurrency.slow_start else 0.0


class ConcurrencyLimit:
    """How many requests may be in flight: slow start until the first cut, then one more per round trip.

    Attributes:
        limit: requests that may be in flight now, between 1 and the maximum; its whole part counts.
        cuts: how often a burst of 429s has cut it.
        cut_at: when it was last cut, in seconds of the clock.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = float(maximum)
        self.limit = min(float(INITIAL_CONCURRENCY), self._maximum)
        self.cuts = 0
        self.cut_at = -math.inf

    @property
    def slow_start(self) -> bool:
        """True before the first cut, as long as there is room to grow."""
        return not self.cuts and self.limit < self._maximum

    def started(self) -> None:
        """Grow by one for a request that started in slow start."""
        self.limit = min(self.limit + 1.0, self._maximum)

    def answered(self) -> None:
        """After a cut, grow by one per round trip, a share of it with each answer."""
        if self.cuts:
            self.limit = min(self.limit + 1.0 / self.limit, self._maximum)

    def cut(self, now: float) -> None:
        """Cut by a quarter."""
        self.cuts += 1
        self.cut_at = now
        self.limit = max(1.0, self.limit * CUT_FACTOR)


class LearnedRate:
    """How many requests per second an endpoint lets through.

    *No limit met*: until a 429, and until there are enough answers to measure by, there is no rate.
    *Measuring*: the first 429 and its wait say how many requests pass in the time from the first start to the end of
    the wait; answers that arrive during the wait still count.
    *Cubic*: the rate rises to a plateau just below what was measured or refused, stays near it, then probes beyond it.
    """

    def __init__(self) -> None:
        self._answers: deque[float] = deque()
        self._first_start = math.inf
        self._measured_until = -math.inf
        self._refused_rate = math.inf
        self._refused_at = -math.inf
        self._plateau: float | None = None

    def current(self, now: float) -> float | None:
        """Requests that may start per second; None: no limit was met."""
        if self._plateau is None:
            return None
        cubic = ((now - self._refused_at - _CUBIC_SECONDS) / _CUBIC_SECONDS) ** 3
        return max(MIN_RATE, self._plateau * (1 + _CUBIC_DEPTH * cubic))

    def started(self, now: float) -> None:
        """Note that a request starts."""
        self._first_start = min(self._first_start, now)

    def answered(self, now: float) -> None:
        """Count an answer."""
        self._answers.append(now)
        while self._answers[0] < now - _MEASURED_SECONDS:
            self._answers.popleft()
        if now < self._measured_until:
            # It started before the refusal: one more that the endpoint let through in that time.
            self._measure(self._measured_until)

    def refused(self, now: float, wait: float) -> None:
        """Learn from the first 429 of a burst, which asks to wait for some seconds."""
        self._refused_rate = self.current(now) or math.inf
        # Only the first refusal counts its wait: requests after it start at a known rate.
        self._measured_until = now + wait if self._plateau is None else now
        self._measure(self._measured_until)
        self._refused_at = now

    def _measure(self, until: float) -> None:
        """Set the plateau: just below what came through up to a moment or what was refused, whichever is less."""
        if len(self._answers) < _MIN_MEASURED_ANSWERS:
            return
        begun = self._answers[0]
        if math.isinf(self._refused_rate):
            begun = max(self._first_start, begun - _MEASURED_SECONDS)
        measured = len(self._answers) / max(until - begun, 1e-3)
        self._plateau = _PLATEAU_FACTOR * min(measured, self._refused_rate)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a response asks to wait: ``retry-after-ms``, ``retry-after`` in seconds or as an HTTP date.

    Args:
        headers: the response's headers, names in lower case or case-insensitive.
        now: wall-clock time in seconds since the epoch, for dates; None: the present.

    Returns:
        Between 0 s and a day (a longer wait, or an infinite one, is cut to that); None where there is no such header or
        it says nothing usable (NaN, negative seconds, words).
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None and milliseconds >= 0:
        return min(milliseconds / 1000, _LONGEST_WAIT_SECONDS)
    text = headers.get("retry-after", "")
    seconds = _number(text)
    seconds = _seconds_until(text, now) if seconds is None else seconds
    if seconds is not None and seconds >= 0:
        return min(seconds, _LONGEST_WAIT_SECONDS)
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _seconds_until(text: str, now: float | None) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))
