"""What an endpoint's latest answers say of the next ones: their tokens, how many are asked again, how long they take.

An endpoint shows its speed by calls that ran alone and by calls that ran together. Where those took as long as these,
it is assumed to answer any number at once; where they took much longer, it answers a few at a time.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embed_pipeline.llm.store import TimedCall

_ALONE = 1.5
"""Mean number of calls in flight up to which one ran alone."""
_SLOWED = 1.35
"""How much longer calls that ran together take where the endpoint slows down with each, and where it queues them."""
_QUEUED = 1.6
_STEADY_ROUNDS = 3
_COLD = 3.0
"""How much longer than the median a server's first call takes, where it loads the model or reads a prompt's start."""
_USUAL_CALLS = 5
"""Calls that were not repeated, counted with those that there are: a few say little of how many will be."""


@dataclass(frozen=True)
class Rates:
    """What one model at one endpoint makes of a call.

    Attributes:
        tokens_per_character: of prompts, by kind of call.
        completion_tokens: of an answer, by kind; of one pair where pairs are asked for.
        repeats: calls for each one that was planned, by kind.
        seconds: of a call without a token, and of each completion token, when it runs alone.
        spread: how long calls took, as shares of what these seconds say, in the order in which they came.
        together: how many calls it answers at once as fast as one; None: no bound is known.
        queues: True where more have to wait; False: each slows down all others.
    """

    tokens_per_character: Mapping[str, float]
    completion_tokens: Mapping[str, float]
    repeats: Mapping[str, float]
    seconds: tuple[float, float]
    spread: tuple[float, ...]
    together: float | None
    queues: bool

    def duration(self, tokens: Sequence[float], most: int) -> float:
        """Seconds that calls take.

        Args:
            tokens: the completion tokens that each will bring.
            most: calls in flight at once.
        """
        base, each = self.seconds
        alone = [(base + each * count) * share for count, share in zip(tokens, itertools.cycle(self.spread))]
        at_once = min(most, len(alone))
        if self.together is None or not at_once:
            return _makespan(alone, at_once)
        if self.queues:
            # Sums, where places come in fractions: as fast as that many calls, and no faster than the longest one.
            return max(*alone, sum(alone) / min(at_once, self.together))
        return _makespan(alone, at_once) * (1 + (at_once - 1) / self.together)


def measure_rates(calls: Sequence[TimedCall]) -> Rates | None:
    """What the latest calls of one model at one endpoint say; None where there are none."""
    if not calls:
        return None
    calls = _warm(calls)
    kinds: dict[str, list[TimedCall]] = defaultdict(list)
    for call in calls:
        kinds[call.kind].append(call)
    in_flight = _in_flight(calls)
    alone = [call for call, others in zip(calls, in_flight, strict=True) if others <= _ALONE]
    together, queues = _capacity(calls, alone)
    fitted = alone if alone and together is not None else calls
    seconds = _fit(fitted)
    return Rates(
        tokens_per_character={
            kind: sum(call.prompt_tokens for call in of) / max(1, sum(call.characters for call in of))
            for kind, of in kinds.items()
        },
        completion_tokens={
            kind: sum(call.completion_tokens for call in of) / max(1, sum(call.questions or 1 for call in of))
            for kind, of in kinds.items()
        },
        repeats={
            kind: (len(of) + _USUAL_CALLS) / (sum(not call.repeated for call in of) + _USUAL_CALLS)
            for kind, of in kinds.items()
        },
        seconds=seconds,
        spread=tuple(call.seconds / _said(seconds, call) for call in fitted),
        together=together,
        queues=queues,
    )


def _warm(calls: Sequence[TimedCall]) -> list[TimedCall]:
    """The calls without the slow ones that brought more in flight than before: a server's first, which say little."""
    usual = float(np.median([call.seconds for call in calls]))
    warm: list[TimedCall] = []
    running: list[float] = []
    most = 0
    for call in sorted(calls, key=lambda call: call.ended - call.seconds):
        running = [ended for ended in running if ended > call.ended - call.seconds] + [call.ended]
        if len(running) <= most or call.seconds <= _COLD * usual:
            warm.append(call)
        most = max(most, len(running))
    return warm


def _said(seconds: tuple[float, float], call: TimedCall) -> float:
    return max(1e-6, seconds[0] + seconds[1] * call.completion_tokens)


def _fit(calls: Sequence[TimedCall]) -> tuple[float, float]:
    """Seconds of a call without a token, and of each token, neither below 0."""
    tokens = np.array([call.completion_tokens for call in calls], float)
    taken = np.array([call.seconds for call in calls], float)
    if np.ptp(tokens) == 0:
        return float(taken.mean()), 0.0
    each, base = np.polyfit(tokens, taken, 1)
    if each <= 0:
        return float(taken.mean()), 0.0
    if base < 0:
        return 0.0, float(taken.sum() / tokens.sum())
    return float(base), float(each)


def _in_flight(calls: Sequence[TimedCall]) -> list[float]:
    """For each call, how many ran on average while it did."""
    begun = np.array([call.ended - call.seconds for call in calls])
    ended = np.array([call.ended for call in calls])
    return [
        float(np.clip(np.minimum(ended, stop) - np.maximum(begun, start), 0, None).sum() / max(stop - start, 1e-6))
        for start, stop in zip(begun, ended, strict=True)
    ]


def _capacity(calls: Sequence[TimedCall], alone: Sequence[TimedCall]) -> tuple[float | None, bool]:
    """How many calls are answered at once as fast as one, and whether more have to wait; None: no bound was met."""
    groups = [group for group in _busy_times(calls) if _taken(group) > _ALONE * _wall(group)]
    if not groups:
        return None, False
    taken, wall = sum(map(_taken, groups)), sum(map(_wall, groups))
    together = taken / wall
    if not alone:
        # Nothing says what more at once would bring: as many as there were, where they came round after round.
        steady = len(max(groups, key=len)) >= _STEADY_ROUNDS * together
        return (together if steady else None), True
    seconds = _fit(alone)
    work = sum(_said(seconds, call) for group in groups for call in group)
    slower = taken / work
    if slower >= _QUEUED:
        return max(1.0, work / wall), True
    return ((together - 1) / (slower - 1), False) if slower >= _SLOWED else (None, False)


def _taken(calls: Sequence[TimedCall]) -> float:
    return sum(call.seconds for call in calls)


def _wall(calls: Sequence[TimedCall]) -> float:
    return max(1e-6, max(call.ended for call in calls) - min(call.ended - call.seconds for call in calls))


def _busy_times(calls: Sequence[TimedCall]) -> Iterator[list[TimedCall]]:
    """The calls in groups that ran without a pause between them."""
    group: list[TimedCall] = []
    until = -np.inf
    for call in sorted(calls, key=lambda call: call.ended - call.seconds):
        if group and call.ended - call.seconds > until:
            yield group
            group = []
        group.append(call)
        until = max(until, call.ended)
    if group:
        yield group


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last call ends, each begun as soon as one of the workers is free."""
    free = [0.0] * max(1, workers)
    for taken in seconds:
        heapq.heapreplace(free, free[0] + taken)
    return max(free)
