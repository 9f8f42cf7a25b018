from __future__ import annotations

import numpy as np

from embed_pipeline.synthesis.plan import find_neighbours, near_duplicate


def _at(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def _edges(vectors: np.ndarray, entities: list[list[str]]) -> list[list[int]]:
    return [[edge.index for edge in edges] for edges in find_neighbours(vectors, entities)]


def test_close_segments_are_neighbours_and_copies_are_none() -> None:
    vectors = _at(0, 5, 40, 60, 170)
    edges = _edges(vectors, [[]] * 5)
    assert edges[0] == [2, 3]
    assert 1 not in edges[0]
    assert near_duplicate(vectors, 0, 1)
    assert edges[4] == []


def test_a_shared_rare_entity_joins_what_is_farther_apart_and_comes_first() -> None:
    vectors = _at(0, 60, 75)
    assert _edges(vectors, [[]] * 3)[0] == [1]
    graph = find_neighbours(vectors, [["Valve  A"], [], ["valve a"]])
    assert [(edge.index, edge.shared) for edge in graph[0]] == [(1, ()), (2, ("valve a",))]
    closer = find_neighbours(_at(0, 60, 62), [["valve"], [], ["valve"]])
    assert [edge.index for edge in closer[0]] == [2, 1]


def test_an_entity_that_many_name_joins_nothing() -> None:
    vectors = _at(*(0 if index == 0 else 75 for index in range(10)))
    assert _edges(vectors, [["pump"]] * 10)[0] == []


def test_no_segments_have_no_neighbours() -> None:
    assert find_neighbours(np.empty((0, 4), np.float32), []) == []
