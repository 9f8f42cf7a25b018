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
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.reading import Row
from embed_pipeline.serving.serving_errors import RequestError

logger = logging.getLogger(__name__)
# Fewest tokens of a batch on one core, where so many wait: below this, starting the batch takes longer than running it.
_MIN_LANE_TOKENS = 64
_NEWEST_BATCH_WEIGHT = 0.2
"""Weight of the newest batch in the running means of tokens and batches a second."""
_MAX_RETRY_SECONDS = 60
Floats = NDArray[np.float32]


class Infer(Protocol):
    """A backend's :meth:`~embed_pipeline.embedding.backend.Backend.infer`."""

    def __call__(self, ids: Sequence[Row], *, alone: bool) -> Floats:
        """Vectors of rows of token ids."""


class NextBatch(Enum):
    """How the next batch is to run."""

    ALONE = "over all cores, while no other batch runs"
    SIDE_BY_SIDE = "on one core, next to other batches"
    WAIT = "not now: no text waits, or a batch that runs alone has to end first"


class Batcher:
    """A bounded queue in front of a model, and the threads that empty it."""

    def __init__(
        self,
        infer: Infer,
        *,
        lanes: int,
        batch_tokens: int,
        max_padding: int,
        max_queue_tokens: int,
        max_queue_seconds: float,
        metrics: Metrics,
        cores: Cores,
    ) -> None:
        """Start the threads.

        Args:
            infer: rows of token ids to vectors; ``alone``: over all cores, else on one.
            lanes: batches that may run side by side; 1: one at a time, alone.
            batch_tokens: tokens in a batch, padding included; a longer row is a batch of its own.
            max_padding: tokens by which a batch's rows may differ in length.
            max_queue_tokens: tokens that may wait.
            max_queue_seconds: how long a request may have to wait for those before it.
            metrics: the endpoint's counters.
            cores: shared with other models.
        """
        self._infer, self._lanes, self._cores, self._metrics = infer, lanes, cores, metrics
        self._batch_tokens = batch_tokens
        self._max_queue_tokens, self._max_queue_seconds = max_queue_tokens, max_queue_seconds
        self._running_alone = self._running_side_by_side = 0
        self._condition = threading.Condition()
        self._waiting = WaitingTexts(max_padding)
        self._reserved = 0
        # Of batches that left others waiting: a lone short text says nothing about a full queue.
        self._tokens_per_second = self._batches_per_second = 0.0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"inference-{lane}", daemon=True) for lane in range(lanes)
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def reservation(self, texts: int, tokens: int) -> Iterator[None]:
        """Hold room for a request of so many texts, and about so many tokens, while it is tokenised and submitted.

        Raises:
            RequestError: 429, when others fill the queue; 503, when the queue is closed: nobody would empty it.
        """
        with self._condition:
            if self._closing:
                raise RequestError(503, "another release is served by now; try again", headers={"Retry-After": "1"})
            self._check_room(texts, tokens, self._waiting.tokens + self._reserved)
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
        """Queue rows of token ids; to be called on the event loop that awaits :attr:`PendingRequest.future`.

        Args:
            rows: token ids of the texts.
            reserved: what the reservation around this call holds.

        Raises:
            RequestError: 429, when others fill the queue.
        """
        future: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        tokens = sum(len(row) for row in rows)
        with self._condition:
            self._check_room(len(rows), tokens, self._waiting.tokens + self._reserved - reserved)
            request = self._waiting.add(rows, tokens, future)
            self._measure()
            self._condition.notify(len(rows))
        return request

    def drop(self, request: PendingRequest) -> None:
        """Remove the waiting texts of ``request``, whose client has left."""
        with self._condition:
            self._waiting.remove({request})
            self._measure()
            request.unfinished = -1
        request.future.cancel()

    def close(self) -> None:
        """Finish the waiting texts, then stop the threads."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _check_room(self, texts: int, tokens: int, taken: int) -> None:
        # A lone request is never refused: its estimate may be far too high.
        if not taken:
            return
        if taken + tokens > self._max_queue_tokens:
            reason = f"the queue holds {taken} of at most {self._max_queue_tokens} tokens"
        elif self._waits_too_long(texts, taken):
            reason = f"this request would wait longer than {self._max_queue_seconds:g} s"
        else:
            return
        self._metrics.rejected.inc()
        seconds = math.ceil(taken / self._tokens_per_second) if self._tokens_per_second else 1
        retry = str(min(max(seconds, 1), _MAX_RETRY_SECONDS))
        message = f"{reason}; try again in {retry} s"
        raise RequestError(429, message, code="rate_limit_exceeded", headers={"Retry-After": retry})

    def _waits_too_long(self, texts: int, taken: int) -> bool:
        """Whether so many new texts would wait too long: for ``taken`` tokens, and for the turns of others."""
        seconds = self._max_queue_seconds
        if not 0 < seconds * self._tokens_per_second < taken:
            return False
        most = seconds * self._batches_per_second
        return self._waiting.turns_before(texts, most) > most

    def _measure(self) -> None:
        self._metrics.queue_tokens.set(self._waiting.tokens + self._reserved)
        self._metrics.queue_texts.set(len(self._waiting))

    def _run(self) -> None:
        """What each thread does: take a batch and run it, until the queue is closed and empty."""
        while taken := self._take_batch():
            batch, alone, others_wait = taken
            try:
                self._run_batch(batch, alone=alone, others_wait=others_wait)
            except Exception as error:
                # Whatever the runtime raises belongs to the requests of this batch; the thread serves the others.
                logger.exception("a batch of %d texts failed", len(batch))
                self._fail(batch, error)
            with self._condition:
                if alone:
                    self._running_alone -= 1
                    # Other threads may have waited for this batch.
                    self._condition.notify_all()
                else:
                    self._running_side_by_side -= 1

    def _take_batch(self) -> tuple[list[WaitingText], bool, bool] | None:
        """Wait for a batch; return its texts, whether it runs alone, and whether other texts wait still.

        None: the queue is closed and empty.
        """
        with self._condition:
            while (following := self._next_batch()) is NextBatch.WAIT:
                if self._closing and not self._waiting and not self._reserved:
                    return None
                self._condition.wait()
            alone = following is NextBatch.ALONE
            batch = self._waiting.take(self._batch_tokens if alone else self._lane_tokens())
            if alone:
                self._running_alone += 1
            else:
                self._running_side_by_side += 1
            self._measure()
            return batch, alone, bool(self._waiting)

    def _next_batch(self) -> NextBatch:
        """How the next batch is to run.

        Batches that would use fewer than half of the lanes finish sooner one after another, each over all cores.
        """
        if not self._waiting:
            return NextBatch.WAIT
        if self._lanes == 1:
            return NextBatch.ALONE
        separate = max(1, min(len(self._waiting), self._waiting.tokens // _MIN_LANE_TOKENS))
        if self._running_side_by_side or 2 * (separate + self._running_alone) > self._lanes:
            return NextBatch.SIDE_BY_SIDE
        return NextBatch.WAIT if self._running_alone else NextBatch.ALONE

    def _lane_tokens(self) -> int:
        """Tokens of the next batch on one core: the waiting ones, divided among the idle lanes."""
        idle = self._lanes - self._running_alone - self._running_side_by_side
        return min(self._batch_tokens, max(_MIN_LANE_TOKENS, math.ceil(self._waiting.tokens / idle)))

    def _run_batch(self, batch: list[WaitingText], *, alone: bool, others_wait: bool) -> None:
        rows = [text.request.rows[text.position] for text in batch]
        with self._cores.taken(all_of_them=self._lanes == 1):
            started = time.monotonic()
            vectors = self._infer(rows, alone=alone)
            seconds = time.monotonic() - started
        self._count(batch, started, seconds)
        if others_wait:
            self._measure_speed(batch, seconds, lanes=1 if alone else self._lanes)
        self._deliver(batch, vectors)

    def _count(self, batch: list[WaitingText], started: float, seconds: float) -> None:
        self._metrics.inference_seconds.observe(seconds)
        self._metrics.batch_rows.observe(len(batch))
        self._metrics.batch_tokens.observe(len(batch) * batch[-1].length)
        self._metrics.tokens.inc(sum(text.length for text in batch))
        for text in batch:
            self._metrics.queue_seconds.observe(started - text.request.since)

    def _measure_speed(self, batch: list[WaitingText], seconds: float, *, lanes: int) -> None:
        """Note how fast a batch was computed; ``lanes`` is how many of its kind run at the same time."""
        batches = lanes / max(seconds, 1e-9)
        tokens = batches * sum(text.length for text in batch)
        with self._condition:
            newest = _NEWEST_BATCH_WEIGHT if self._tokens_per_second else 1.0
            self._tokens_per_second += newest * (tokens - self._tokens_per_second)
            self._batches_per_second += newest * (batches - self._batches_per_second)

    def _deliver(self, batch: list[WaitingText], vectors: Floats) -> None:
        wrong = [batch[row] for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1))]
        if wrong:
            logger.error("the model returned %d vectors that are not finite", len(wrong))
            self._fail(wrong, FloatingPointError("the model returned a vector that is not finite"))
        finished: list[PendingRequest] = []
        with self._condition:
            for (_, _, request, position), vector in zip(batch, vectors, strict=True):
                request.vectors[position] = vector
                request.unfinished -= 1
                # A request that was dropped or has failed counts below zero.
                if not request.unfinished:
                    finished.append(request)
        for request in finished:
            answer = np.stack([row for row in request.vectors if row is not None])
            request.future.get_loop().call_soon_threadsafe(_resolve, request.future, answer)

    def _fail(self, batch: list[WaitingText], error: Exception) -> None:
        requests = {text.request for text in batch}
        with self._condition:
            self._waiting.remove(requests)
            self._measure()
            for request in requests:
                request.unfinished = -1
        for request in requests:
            request.future.get_loop().call_soon_threadsafe(_refuse, request.future, error)


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
        first_sequence: sequence number of the first text; the others follow.
        vectors: those computed so far.
        since: when it was queued, monotonic seconds.
        next_position: its first text that may still be waiting.
        waiting: how many of its texts wait.
        unfinished: how many of its vectors are missing; below zero once it was dropped or has failed.
    """

    rows: Sequence[Row]
    future: asyncio.Future[Floats]
    first_sequence: int
    vectors: list[Floats | None]
    since: float = field(default_factory=time.monotonic)
    next_position: int = 0
    waiting: int = 0
    unfinished: int = 0


class WaitingText(NamedTuple):
    """A text in the queue; sorted by length, then by order of arrival."""

    length: int
    sequence: int
    request: PendingRequest
    position: int


class WaitingTexts:
    """The queue: texts in order of length, requests in order of their turns; not safe for threads by itself.

    Attributes:
        tokens: of all waiting texts.
    """

    def __init__(self, max_padding: int) -> None:
        """Begin empty.

        Args:
            max_padding: tokens by which a batch's rows may differ in length.
        """
        self.tokens = 0
        self._max_padding = max_padding
        self._sorted: list[WaitingText] = []
        self._turns: deque[PendingRequest] = deque()
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, rows: Sequence[Row], tokens: int, future: asyncio.Future[Floats]) -> PendingRequest:
        """Queue the texts of a request, ``tokens`` long together, whose vectors are for ``future``."""
        first, count = self._sequence, len(rows)
        self._sequence += count
        request = PendingRequest(rows, future, first, [None] * count, waiting=count, unfinished=count)
        self._sorted.extend(WaitingText(len(row), first + index, request, index) for index, row in enumerate(rows))
        self._sorted.sort()
        self._turns.append(request)
        self.tokens += tokens
        return request

    def take(self, budget: int) -> list[WaitingText]:
        """Take a batch of at most ``budget`` tokens, padding included, or of one text; the queue is not empty."""
        start, stop = self._bounds(self._anchor(), budget)
        batch = self._sorted[start:stop]
        del self._sorted[start:stop]
        for text in batch:
            text.request.waiting -= 1
            self.tokens -= text.length
        return batch

    def remove(self, requests: set[PendingRequest]) -> None:
        """Remove the waiting texts of ``requests``."""
        kept = [text for text in self._sorted if text.request not in requests]
        if len(kept) < len(self._sorted):
            self._sorted = kept
            self.tokens = sum(text.length for text in kept)
        for request in requests:
            request.waiting = 0

    def turns_before(self, texts: int, enough: float) -> int:
        """Turns of others before the last of so many new texts has its own; counted no further than ``enough``."""
        turns = 0
        for request in self._turns:
            turns += min(request.waiting, texts)
            if turns > enough:
                break
        return turns

    def _anchor(self) -> int:
        """Index of the text that the next batch is built around: the first one waiting of the request in turn."""
        request = self._turns.popleft()
        while not request.waiting:
            request = self._turns.popleft()
        index = None
        while index is None:
            # Texts of this request may have gone with batches of others.
            index = self._index(request, request.next_position)
            request.next_position += 1
        if request.waiting > 1:
            self._turns.append(request)
        return index

    def _index(self, request: PendingRequest, position: int) -> int | None:
        """Where a request's text is in the sorted queue; None: it does not wait any more."""
        key = (len(request.rows[position]), request.first_sequence + position)
        index = bisect_left(self._sorted, key, key=lambda text: text[:2])
        return index if index < len(self._sorted) and self._sorted[index][:2] == key else None

    def _bounds(self, anchor: int, budget: int) -> tuple[int, int]:
        """Slice of the sorted queue around ``anchor`` that fits a batch: shorter texts first, then longer ones."""
        texts, start, stop = self._sorted, anchor, anchor + 1
        longest = texts[anchor].length
        while start and (stop - start + 1) * longest <= budget:
            if texts[start - 1].length + self._max_padding < longest:
                break
            start -= 1
        while stop < len(texts) and (stop - start + 1) * texts[stop].length <= budget:
            if texts[start].length + self._max_padding < texts[stop].length:
                break
            stop += 1
        return start, stop


class Cores:
    """A machine's cores: each holds an inference of its own, or one inference holds all; first come, first served.

    Attributes:
        queue: a ticket for each inference that waits, in order of arrival.
    """

    def __init__(self, count: int) -> None:
        self._free = self._count = count
        self._condition = threading.Condition()
        self.queue: deque[object] = deque()

    @contextmanager
    def taken(self, *, all_of_them: bool) -> Iterator[None]:
        """Hold one core, or all, once they are free."""
        wanted, ticket = self._count if all_of_them else 1, object()
        with self._condition:
            self.queue.append(ticket)
            self._condition.wait_for(lambda: self.queue[0] is ticket and self._free >= wanted)
            self.queue.popleft()
            self._free -= wanted
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._free += wanted
                self._condition.notify_all()
