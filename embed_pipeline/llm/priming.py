"""Embedded servers of one sequence each whose answers depend on the request alone.

llama.cpp works a prompt off in batches, and the last digits of what it computes depend on where a batch begins. By
itself a server begins where the prompt departs from what it worked off before, so that the same request with the same
seed gets another text on a fresh server, after other questions or beside another one. Here every batch begins at a
place that the request fixes: the beginning that many prompts share is worked off from nothing once and then kept, its
last token alone; the rest of the prompt in one go; and each answer starts from the prompt's last token alone. So a run
that was killed ends in the texts of one that was not (measured: equal log-probabilities to nine digits, for 3 % of the
time; switching the prompt cache off instead doubles it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[object]]


class PrimedServers:
    """Knows what each server has worked off, and brings it into the state that a request fixes."""

    def __init__(self, servers: int) -> None:
        self._locks = [asyncio.Lock() for _ in range(servers)]
        self._held: list[tuple[str, str] | None] = [None] * servers

    def choose(self, prompt: str, in_flight: Sequence[int]) -> int:
        """The server to ask: one that holds the prompt already, else the one with the fewest requests in flight."""
        return min(range(len(in_flight)), key=lambda server: (in_flight[server], not self._holds(server, prompt)))

    async def ask(self, server: int, body: dict[str, Any], shared: str, send: Send) -> object:
        """Send a request to a server, after what has to come before it.

        Args:
            server: its number.
            body: the request; without a ``prompt`` (a conversation) it is worked off from nothing.
            shared: the beginning of the prompt that other prompts share; may be empty.
            send: posts a body to that server.

        Raises:
            Exception: what ``send`` raises; the next request then starts from nothing.
        """
        async with self._locks[server]:
            held, self._held[server] = self._held[server], None
            prompt = body.get("prompt")
            if prompt is None:
                return await send({**body, "cache_prompt": False})
            if held != (shared, prompt):
                silent = {**body, "max_tokens": 0}
                if not shared or held is None or held[0] != shared:
                    await send({**silent, "prompt": shared or prompt, "cache_prompt": False})
                if shared:
                    await send({**silent, "prompt": shared})
                    await send({**silent, "prompt": prompt})
            answer = await send(body)
            self._held[server] = (shared, prompt)
            return answer

    def _holds(self, server: int, prompt: str) -> bool:
        held = self._held[server]
        return held is not None and held[1] == prompt
