"""A run without the model: requests with a stored answer get it, all others are counted as calls to come."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from embed_pipeline import settings
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.dialect import Wording
from embed_pipeline.llm.responses import CHARACTERS_PER_TOKEN
from embed_pipeline.llm.store import Answer, ResponseStore

NOT_ASKED = "not_asked_yet"
"""Reason of the :class:`InvalidAnswer` that a request without a stored answer gets."""
_NOWHERE = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class ExpectedCall:
    """A request that would be sent.

    Attributes:
        prompt_tokens: its size, at four characters a token.
        fresh_tokens: of those, tokens that an embedded server has not processed for the previous request.
    """

    prompt_tokens: int
    fresh_tokens: int


class Rehearsal(LLMClient):
    """A client that sends nothing.

    Attributes:
        calls: the requests that it would have sent.
    """

    def __init__(self, llm: settings.LLM, store: ResponseStore) -> None:
        super().__init__(llm, store, base_url=_NOWHERE, slots=1 if llm.embedded else None)
        self.calls: list[ExpectedCall] = []
        self._last: tuple[str, ...] = ()

    async def _answer(
        self,
        keys: tuple[str, str],
        path: str,
        wording: Wording,
        *,
        about: str = "",
        parts: tuple[str, ...] = (),
    ) -> Answer:
        """From the store.

        Raises:
            InvalidAnswer: it is not there.
        """
        del path, about
        found = [stored for key in keys if (stored := self._store.get(key)) is not None]
        usable = next((stored for stored in found if stored.complete or not wording.structured), None)
        if usable is not None:
            self.budget.usage.cached += 1
            return usable
        body = wording.body()
        said = json.dumps(body.get("messages", body.get("prompt")), ensure_ascii=False)
        tokens = _tokens(said + json.dumps(body.get("response_format", "")))
        new = [part for place, part in enumerate(parts) if self._last[: place + 1] != parts[: place + 1]]
        self._last = parts[:-1]
        self.calls.append(ExpectedCall(tokens, _tokens("".join(new)) if parts else tokens))
        raise InvalidAnswer(NOT_ASKED, "it was not asked before")


@asynccontextmanager
async def open_rehearsal(llm: settings.LLM, store_path: Path) -> AsyncIterator[Rehearsal]:
    """A rehearsal against the response store, which is only read and may be missing.

    Raises:
        ResponseStoreError: the store cannot be used.
        EmbeddedModelError: the embedded model's file is missing.
    """
    async with AsyncExitStack() as opened:
        if not store_path.exists():  # noqa: ASYNC240 - nothing else runs yet
            store_path = Path(opened.enter_context(TemporaryDirectory())) / store_path.name
        store = opened.enter_context(ResponseStore(store_path))
        yield await opened.enter_async_context(Rehearsal(llm, store))


def _tokens(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
