"""Embedded servers of one sequence each whose answers depend on the request alone.

llama.cpp works a prompt off in batches, and the last digits of what it computes depend on where a batch begins. By
itself a server begins where the prompt departs from what it worked off before, so that the same request with the same
seed gets another text on a fresh server, after other questions or beside another one. Here a prompt comes in parts,
and every batch begins where a part begins or at the last token of one: the first part is worked off from nothing, each
later one after the last token of the one before was worked off once more. A part that the server holds is not worked
off again. So a run that was killed ends in the texts of one that was not (measured: equal log-probabilities to nine
digits, for 3 % of the time; switching the prompt cache off instead doubles it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[object]]
Parts = tuple[str, ...]


class PrimedServers:
    """Knows what each server has worked off, and brings it into the state that a request fixes."""

    def __init__(self, servers: int) -> None:
        self._locks = [asyncio.Lock() for _ in range(servers)]
        self._held: list[Parts] = [()] * servers

    def choose(self, parts: Parts, in_flight: Sequence[int]) -> int:
        """The server to ask: of those with the fewest requests in flight, the one that holds most of the prompt."""
        return min(range(len(in_flight)), key=lambda server: (in_flight[server], -self._depth(server, parts)))

    async def ask(self, server: int, body: dict[str, Any], parts: Parts, send: Send) -> object:
        """Send a request to a server, after what has to come before it.

        Args:
            server: its number.
            body: the request.
            parts: its prompt in parts, the last of them its own; empty for a conversation, which is worked off from
                nothing.
            send: posts a body to that server.

        Raises:
            Exception: what ``send`` raises; the next request then starts from nothing.
        """
        shared = parts[:-1]
        async with self._locks[server]:
            depth = self._depth(server, shared)
            self._held[server] = ()
            if not shared:
                return await send({**body, "cache_prompt": False})
            for count in range(max(depth, 1), len(shared) + 1):
                step = {**body, "prompt": "".join(shared[:count]), "max_tokens": 0}
                if count > depth:
                    await send(step if count > 1 else {**step, "cache_prompt": False})
                await send(step)
            answer = await send(body)
            self._held[server] = shared
            return answer

    def _depth(self, server: int, parts: Parts) -> int:
        """How many of the first parts the server holds."""
        pairs = zip(self._held[server], parts, strict=False)
        same = [held == part for held, part in pairs]
        return same.index(False) if False in same else len(same)
