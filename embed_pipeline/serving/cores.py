"""The machine's cores, which the models of an endpoint share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Cores:
    """So many inferences on one core each at once, or one over all of them; first come, first served."""

    def __init__(self, count: int) -> None:
        self._free = self._count = count
        self._condition = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def taken(self, *, all_of_them: bool) -> Iterator[None]:
        """Hold one core, or all, once they are free."""
        wanted, ticket = self._count if all_of_them else 1, object()
        with self._condition:
            self._waiting.append(ticket)
            self._condition.wait_for(lambda: self._waiting[0] is ticket and self._free >= wanted)
            self._waiting.popleft()
            self._free -= wanted
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._free += wanted
                self._condition.notify_all()
