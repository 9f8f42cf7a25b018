"""Disjoint sets: which documents belong together."""

from __future__ import annotations


class DisjointSets:
    """Elements 0 to n-1 in sets that only ever join (union by size; Tarjan 1975)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._size = [1] * count

    def __len__(self) -> int:
        return len(self._parent)

    def find(self, element: int) -> int:
        """The element that stands for the set of ``element``."""
        root = element
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[element] != root:
            self._parent[element], element = root, self._parent[element]
        return root

    def size(self, element: int) -> int:
        """Elements in the set of ``element``."""
        return self._size[self.find(element)]

    def join(self, one: int, other: int) -> None:
        """Make one set of two."""
        large, small = self.find(one), self.find(other)
        if large == small:
            return
        if self._size[large] < self._size[small]:
            large, small = small, large
        self._parent[small] = large
        self._size[large] += self._size[small]
