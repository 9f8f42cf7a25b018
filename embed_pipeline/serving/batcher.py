"""Waiting texts merged into batches of like length, and the batches run: alone over all cores, or side by side.

While batches run the next is collected: an idle model starts at once, a busy one finds more to merge. Requests take
turns at starting a batch, and each batch is filled with the texts nearest in length from all of them, so that a
request of one query waits for a batch or two, not for the two thousand passages that came before it.

On a processor, few texts are answered soonest by one batch after another over all cores, and many by a batch on each
core: nobody waits there for the slowest of the threads.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from embed_pipeline.serving.cores import Cores
from embed_pipeline.serving.errors import RequestError
from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.reading import Row
from embed_pipeline.serving.waiting import Floats, Job, Waiting, WaitingTexts

logger = logging.getLogger(__name__)


class Infer(Protocol):
    """A backend's :meth:`~embed_pipeline.embedding.backend.Backend.infer`."""

    def __call__(self, ids: Sequence[Row], *, alone: bool) -> Floats:
        """Vectors of rows of token ids."""


# A batch on one core has at least so many tokens, if they are there: for fewer its start takes longest.
_LANE_TOKENS = 64
# Weight of the newest batch in the running estimate of tokens a second.
_NEWEST = 0.2
_MAX_RETRY_SECONDS = 60


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

    def submit(self, rows: Sequence[Row], reserved: int) -> Job:
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

    def drop(self, job: Job) -> None:
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
        whole: list[Job] = []
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
