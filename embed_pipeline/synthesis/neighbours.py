"""The neighbour graph of segments: what a multi-hop question may join.

Two segments are neighbours when the base encoder puts them close together, or less close when they share entities that
few others name, in whatever document. Near duplicates are none: two passages that say the same make no second hop.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CANDIDATES = 16
_CLOSEST = 0.90
_FARTHEST = 0.35
_FARTHEST_WITH_ENTITY = 0.20
_ENTITY_BONUS = 0.05
_MOST_SHARED_BY = 8


@dataclass(frozen=True)
class Neighbour:
    """An edge of the graph.

    Attributes:
        index: the other segment.
        weight: cosine, and a bonus for every rare entity that both name.
        shared: those entities.
    """

    index: int
    weight: float
    shared: tuple[str, ...]


def find_neighbours(vectors: NDArray[np.float32], entities: Sequence[Sequence[str]]) -> list[list[Neighbour]]:
    """Neighbours of every segment, closest first, equal ones by index.

    Args:
        vectors: unit vectors of the segments, shape (n, d).
        entities: what each segment names.
    """
    from embed_pipeline.embedding.search import search

    if not len(vectors):
        return []
    shared = _shared_entities(entities)
    hits = search(np.ascontiguousarray(vectors), np.ascontiguousarray(vectors), min(_CANDIDATES + 1, len(vectors)))
    graph = []
    for row in range(len(vectors)):
        others = {int(other) for other in hits.indices[row]} | shared[row].keys()
        others.discard(row)
        found = []
        for other in sorted(others):
            cosine = float(vectors[row] @ vectors[other])
            common = tuple(sorted(shared[row].get(other, ())))
            if (_FARTHEST_WITH_ENTITY if common else _FARTHEST) <= cosine < _CLOSEST:
                found.append(Neighbour(other, cosine + _ENTITY_BONUS * math.log2(1 + len(common)), common))
        graph.append(sorted(found, key=lambda edge: (-edge.weight, edge.index))[:_CANDIDATES])
    return graph


def near_duplicate(vectors: NDArray[np.float32], first: int, second: int) -> bool:
    """True where two segments say nearly the same."""
    return float(vectors[first] @ vectors[second]) >= _CLOSEST


def _shared_entities(entities: Sequence[Sequence[str]]) -> list[dict[int, set[str]]]:
    """For each segment, the others that name an entity which at most eight name."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(entities):
        for name in sorted({" ".join(name.lower().split()) for name in names}):
            places[name].append(index)
    shared: list[dict[int, set[str]]] = [defaultdict(set) for _ in entities]
    for name, indices in places.items():
        if 1 < len(indices) <= _MOST_SHARED_BY:
            for first in indices:
                for second in indices:
                    if first != second:
                        shared[first][second].add(name)
    return shared
