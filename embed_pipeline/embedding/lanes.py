"""Work side by side on a processor: a batch for each core, where one batch over all would leave some of them idle."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

LARGEST_BYTES = 512 * 1024**2
"""Weights of the largest model that is held a second time for the lanes; a larger one has enough work for all cores."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Cores that this process may use: those it may run on, threads of one core as one, within a container's quota."""
    import psutil  # type: ignore[import-untyped]  # psutil ships no types

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    share, _, period = quota.read_text(encoding="ascii").partition(" ") if quota.is_file() else ("max", "", "")
    return cores if share == "max" else max(1, min(cores, math.ceil(int(share) / int(period))))


def lanes_for(model_file: Path, threads: int) -> int:
    """How many inferences of a model may run side by side, each on one core; 1: one at a time, over all of them.

    Args:
        model_file: the graph; data beside it has its name as a beginning.
        threads: that may compute; 0: all cores.
    """
    weights = sum(part.stat().st_size for part in model_file.parent.glob(f"{model_file.name}*"))
    return (threads or usable_cores()) if weights <= LARGEST_BYTES else 1


def in_lanes(work: Callable[[_Item], _Result], items: Sequence[_Item], lanes: int) -> Iterator[tuple[_Item, _Result]]:
    """Each of ``items`` and what ``work`` gives of it, in order, so many at once; the first error ends it all."""
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
    try:
        yield from zip(items, pool.map(work, items), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
