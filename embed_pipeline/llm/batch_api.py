"""The Batch API of an endpoint: requests gathered into files, submitted once, and waited for over interruptions.

A batch is written down in the response store before it is submitted, and again when the endpoint has named it. So a run
that is killed at any moment finds its batches again, by what is written or by the name in their metadata, and submits
nothing twice. When a batch ends, its answers are stored at once; what it did not answer fails request by request, and
is treated as the same failure of a request of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from embed_pipeline import settings
from embed_pipeline.escaping import counted
from embed_pipeline.llm.failures import Failure, connection_failure, failure_of, read_failure
from embed_pipeline.llm.responses import read_response
from embed_pipeline.llm.scope import scope_of
from embed_pipeline.llm.secrets import Secrets
from embed_pipeline.llm.store import Answer, OpenBatch, ResponseStore

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

logger = logging.getLogger(__name__)
Outcome = Answer | Failure
Keys = tuple[str, str]
"""Where an answer is stored that ended by itself, and one that was cut; the second is the request's name in a batch."""
QUIET_SECONDS = 1.0
"""Without a new request for so long, those that wait are submitted."""
FIRST_POLL_SECONDS = 0.5
LAST_POLL_SECONDS = 60.0
RETRY_SECONDS = 0.5
FIRST_ROOM_SECONDS, LAST_ROOM_SECONDS = 60.0, 600.0
"""Waits for room in the endpoint's queue of batches."""
_POLL_SHARE = 0.05
_OWNER_SECONDS = 2.0
_UPLOAD_SECONDS = 600.0
_WINDOW: Literal["24h"] = "24h"
_METADATA = "embed_pipeline"
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_NOT_FOUND = 404
_NO_ROUTE = frozenset({_NOT_FOUND, 405, 501})


class BatchError(RuntimeError):
    """The endpoint takes no batches, or one that was submitted cannot be followed: the run stops."""


@dataclass(frozen=True)
class _Request:
    """A request that waits for its outcome."""

    keys: Keys
    path: str
    body: dict[str, Any]
    outcome: asyncio.Future[Outcome]

    @property
    def line(self) -> bytes:
        """The request as a line of a batch's file."""
        asked = {"custom_id": self.keys[1], "method": "POST", "url": f"/v1{self.path}", "body": self.body}
        return json.dumps(asked, ensure_ascii=True).encode() + b"\n"


class Batches:
    """Submits requests in batches to one endpoint; for one event loop."""

    def __init__(
        self, llm: settings.LLM, client: openai.AsyncOpenAI, store: ResponseStore, place: str, secrets: Secrets
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            llm: limits of a batch.
            client: the endpoint.
            store: keeps the answers, and which batches are open.
            place: the endpoint's address, for messages and as the store's name for it.
            secrets: what no message may hold.
        """
        self._llm = llm
        self._secrets = secrets
        self._client = client
        self._store = store
        self._place = place
        # Two clients of one process are two owners.
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid4().hex}"
        self._queue: list[_Request] = []
        self._waiting: dict[str, _Request] = {}
        self._counts: dict[str, tuple[int, int, int]] = {}
        self._no_room: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._gathering: asyncio.Task[None] | None = None
        self._begun = time.monotonic()

    async def close(self) -> None:
        """Stop waiting; open batches go on at the endpoint, and the next run finds them."""
        tasks = [task for task in (*self._tasks.values(), self._gathering) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def line(self) -> str:
        """The batches' counts, as a note next to a progress bar."""
        total, done, failed = (sum(counts[place] for counts in self._counts.values()) for place in range(3))
        waits = f", waiting {(time.monotonic() - self._begun) / 60:.0f} min" if self._counts else ""
        queued = f"{len(self._queue)} to submit" if self._queue else ""
        batches = f"{counted(len(self._counts), 'batch')}: {done} of {total} done, {failed} failed{waits}"
        return ", ".join(part for part in (queued, batches if self._counts else "") if part)

    async def send(self, path: str, body: dict[str, Any], keys: Keys) -> Outcome:
        """Have a request answered by the next batch, or by an open one that it is in already.

        Raises:
            BatchError: the endpoint takes no batches, or one cannot be followed.
        """
        request = _Request(keys, path, body, asyncio.get_running_loop().create_future())
        for batch in self._store.open_batches(self._place):
            self._follow(batch)
        if self._store.batch_of(keys[1]) is None:
            # A batch may have ended while this request was prepared.
            stored = self._stored(request)
            if stored is not None:
                return stored
            self._enqueue(request)
        self._waiting[keys[1]] = request
        try:
            return await request.outcome
        finally:
            self._waiting.pop(keys[1], None)

    def _stored(self, request: _Request) -> Answer | None:
        found = (self._store.get(key) for key in request.keys)
        return next((answer for answer in found if answer is not None and answer.complete), None)

    def _enqueue(self, request: _Request) -> None:
        self._queue.append(request)
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._gather())

    async def _gather(self) -> None:
        """Submit what waits once nothing more comes, in as many batches as the limits ask for."""
        known = -1
        while known < len(self._queue) < self._llm.batch_requests:
            known = len(self._queue)
            await asyncio.sleep(QUIET_SECONDS)
        requests, self._queue = self._queue, []
        for part in self._parts(requests):
            name = uuid4().hex
            self._start(name, self._submit(name, part), part)

    def _parts(self, requests: Sequence[_Request]) -> Iterator[list[_Request]]:
        """The requests in batches within the limits, each to one path."""
        most_bytes = self._llm.batch_megabytes * 1e6
        for path in dict.fromkeys(request.path for request in requests):
            part: list[_Request] = []
            size = 0
            for request in requests:
                if request.path != path:
                    continue
                added = len(request.line)
                if part and (len(part) >= self._llm.batch_requests or size + added > most_bytes):
                    yield part
                    part, size = [], 0
                part.append(request)
                size += added
            yield part

    def _start(self, name: str, work: Awaitable[None], requests: Sequence[_Request] = ()) -> None:
        """Work on a batch in a task; an error of it reaches all requests of the batch that wait."""

        async def guarded() -> None:
            held = {request.keys[1] for request in requests} | self._store.requests_of(name).keys()
            try:
                await work
            except Exception as error:  # noqa: BLE001 - raised where the requests are awaited
                for custom_id in held & self._waiting.keys():
                    self._settle(custom_id, error)
            finally:
                self._counts.pop(name, None)
                self._tasks.pop(name, None)

        self._tasks[name] = asyncio.create_task(guarded())

    def _settle(self, custom_id: str, outcome: Outcome | Exception) -> None:
        request = self._waiting.get(custom_id)
        if request is None or request.outcome.done():
            return
        if isinstance(outcome, Exception):
            request.outcome.set_exception(outcome)
        else:
            request.outcome.set_result(outcome)

    def _follow(self, batch: OpenBatch) -> None:
        """Wait for a batch of an earlier run, or of another process."""
        if batch.name not in self._tasks:
            self._start(batch.name, self._resume(batch))

    async def _resume(self, batch: OpenBatch) -> None:
        held = self._store.requests_of(batch.name)
        while batch.batch is None and self._is_alive(batch.owner):
            # Another process is about to submit it.
            await asyncio.sleep(_OWNER_SECONDS)
            now = {other.name: other for other in self._store.open_batches(self._place)}
            if batch.name not in now:
                return self._release(batch.name, held)
            batch = now[batch.name]
        named = batch.batch or await self._find(batch.name, batch.file)
        if named is None:
            # It was never submitted.
            return self._release(batch.name, held)
        logger.info("Batch %s is picked up again", named)
        self._store.name_batch(batch.name, batch=named)
        return await self._wait(batch.name, named, batch.path)

    def _release(self, name: str, held: Iterable[str] = ()) -> None:
        """Forget a batch that is not at the endpoint; the requests of it that wait go into another one."""
        held = {*held, *self._store.requests_of(name)}
        self._store.close_batch(name)
        for custom_id in held:
            request = self._waiting.get(custom_id)
            if request is not None and not request.outcome.done():
                stored = self._stored(request)
                if stored is not None:
                    self._settle(custom_id, stored)
                else:
                    self._enqueue(request)

    def _is_alive(self, owner: str) -> bool:
        """Whether another client on this machine still works on a batch; of other machines that is unknown: no."""
        host, process, _ = owner.split(" ")
        if owner == self._owner or host != socket.gethostname():
            return False
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    async def _submit(self, name: str, requests: list[_Request]) -> None:
        path = requests[0].path
        claimed = self._store.open_batch(
            name, self._place, path, self._owner, [(request.keys[1], request.keys[0]) for request in requests]
        )
        for batch in self._store.open_batches(self._place):
            self._follow(batch)
        mine = [request for request in requests if request.keys[1] in claimed]
        if not mine:
            return self._store.close_batch(name)
        content = b"".join(request.line for request in mine)
        file = await self._ask(
            lambda: self._client.files.create(
                file=(f"{name}.jsonl", content, "application/jsonl"), purpose="batch", timeout=_UPLOAD_SECONDS
            ),
            "its file",
        )
        self._store.name_batch(name, file=file.id)
        batch = await self._ask(
            lambda: self._client.batches.create(
                input_file_id=file.id,
                endpoint=f"/v1{path}",  # type: ignore[arg-type]  # one of its paths
                completion_window=_WINDOW,
                metadata={_METADATA: name},
            ),
            "a batch",
            instead=lambda: self._find(name, file.id),
        )
        named = batch if isinstance(batch, str) else batch.id
        self._store.name_batch(name, batch=named)
        self._counts[name] = (len(mine), 0, 0)
        logger.info("Batch %s of %d requests is submitted", named, len(mine))
        return await self._wait(name, named, path)

    async def _find(self, name: str, file: str | None) -> str | None:
        """The endpoint's name for a batch of ours that was submitted, or None."""

        async def listed() -> str | None:
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_METADATA) == name or (file and batch.input_file_id == file):
                    return batch.id
            return None

        named: str | None = await self._ask(listed, "the list of batches")
        return named

    async def _wait(self, name: str, named: str, path: str) -> None:
        """Wait for a batch's end, store its answers, and give every request its outcome."""
        # Whoever else waits for the batch may close it first, and its requests are then no longer listed.
        keys, begun = self._store.requests_of(name), time.monotonic()
        while True:
            batch = await self._ask(lambda: self._client.batches.retrieve(named), f"batch {named}", known=True)
            if batch is None and await self._find(name, None) is None:
                logger.warning("Batch %s is not at %s any more; its requests are submitted again", named, self._place)
                return self._release(name, keys)
            if batch is not None and batch.request_counts is not None:
                counts = batch.request_counts
                self._counts[name] = (counts.total, counts.completed, counts.failed)
            if batch is not None and _status(batch) in _ENDED:
                break
            elapsed = time.monotonic() - begun
            await asyncio.sleep(min(LAST_POLL_SECONDS, max(FIRST_POLL_SECONDS, _POLL_SHARE * elapsed)))
        return await self._take(name, batch, path, keys)

    async def _take(self, name: str, batch: Batch, path: str, keys: Mapping[str, str]) -> None:
        outcomes: dict[str, Outcome] = {}
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                outcomes.update(await self._read(file_id, path))
        for custom_id, outcome in outcomes.items():
            if isinstance(outcome, Answer) and custom_id in keys:
                key = custom_id if outcome.finish_reason == "length" else keys[custom_id]
                self._store.put(key, outcome)
        # From here on nothing of it can be lost.
        self._store.close_batch(name)
        answered = [custom_id for custom_id in keys if isinstance(outcomes.get(custom_id), Answer)]
        others = [custom_id for custom_id in keys if custom_id not in set(answered)]
        for custom_id in answered:
            self._settle(custom_id, outcomes[custom_id])
        if _status(batch) == "cancelled" and others:
            raise BatchError(
                f"batch {batch.id} was cancelled at {self._place}; its {len(answered)} answers are stored. Run the "
                "same command again to ask for the others."
            )
        if others and _status(batch) == "failed" and _is_queue_full(batch):
            return await self._submit_when_there_is_room(others, batch)
        refused = self._refused_lines(batch, list(keys))
        for custom_id in others:
            missing = refused.get(custom_id) or Failure(0, f"batch {batch.id} ended ({batch.status}) without an answer")
            self._settle(custom_id, outcomes.get(custom_id) or missing)
        return None

    async def _submit_when_there_is_room(self, custom_ids: Sequence[str], batch: Batch) -> None:
        """Submit the requests of a batch that the endpoint's queue had no room for: first in two, one after the other.

        Parts that are refused too are submitted as they are, after a wait: other batches have to end first.
        """
        tries = 1 + max(self._no_room.get(custom_id, 0) for custom_id in custom_ids)
        self._no_room.update(dict.fromkeys(custom_ids, tries))
        if tries > self._llm.max_attempts:
            said = failure_of({"errors": _errors_of(batch)})
            for custom_id in custom_ids:
                self._settle(custom_id, replace(said, status=429))
            return
        requests = [self._waiting[custom_id] for custom_id in custom_ids if custom_id in self._waiting]
        middle = (len(requests) + 1) // 2
        if tries > 1 or middle == len(requests):
            wait = min(LAST_ROOM_SECONDS, FIRST_ROOM_SECONDS * 2 ** (tries - 1))
            logger.info(
                "The queue of %s is full; %d requests are submitted in %.0f s", self._place, len(requests), wait
            )
            await asyncio.sleep(wait)
            middle = len(requests)
        for part in (requests[:middle], requests[middle:]):
            if part:
                name = uuid4().hex
                self._start(name, self._submit(name, part), part)
                await asyncio.wait([self._tasks[name]])

    @staticmethod
    def _refused_lines(batch: Batch, custom_ids: Sequence[str]) -> dict[str, Failure]:
        """Why a batch failed as a whole, by request: an error that names a line is about that line alone."""
        if _status(batch) != "failed":
            return {}
        errors = _errors_of(batch)
        by_line = {error["line"]: error for error in errors if error.get("line")}
        if by_line:
            return {
                custom_ids[line - 1]: failure_of(error, 400)
                for line, error in by_line.items()
                if 0 < line <= len(custom_ids)
            }
        return dict.fromkeys(custom_ids, failure_of({"errors": errors} if errors else "the batch failed", 400))

    async def _read(self, file_id: str, path: str) -> dict[str, Outcome]:
        """The outcomes that a file of a batch holds, by request."""
        content = await self._ask(lambda: self._client.files.content(file_id), f"file {file_id}", known=True)
        if content is None:
            raise BatchError(
                f"{self._place} does not give file {file_id}, which holds answers of a batch that is paid for; run the "
                "same command to ask for it again."
            )
        found: dict[str, Outcome] = {}
        for line in content.content.splitlines():
            with suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict) and isinstance(told.get("custom_id"), str):
                    found[told["custom_id"]] = _outcome(told, path)
        return found

    async def _ask(
        self,
        ask: Callable[[], Awaitable[Any]],
        what: str,
        *,
        instead: Callable[[], Awaitable[Any]] | None = None,
        known: bool = False,
    ) -> Any:  # noqa: ANN401 - what the client gives
        """Ask the endpoint about a batch, again where the failure is one of the moment.

        Args:
            ask: the request.
            what: what it is about, for messages.
            instead: looks before another try whether the last one came through after all.
            known: the endpoint has named it before, so that a 404 may pass; None is given where it does not.

        Raises:
            BatchError: in words that name the setting.
        """
        import openai

        failure, said, lost = Failure(0, "not sent"), "", False
        for attempt in range(self._llm.max_attempts):
            try:
                if attempt:
                    await asyncio.sleep(max(failure.wait or 0.0, min(30.0, RETRY_SECONDS * 2**attempt)))
                    found = await instead() if instead is not None else None
                    if found is not None:
                        return found
                return await ask()
            except openai.APIStatusError as error:
                content = self._secrets.hide_keys(error.response.content)
                failure = read_failure(error.status_code, content, error.response.headers)
            except openai.OpenAIError as error:
                failure = connection_failure(error, self._llm.timeout_seconds)
            said = self._secrets.hide(str(failure))
            lost = known and failure.status == _NOT_FOUND
            if failure.status in _NO_ROUTE and not lost:
                raise BatchError(
                    f"{self._place} has no Batch API ({said}): set llm.batch to false, or llm.base_url to an "
                    "endpoint with /files and /batches."
                )
            if scope_of(failure, answered=True).kind != "moment" and not lost:
                raise BatchError(
                    f"{self._place} refused {what} ({said}); every answer so far is stored. Check the key and what "
                    "it may use, or set llm.batch to false, then run the same command again."
                )
        if lost:
            return None
        raise BatchError(
            f"{self._place} did not answer about {what} in {self._llm.max_attempts} tries, the last: {said}. The "
            "batches go on there; run the same command to pick them up again."
        )


def _is_queue_full(batch: Batch) -> bool:
    """Whether a batch failed because too much of this account waits already, and not because it may spend no more."""
    failure = failure_of({"errors": _errors_of(batch)}, 400)
    return any("limit" in code for code in failure.codes) and scope_of(failure, answered=True).kind != "whole"


def _errors_of(batch: Batch) -> list[dict[str, Any]]:
    return [error.model_dump(exclude_none=True) for error in (batch.errors.data if batch.errors else None) or []]


def _status(batch: Batch) -> str:
    """A batch's status as OpenAI spells it."""
    return batch.status.lower().replace("canceled", "cancelled")


def _outcome(told: dict[str, Any], path: str) -> Outcome:
    """One line of a batch's output or errors as the outcome of a request of its own."""
    response = told.get("response")
    if isinstance(response, dict) and not (told.get("error") and not response.get("body")):
        body = response.get("body", response)
        status = int(response.get("status_code") or 200)
        content = body if isinstance(body, str) else json.dumps(body)
        if status < 400:  # noqa: PLR2004 - the least status of a refusal
            return read_response(content.encode(), {}, {"messages": []} if path.startswith("/chat") else {"prompt": ""})
        return read_failure(status, content, {})
    return failure_of(told.get("error") or "the batch holds no answer to the request")
