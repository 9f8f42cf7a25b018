"""Waiting texts merged into batches of like length, and the batches run: alone over all cores, or side by side."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.reading import Row
from embed_pipeline.serving.serving_errors import RequestError

logger = logging.getLogger(__name__)
# A batch on one core has at least so many tokens, if they are there: for fewer its start takes longest.
_LANE_TOKENS = 64
# Weight of the newest batch in the running estimate of tokens a second.
_NEWEST = 0.2
_MAX_RETRY_SECONDS = 60
Floats = NDArray[np.float32]


class Infer(Protocol):
    """A backend's :meth:`~embed_pipeline.embedding.backend.Backend.infer`."""

    def __call__(self, ids: Sequence[Row], *, alone: bool) -> Floats:
        """Vectors of rows of token ids."""


class Batcher:
    """A bounded queue in front of a model, and the threads that empty it."""

    def __init__(
        self,
        infer: Infer,
        *,
        lanes: int,
        batch_tokens: int,
        most_padding: int,
        max_queue_tokens: int,
        metrics: Metrics,
        cores: Cores,
    ) -> None:
        """Start the threads.

        Args:
            infer: rows of token ids to vectors; ``alone``: over all cores, else on one.
            lanes: batches that may run side by side; 1: one at a time, alone.
            batch_tokens: tokens in a batch, padding included; a longer row is a batch of its own.
            most_padding: tokens by which a batch's rows may differ in length.
            max_queue_tokens: tokens that may wait.
            metrics: what is counted.
            cores: shared with other models.
        """
        self._infer, self._lanes, self._cores, self._metrics = infer, lanes, cores, metrics
        self._batch_tokens, self._max_queue_tokens = batch_tokens, max_queue_tokens
        self._alone = self._beside = 0
        self._condition = threading.Condition()
        self._waiting = WaitingTexts(most_padding)
        self._reserved = 0
        self._rate = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"inference-{lane}", daemon=True) for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def reservation(self, tokens: int) -> Iterator[None]:
        """Hold room for about ``tokens`` tokens of a request while it is tokenised and submitted.

        Raises:
            RequestError: 429, when others fill the queue.
        """
        with self._condition:
            self._check_room(tokens, self._waiting.tokens + self._reserved)
            self._reserved += tokens
            self._measure()
        try:
            yield
        finally:
            with self._condition:
                self._reserved -= tokens
                self._measure()
                if self._closing:
                    self._condition.notify_all()

    def submit(self, rows: Sequence[Row], reserved: int) -> PendingRequest:
        """Queue rows of token ids; to be called on the event loop that awaits ``Job.future``.

        Args:
            rows: token ids of the texts.
            reserved: what the reservation around this call holds.

        Raises:
            RequestError: 429, when others fill the queue.
        """
        future: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        tokens = sum(len(row) for row in rows)
        with self._condition:
            self._check_room(tokens, self._waiting.tokens + self._reserved - reserved)
            job = self._waiting.add(rows, tokens, future)
            self._measure()
            self._condition.notify(len(rows))
        return job

    def drop(self, job: PendingRequest) -> None:
        """Forget what of ``job`` still waits; nobody wants it any more."""
        with self._condition:
            self._waiting.forget({job})
            self._measure()
            job.unfinished = -1
        job.future.cancel()

    def close(self) -> None:
        """Finish what waits, then stop the threads."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _check_room(self, tokens: int, taken: int) -> None:
        # A lone request is never refused: its estimate may be far too high.
        if not taken or taken + tokens <= self._max_queue_tokens:
            return
        self._metrics.rejected.inc()
        seconds = math.ceil(taken / self._rate) if self._rate else 1
        retry = str(min(max(seconds, 1), _MAX_RETRY_SECONDS))
        message = f"{taken} tokens wait already, of at most {self._max_queue_tokens}; try again in {retry} s"
        raise RequestError(429, message, code="rate_limit_exceeded", headers={"Retry-After": retry})

    def _measure(self) -> None:
        self._metrics.queue_tokens.set(self._waiting.tokens + self._reserved)
        self._metrics.queue_texts.set(len(self._waiting))

    def _run(self) -> None:
        while taken := self._next_batch():
            batch, alone = taken
            try:
                self._run_batch(batch, alone=alone)
            except Exception as error:
                # Whatever the runtime raises belongs to the requests of this batch; the thread serves the others.
                logger.exception("a batch of %d texts failed", len(batch))
                self._fail(batch, error)
            with self._condition:
                self._alone -= alone
                self._beside -= not alone
                if alone:
                    # The others may have been held back by this one.
                    self._condition.notify_all()

    def _run_batch(self, batch: list[Waiting], *, alone: bool) -> None:
        rows = [job.rows[index] for _, _, job, index in batch]
        with self._cores.taken(all_of_them=self._lanes == 1):
            started = time.monotonic()
            vectors = self._infer(rows, alone=alone)
            seconds = time.monotonic() - started
        self._record(batch, started, seconds, beside=1 if alone else self._lanes)
        self._deliver(batch, vectors)

    def _next_batch(self) -> tuple[list[Waiting], bool] | None:
        """Wait for work and take a batch of it, and whether it is to run alone; None once closed and done."""
        with self._condition:
            while (alone := self._next_alone()) is None:
                if self._closing and not self._waiting and not self._reserved:
                    return None
                self._condition.wait()
            batch = self._waiting.take(self._batch_tokens if alone else self._share())
            self._alone += alone
            self._beside += not alone
            self._measure()
            return batch, alone

    def _next_alone(self) -> bool | None:
        """Whether the next batch is to run alone; None: there is none, or it must wait for one that does.

        With fewer batches than half the cores, one after another over all of them is done sooner.
        """
        if not self._waiting:
            return None
        if self._lanes == 1:
            return True
        separate = max(1, min(len(self._waiting), self._waiting.tokens // _LANE_TOKENS))
        if self._beside or 2 * (separate + self._alone) > self._lanes:
            return False
        return None if self._alone else True

    def _share(self) -> int:
        """Tokens for one of the idle lanes, of those that wait."""
        idle = self._lanes - self._alone - self._beside
        return min(self._batch_tokens, max(_LANE_TOKENS, math.ceil(self._waiting.tokens / idle)))

    def _record(self, batch: list[Waiting], started: float, seconds: float, *, beside: int) -> None:
        tokens = sum(length for length, *_ in batch)
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_rows.observe(len(batch))
        self._metrics.batch_tokens.observe(len(batch) * batch[-1][0])
        self._metrics.tokens.inc(tokens)
        for _, _, job, _ in batch:
            self._metrics.queue_seconds.observe(started - job.since)
        rate = beside * tokens / max(seconds, 1e-9)
        with self._condition:
            self._rate = rate if not self._rate else (1 - _NEWEST) * self._rate + _NEWEST * rate

    def _deliver(self, batch: list[Waiting], vectors: Floats) -> None:
        wrong = [batch[row] for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1))]
        if wrong:
            logger.error("the model gave %d vectors that are not finite", len(wrong))
            self._fail(wrong, FloatingPointError("the model gave a vector that is not finite"))
        whole: list[PendingRequest] = []
        with self._condition:
            for (_, _, job, index), vector in zip(batch, vectors, strict=True):
                job.vectors[index] = vector
                job.unfinished -= 1
                # A job that was dropped or has failed counts below zero.
                if not job.unfinished:
                    whole.append(job)
        for job in whole:
            done = np.stack([row for row in job.vectors if row is not None])
            job.future.get_loop().call_soon_threadsafe(_resolve, job.future, done)

    def _fail(self, batch: list[Waiting], error: Exception) -> None:
        jobs = {job for _, _, job, _ in batch}
        with self._condition:
            self._waiting.forget(jobs)
            self._measure()
            for job in jobs:
                job.unfinished = -1
        for job in jobs:
            job.future.get_loop().call_soon_threadsafe(_refuse, job.future, error)


def _resolve(future: asyncio.Future[Floats], vectors: Floats) -> None:
    if not future.done():
        future.set_result(vectors)


def _refuse(future: asyncio.Future[Floats], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


@dataclass(eq=False)
class PendingRequest:
    """The texts of one request, waiting for their vectors.

    Attributes:
        rows: token ids.
        future: gets float32 (len(rows), dimensions), or the error.
    """

    rows: Sequence[Row]
    future: asyncio.Future[Floats]
    first: int
    vectors: list[Floats | None]
    since: float = field(default_factory=time.monotonic)
    next: int = 0
    waiting: int = 0
    unfinished: int = 0


# Length, sequence number, job and position in it; sorted by the first two.
Waiting = tuple[int, int, PendingRequest, int]


class WaitingTexts:
    """What waits; not safe for threads by itself.

    Attributes:
        tokens: of all texts that wait.
    """

    def __init__(self, most_padding: int) -> None:
        """Begin empty.

        Args:
            most_padding: tokens by which a batch's rows may differ in length.
        """
        self.tokens = 0
        self._most_padding = most_padding
        self._sorted: list[Waiting] = []
        self._turns: deque[PendingRequest] = deque()
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, rows: Sequence[Row], tokens: int, future: asyncio.Future[Floats]) -> PendingRequest:
        """The texts of a request, of so many tokens together, whose vectors are for ``future``."""
        first = self._sequence
        self._sequence += len(rows)
        job = PendingRequest(rows, future, first, [None] * len(rows), waiting=len(rows), unfinished=len(rows))
        self._sorted.extend((len(row), first + index, job, index) for index, row in enumerate(rows))
        self._sorted.sort()
        self._turns.append(job)
        self.tokens += tokens
        return job

    def take(self, budget: int) -> list[Waiting]:
        """A batch of at most ``budget`` tokens with its padding, or of one text; something must wait."""
        start, stop = self._bounds(self._anchor(), budget)
        batch = self._sorted[start:stop]
        del self._sorted[start:stop]
        for length, _, job, _ in batch:
            job.waiting -= 1
            self.tokens -= length
        return batch

    def forget(self, jobs: set[PendingRequest]) -> None:
        """Drop what of ``jobs`` still waits."""
        gone = [entry for entry in self._sorted if entry[2] in jobs]
        if gone:
            self._sorted = [entry for entry in self._sorted if entry[2] not in jobs]
            self.tokens -= sum(length for length, *_ in gone)
        for job in jobs:
            job.waiting = 0

    def _anchor(self) -> int:
        """Place of the row that starts the next batch: the first one waiting of the request whose turn it is."""
        job = self._turns.popleft()
        while not job.waiting:
            job = self._turns.popleft()
        while True:
            key = (len(job.rows[job.next]), job.first + job.next)
            place = bisect_left(self._sorted, key, key=lambda entry: entry[:2])
            job.next += 1
            if place < len(self._sorted) and self._sorted[place][:2] == key:
                break
        if job.waiting > 1:
            self._turns.append(job)
        return place

    def _bounds(self, anchor: int, budget: int) -> tuple[int, int]:
        """Slice of the waiting rows around ``anchor`` that fits a batch: shorter ones first, then longer ones."""
        lengths, start, stop = self._sorted, anchor, anchor + 1
        longest = lengths[anchor][0]
        while start and (stop - start + 1) * longest <= budget:
            if lengths[start - 1][0] + self._most_padding < longest:
                break
            start -= 1
        while stop < len(lengths) and (stop - start + 1) * lengths[stop][0] <= budget:
            if lengths[start][0] + self._most_padding < lengths[stop][0]:
                break
            stop += 1
        return start, stop


class Cores:
    """So many inferences on one core each at once, or one over all of them; first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = self._count = count
        self._condition = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def taken(self, *, all_of_them: bool) -> Iterator[None]:
        """Hold one core, or all, once they are free."""
        wanted, ticket = self._count if all_of_them else 1, object()
        with self._condition:
            self._waiting.append(ticket)
            self._condition.wait_for(lambda: self._waiting[0] is ticket and self._free >= wanted)
            self._waiting.popleft()
            self._free -= wanted
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._free += wanted
                self._condition.notify_all()
