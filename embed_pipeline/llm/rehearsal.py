"""A run without the model: requests with a stored answer get it, all others are counted as calls to come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from embed_pipeline import settings
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.dialect import Wording
from embed_pipeline.llm.embedded import SLOTS, lay_out, model_file
from embed_pipeline.llm.rates import Rates, measure_rates
from embed_pipeline.llm.store import Answer, ResponseStore

NOT_ASKED = "not_asked_yet"
"""Reason of the :class:`InvalidAnswer` that a request without a stored answer gets."""
LONGEST_BATCH_SECONDS = 86_400.0
_NOWHERE = "http://127.0.0.1:9/v1"


@dataclass(frozen=True)
class ExpectedCall:
    """A request that would be sent.

    Attributes:
        kind: name of the answer's type, or ``completion``.
        characters: length of the prompt.
        schema_characters: length of the schema that is sent with it.
        fresh_characters: of the prompt, what an embedded server has not processed for the previous request.
    """

    kind: str
    characters: int
    schema_characters: int = 0
    fresh_characters: int = 0


class Rehearsal(LLMClient):
    """A client that sends nothing.

    Attributes:
        calls: the requests that it would have sent.
    """

    def __init__(self, llm: settings.LLM, store: ResponseStore) -> None:
        layout = lay_out(SLOTS, llm.server_threads, model_file(llm).stat().st_size) if llm.embedded else None
        urls = llm.base_url or [_NOWHERE] * (layout.servers if layout else 1)
        super().__init__(llm, store, base_url=urls, slots=layout.slots if layout else None)
        self.calls: list[ExpectedCall] = []
        self._last: tuple[str, ...] = ()

    def batch_seconds(self) -> float:
        """How long a batch takes at the endpoint: as long as earlier ones did, else the longest that it may."""
        taken = self._store.batch_seconds(self.place)
        return sum(taken) / len(taken) if taken else LONGEST_BATCH_SECONDS

    @property
    def store(self) -> ResponseStore:
        """The store that answers."""
        return self._store

    def rates(self, model: str | None = None) -> Rates | None:
        """What stored calls say of a model at the endpoint; None where there are none.

        Args:
            model: its name; None: the generator.
        """
        return measure_rates(self._store.calls(f"{model or self.generator} at {self.place}"))

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
            InvalidAnswer: the store has no such answer.
        """
        del path, about
        found = [stored for key in keys if (stored := self._store.get(key)) is not None]
        usable = next((stored for stored in found if stored.complete or not wording.structured), None)
        if usable is not None:
            self.budget.usage.cached += 1
            return usable
        call = wording.call(self.place)
        schema = json.dumps(wording.body().get("response_format", ""))
        new = [part for place, part in enumerate(parts) if self._last[: place + 1] != parts[: place + 1]]
        self._last = parts[:-1]
        fresh = len("".join(new)) if parts else call.characters
        self.calls.append(ExpectedCall(call.kind, call.characters, len(schema), fresh))
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
