"""Token-budget batches: texts of like length together, so that little of the arithmetic is padding.

On a processor they run in lanes, a batch for each core, where one batch over all cores would leave some of them idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.machine import usable_cores
from embed_pipeline.settings import Auto

_Tokens = TypeVar("_Tokens")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

LARGEST_BYTES = 512 * 1024**2
"""Weights of the largest model that is held a second time for the lanes; a larger one has enough work for all cores."""

# Tokenised and sorted together: enough for like lengths to meet, few enough that token ids never fill memory. A GPU
# waits for the first of them.
_CPU_WINDOW, _GPU_WINDOW = 32_768, 1_024
_LOTS_AHEAD = 2
_CORE_TOKENS, _CPU_TOKENS = 512, 1024
_GPU_TOKENS = 65_536


def token_budget(wanted: int | Auto, *, on_gpu: bool, lanes: int = 1) -> int:
    """Tokens in a batch: ``wanted``, or where that is ``auto`` what suits the hardware.

    A processor, and more so one core of it, is fastest while a batch's activations stay in its caches, a GPU while all
    of it has work.
    """
    if wanted != "auto":
        return wanted
    return _GPU_TOKENS if on_gpu else _CPU_TOKENS if lanes == 1 else _CORE_TOKENS


def tokenized_windows(
    texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[_Tokens]], *, on_gpu: bool
) -> Iterator[tuple[int, list[_Tokens]]]:
    """Tokens of ``texts``, some thousands at a time; for a GPU each lot is read while the one before is computed.

    Args:
        texts: in any order.
        tokenize: gives of each text its token ids, or what is wanted of them.
        on_gpu: whether a GPU computes.

    Yields:
        Position of the lot's first text, and what ``tokenize`` gives of its texts.
    """
    size = _GPU_WINDOW if on_gpu else _CPU_WINDOW
    lots = [(start, texts[start : start + size]) for start in range(0, len(texts), size)]
    if not on_gpu:
        yield from ((start, tokenize(lot)) for start, lot in lots)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as reader:
        ahead = deque[Future[list[_Tokens]]]()
        for place, (start, _) in enumerate(lots):
            while len(ahead) < _LOTS_AHEAD and place + len(ahead) < len(lots):
                ahead.append(reader.submit(tokenize, lots[place + len(ahead)][1]))
            yield start, ahead.popleft().result()


def token_budget_batches(lengths: Sequence[int] | NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Positions of ``lengths`` in batches, longest first, each of at most ``budget`` tokens with its padding.

    A text longer than the budget is a batch of its own. Ties keep their order, so the batches are the same on
    every run.

    Args:
        lengths: tokens of every text.
        budget: most tokens in a batch: its number of rows times its longest row.

    Yields:
        Positions, int64; every position occurs once.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, budget // max(1, int(sizes[order[start]])))
        yield order[start : start + rows]
        start += rows


def pad_rows(
    rows: Sequence[Sequence[int] | NDArray[np.integer]], pad_token_id: int, *, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask, both int64 (n, longest), of rows of different lengths."""
    longest = max(len(row) for row in rows)
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


def lanes_for(model_file: Path, threads: int) -> int:
    """How many inferences of a model may run side by side, each on one core; 1: one at a time, over all of them.

    Args:
        model_file: the graph; the name of its data file, next to it, begins with its name.
        threads: that may compute; 0: all cores.
    """
    weights = sum(part.stat().st_size for part in model_file.parent.glob(f"{model_file.name}*"))
    return (threads or usable_cores()) if weights <= LARGEST_BYTES else 1


def in_lanes(work: Callable[[_Item], _Result], items: Sequence[_Item], lanes: int) -> Iterator[tuple[_Item, _Result]]:
    """Each of ``items`` and what ``work`` gives of it, in order, so many at once; the first error ends it all."""
    errors: list[BaseException] = []

    def step(item: _Item) -> _Result:
        if errors:
            raise errors[0]
        try:
            return work(item)
        except BaseException as error:
            errors.append(error)
            raise

    pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
    try:
        yield from zip(items, pool.map(step, items), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)
