"""How many requests are in flight, and how fast they start: learned from the endpoint's own answers.

The first dozen requests start at once and the others a few milliseconds apart, up to ``max_concurrency``: a limit then
shows before many requests run into it. The first 429 cuts the concurrency by a quarter; from then on it grows by one a
round trip. The 429s of requests that started before a cut belong to the same burst and cut nothing again.

Where a 429 shows a limit on requests a second, that rate is learned from the answers that came through and starts are
spaced by it; like CUBIC (RFC 9438) the rate dwells just below what was refused, then probes ever faster, so that a
fixed limit is rarely hit and a lifted one soon forgotten.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime

FIRST_LIMIT = 12
OPENING_SECONDS = 0.004
CUT = 0.75
MAX_PAUSE_SECONDS = 120.0
MIN_RATE = 0.5
_RATE_WINDOW_SECONDS = 10.0
_MIN_RATE_SAMPLES = 8
_BELOW_MEASURED = 0.97
_DIP = 0.06
_PLATEAU_SECONDS = 20.0
_MAX_SPREAD_SECONDS = 2.0
_MAX_CREDIT_SECONDS = 0.05


class Stopped(Exception):  # noqa: N818 - a signal between the parts of this room, never seen by callers
    """The throttle was told to let nothing more through."""


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a response asks to wait: ``retry-after-ms``, ``retry-after`` in seconds or as an HTTP date.

    Args:
        headers: the response's headers, names in lower case or case-insensitive.
        now: wall-clock time in seconds since the epoch, for dates; None: the present.

    Returns:
        Between 0 and 120 s (a longer wait, or an infinite one, is cut to that); None where there is no such header or
        it says nothing usable (NaN, negative seconds, words).
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None and milliseconds >= 0:
        return min(milliseconds / 1000, MAX_PAUSE_SECONDS)
    text = headers.get("retry-after", "")
    seconds = _number(text)
    seconds = _until(text, now) if seconds is None else seconds
    if seconds is not None and seconds >= 0:
        return min(seconds, MAX_PAUSE_SECONDS)
    return None


class Throttle:
    """Lets requests start within a learned concurrency and rate; for one event loop.

    Attributes:
        limit: requests that may be in flight now, between 1 and ``max_concurrency``.
        cuts: how often a burst of 429s has cut the limit.
        refusals: 429s altogether.
    """

    def __init__(self, max_concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start low.

        Args:
            max_concurrency: upper bound of requests in flight, at least 1.
            clock: gives the time in seconds; that of the event loop in which the requests run.

        Raises:
            ValueError: if it is below 1.
        """
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency is {max_concurrency}; it must be at least 1")
        self.limit = float(min(FIRST_LIMIT, max_concurrency))
        self.cuts = 0
        self.refusals = 0
        self._max = max_concurrency
        self._clock = clock
        self._in_flight = 0
        self._cut_at = -math.inf
        self._not_before = -math.inf
        self._spread = 0.0
        self._last_start = -math.inf
        self._first_start = math.inf
        self._gate = asyncio.Lock()
        self._plateau: float | None = None
        self._refused_rate = math.inf
        self._measured_until = -math.inf
        self._successes: deque[float] = deque()
        self._freed = asyncio.Condition()
        self._stop = asyncio.Event()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float]:
        """Wait for a turn and hold it while the block runs; yields the start time (seconds of the clock).

        Raises:
            Stopped: if :meth:`stop` was called before the turn came.
        """
        async with self._freed:
            await self._freed.wait_for(lambda: self._in_flight < int(self.limit) or self._stop.is_set())
            self._in_flight += 1
        try:
            await self._await_start()
            yield self._clock()
        finally:
            self._in_flight -= 1
            async with self._freed:
                self._freed.notify(2)

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

    def succeeded(self) -> None:
        """Count an answer; after a cut the limit grows, by one a round trip."""
        now = self._clock()
        self._successes.append(now)
        while self._successes and self._successes[0] < now - _RATE_WINDOW_SECONDS:
            self._successes.popleft()
        if now < self._measured_until:
            # It started before the refusal: one more that the endpoint let through in that time.
            self._learn_rate(self._measured_until)
        if self.cuts:
            self.limit = min(self.limit + 1.0 / self.limit, float(self._max))

    def refused(self, started: float, wait: float | None) -> None:
        """Count a 429: one cut a burst, and nothing starts before ``wait`` seconds are over.

        Args:
            started: when the refused request started (what :meth:`slot` yielded).
            wait: seconds that the response asked for; None: it asked for none.
        """
        now = self._clock()
        self.refusals += 1
        if started > self._cut_at:
            self.cuts += 1
            self._refused_rate = self.rate or math.inf
            # The first refusal says: so many since the start, in this time and the wait together. Later ones follow a
            # known pace.
            self._measured_until = now + (wait or 0.0) if self._plateau is None else now
            self._learn_rate(self._measured_until)
            self._cut_at = now
            self.limit = max(1.0, self.limit * CUT)
        self.pause(wait or 0.0)

    def pause(self, seconds: float) -> None:
        """Let nothing start for some seconds, at most 120."""
        until = self._clock() + min(seconds, MAX_PAUSE_SECONDS)
        if until > self._not_before:
            self._not_before = until
            self._spread = min(seconds / 2, _MAX_SPREAD_SECONDS)

    def stop(self) -> None:
        """Let nothing more through, and wake all that wait."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """True once :meth:`stop` was called."""
        return self._stop.is_set()

    @property
    def rate(self) -> float | None:
        """Requests that may start a second, as learned; None: no limit met."""
        if self._plateau is None:
            return None
        age = self._clock() - self._cut_at
        return max(MIN_RATE, self._plateau * (1 + _DIP * ((age - _PLATEAU_SECONDS) / _PLATEAU_SECONDS) ** 3))

    def _learn_rate(self, until: float) -> None:
        """Set the rate that is dwelt at: what came through up to a moment, or what was refused, whichever is less."""
        if len(self._successes) < _MIN_RATE_SAMPLES:
            return
        begun = self._successes[0]
        if math.isinf(self._refused_rate):
            begun = max(self._first_start, begun - _RATE_WINDOW_SECONDS)
        measured = len(self._successes) / max(until - begun, 1e-3)
        self._plateau = _BELOW_MEASURED * min(measured, self._refused_rate)

    async def _await_start(self) -> None:
        """Sleep out a shared pause, then this request's place in the pace, one request after another."""
        async with self._gate:
            while True:
                if self._stop.is_set():
                    raise Stopped
                now = self._clock()
                due = max(self._not_before, self._last_start + self._spacing(now))
                if due <= now:
                    break
                await self.sleep(due - now)
            # What a late wake-up lost is made up for, within bounds.
            self._last_start = max(due, now - _MAX_CREDIT_SECONDS)
            self._first_start = min(self._first_start, now)
        if not self.cuts and self.limit < self._max:
            self.limit = min(self.limit + 1.0, float(self._max))
            async with self._freed:
                self._freed.notify()

    def _spacing(self, now: float) -> float:
        """Seconds between two starts: by the learned rate, else so that neither opening nor a pause ends in a rush."""
        rate = self.rate
        if rate is not None:
            return 1 / rate
        if now < self._not_before + self._spread:
            return self._spread / self.limit
        opening = not self.cuts and self._in_flight > FIRST_LIMIT and self.limit < self._max
        return OPENING_SECONDS if opening else 0.0


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _until(text: str, now: float | None) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))
