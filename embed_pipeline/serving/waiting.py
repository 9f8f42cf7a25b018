"""Texts that wait for a model: sorted by length, their requests taking turns at starting a batch."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.serving.reading import Row

Floats = NDArray[np.float32]


@dataclass(eq=False)
class Job:
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
Waiting = tuple[int, int, Job, int]


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
        self._turns: deque[Job] = deque()
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, rows: Sequence[Row], tokens: int, future: asyncio.Future[Floats]) -> Job:
        """The texts of a request, of so many tokens together, whose vectors are for ``future``."""
        first = self._sequence
        self._sequence += len(rows)
        job = Job(rows, future, first, [None] * len(rows), waiting=len(rows), unfinished=len(rows))
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

    def forget(self, jobs: set[Job]) -> None:
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
