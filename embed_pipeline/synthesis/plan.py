"""What to ask of which segments: single-hop tasks for each, multi-hop tasks over neighbours.

Neighbours are segments that the base encoder puts close together, in whatever document, near duplicates left
out: two passages that say the same make no second hop.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import polars as pl

from embed_pipeline.settings import Settings

_NEIGHBOURS = 12
_CLOSEST, _FARTHEST = 0.90, 0.35


@dataclass(frozen=True)
class Source:
    """A segment as a generator sees it."""

    segment_id: str
    document_id: str
    title: str
    text: str


@dataclass(frozen=True)
class Task:
    """Segments to be joined by one question, and a seed for sampling. One source: a single hop."""

    sources: tuple[Source, ...]
    seed: int


def askable_sources(segments: pl.DataFrame, titles: dict[str, str], settings: Settings) -> list[Source]:
    """Segments long enough to ask about, one for each distinct text, sorted by id.

    Args:
        segments: frame of :data:`tables.SEGMENTS`.
        titles: document id to title.
        settings: ``corpus.min_segment_tokens`` is the least length.
    """
    long_enough = segments.filter(pl.col("token_count") >= settings.corpus.min_segment_tokens).sort("segment_id")
    distinct = long_enough.unique("text", keep="first", maintain_order=True)
    return [
        Source(row["segment_id"], row["document_id"], row["heading_path"] or titles[row["document_id"]], row["text"])
        for row in distinct.iter_rows(named=True)
    ]


def plan_multi_hop(sources: list[Source], vectors: np.ndarray, settings: Settings) -> list[Task]:
    """Choose groups of two to ``synthesis.max_hops`` neighbouring segments.

    Args:
        sources: the segments.
        vectors: their unit vectors, shape (len(sources), d).
        settings: share, hop limit and seed.

    Returns:
        ``multi_hop_share`` of the single-hop tasks, fewer where segments have no neighbours.
    """
    from embed_pipeline.embedding.search import search

    synthesis = settings.synthesis
    wanted = round(synthesis.multi_hop_share * synthesis.questions_per_segment * len(sources))
    if synthesis.max_hops == 1 or wanted == 0 or len(sources) < 2:  # noqa: PLR2004 - two make a pair
        return []
    chance = random.Random(f"{settings.seed} multi-hop")  # noqa: S311 - sampling, not secrets
    hits = search(vectors, vectors, min(_NEIGHBOURS + 1, len(sources)))
    order = list(range(len(sources)))
    chance.shuffle(order)
    tasks: dict[tuple[str, ...], Task] = {}
    for first in order:
        if len(tasks) == wanted:
            break
        close = [
            int(other)
            for other, score in zip(hits.indices[first], hits.scores[first], strict=True)
            if other != first and _FARTHEST <= score < _CLOSEST
        ]
        hops = chance.randint(2, synthesis.max_hops)
        chosen = [first, *close[: hops - 1]]
        if len(chosen) < 2:  # noqa: PLR2004 - it has no neighbour
            continue
        members = tuple(sources[index] for index in chosen)
        key = tuple(sorted(member.segment_id for member in members))
        tasks.setdefault(key, Task(members, chance.randrange(2**31)))
    return list(tasks.values())


def plan_single_hop(sources: list[Source], settings: Settings) -> list[Task]:
    """A task for each segment, in random but seeded order, so that progress and early stops are representative."""
    chance = random.Random(f"{settings.seed} single-hop")  # noqa: S311 - sampling, not secrets
    tasks = [Task((source,), chance.randrange(2**31)) for source in sources]
    chance.shuffle(tasks)
    return tasks
