"""The corpus searched with every served model, and the page that shows the results side by side."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.responses import HTMLResponse

from embed_pipeline.machine import return_freed_memory
from embed_pipeline.serving.served_model import ServedModel
from embed_pipeline.serving.service import Service
from embed_pipeline.serving.serving_errors import RequestError, invalid, unavailable
from embed_pipeline.storage import StorageError, read_table, table_path, version_of

if TYPE_CHECKING:
    import polars as pl
    from upath import UPath

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
SHOWN = 10
MAX_QUERY_CHARACTERS = 1000
MAX_SEGMENTS = 50_000
"""Segments that are indexed; of a larger corpus the first ones, and the page says so."""
# Texts given to a model at once while indexing: few, so that requests are merged in between.
_INDEXED_AT_ONCE = 16
_LOOK_SECONDS = 2.0
_INLINE_ELEMENT = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass
class Index:
    """The corpus under some models.

    Attributes:
        models: those models.
        version: version of the stored corpus (:func:`embed_pipeline.storage.version_of`).
        corpus: the segments indexed.
        texts: what is embedded of each, as the release's models were trained.
        segments: segments in the whole corpus.
        vectors: for each model float32 (segments, dimensions), filled but for ``missing`` and as far as ``done`` says.
        missing: segments to embed; the others' vectors are those of the index before.
        done: vectors there, over all models.
        failure: why it cannot be finished.
    """

    models: tuple[ServedModel, ...]
    version: str
    corpus: pl.DataFrame
    texts: list[str]
    segments: int
    vectors: list[NDArray[np.float32]]
    missing: list[int]
    done: int = 0
    failure: str | None = None

    @property
    def total(self) -> int:
        """Vectors wanted."""
        return len(self.models) * self.corpus.height


class Search:
    """Search over the corpus of the store.

    It is indexed when somebody first looks, again for a new release, and follows the stored corpus: what was removed
    there, as a forgotten document is, is found no more once ``serving.reload_seconds`` have passed.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._path = table_path(service.settings.paths.root, "corpus")
        self._index: Index | None = None
        self._building: asyncio.Task[None] | None = None
        self._choosing = asyncio.Lock()
        reload_seconds = service.settings.serving.reload_seconds
        self._look_seconds = _LOOK_SECONDS if reload_seconds == "never" else reload_seconds
        self._looked = -math.inf

    async def find(self, query: str) -> dict[str, Any]:
        """The best segments for ``query`` under every model served, or how far the indexing has come.

        Raises:
            RequestError: 400 for no query or a very long one, 404 where there is no corpus, 503 while loading and where
                the corpus cannot be read.
        """
        if not query.strip():
            raise invalid("q is empty", "q")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise invalid(f"q has {len(query)} characters, may have {MAX_QUERY_CHARACTERS}", "q")
        models: tuple[ServedModel, ...] = ()
        embedded: list[NDArray[np.float32]] = []
        while True:
            index = await self._current()
            if index.failure is not None:
                raise RequestError(500, f"the corpus could not be indexed: {index.failure}", code="internal_error")
            state = {"query": query, "segments": index.segments, "indexed": index.corpus.height}
            if index.done < index.total:
                return {**state, "state": "indexing", "done": index.done, "total": index.total, "systems": []}
            if index.models == models:
                systems = await self._run(_systems, index, embedded)
                return {**state, "state": "ready", "done": index.done, "total": index.total, "systems": systems}
            # The query may wait behind others' texts: what is shown is of the corpus and the release after that.
            try:
                answers = await asyncio.gather(*(model.embed([query], "query", "END") for model in index.models))
            except RequestError as error:
                is_replaced = self._service.ready and self._service.models != index.models
                if error.status != 503 or not is_replaced:  # noqa: PLR2004 - an HTTP status
                    raise
            else:
                models, embedded = index.models, [answer.vectors[0] for answer in answers]

    async def _current(self) -> Index:
        """The index of the models served now; begun where there is none yet."""
        self._service.require_ready()
        async with self._choosing:
            models, before = self._service.models, self._index
            if before is None or before.models != models or await self._is_replaced(before):
                if self._building is not None:
                    self._building.cancel()
                # Nothing of the index before is shown any more, whatever becomes of the new one.
                self._index = None
                self._index = await self._run(_begin, models, self._path, before)
                self._looked = time.monotonic()
                self._building = asyncio.create_task(self._build(self._index))
                return self._index
            return before

    async def _is_replaced(self, index: Index) -> bool:
        """Whether the stored corpus is another than the one indexed, looked up now and then."""
        now = time.monotonic()
        if now - self._looked < self._look_seconds:
            return False
        self._looked = now
        try:
            return await self._run(_stored_version, self._path) != index.version
        except RequestError:
            self._index = None
            raise

    async def _run(self, function: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._service.executor, function, *arguments)

    async def _build(self, index: Index) -> None:
        texts = index.texts
        try:
            for model, vectors in zip(index.models, index.vectors, strict=True):
                for start in range(0, len(index.missing), _INDEXED_AT_ONCE):
                    if self._service.models != index.models:
                        # Another release is served; the next look begins anew.
                        return
                    part = index.missing[start : start + _INDEXED_AT_ONCE]
                    vectors[part] = await self._embed(model, [texts[place] for place in part])
                    index.done += len(part)
        except (RequestError, RuntimeError, FloatingPointError) as error:
            index.failure = str(error)
            logger.exception("the corpus could not be indexed for the search page")
        # The index before held the models of its release.
        await self._run(return_freed_memory)

    @staticmethod
    async def _embed(model: ServedModel, texts: list[str]) -> NDArray[np.float32]:
        while True:
            try:
                return (await model.embed(texts, "passage", "END")).vectors
            except RequestError as error:
                # The page comes after everybody else.
                if error.status != 429:  # noqa: PLR2004 - an HTTP status
                    raise
                await asyncio.sleep(float(error.headers["Retry-After"]))


def _begin(models: tuple[ServedModel, ...], path: UPath, before: Index | None) -> Index:
    """An index of the stored corpus, with the vectors that a whole index under the same models has of its texts."""
    from embed_pipeline import tables
    from embed_pipeline.text.passages import passage_texts

    version = _stored_version(path)
    try:
        corpus = read_table(path, tables.CORPUS)
    except StorageError as error:
        raise unavailable(f"the corpus cannot be searched: {error}") from error
    shown = corpus.head(MAX_SEGMENTS)
    texts = passage_texts(shown, models[0].manifest.model.passage_context)
    vectors = [np.zeros((shown.height, model.dimensions), dtype=np.float32) for model in models]
    places: dict[str, int] = {}
    if before is not None and before.models == models and before.done == before.total:
        places = {text: place for place, text in enumerate(before.texts)}
    known = [(place, places[text]) for place, text in enumerate(texts) if text in places]
    if known and before is not None:
        new, old = (list(part) for part in zip(*known, strict=True))
        for target, source in zip(vectors, before.vectors, strict=True):
            target[new] = source[old]
    missing = sorted(set(range(shown.height)) - {place for place, _ in known})
    return Index(models, version, shown, texts, corpus.height, vectors, missing, done=len(known) * len(models))


def _stored_version(path: UPath) -> str:
    try:
        return version_of(path)
    except FileNotFoundError as error:
        message = f"there is no corpus at {path}; run the pipeline up to the corpus first"
        raise RequestError(404, message, code="no_corpus") from error
    except StorageError as error:
        raise unavailable(f"the corpus cannot be searched: {error}") from error


def _systems(index: Index, embedded: list[NDArray[np.float32]]) -> list[dict[str, Any]]:
    """What each model finds for the vector that it gave the query."""
    return [_hits(index, *each) for each in zip(index.models, index.vectors, embedded, strict=True)]


def _hits(index: Index, model: ServedModel, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> dict[str, Any]:
    scores = vectors @ query
    order = np.argsort(-scores, kind="stable")[:SHOWN]
    rows = index.corpus[order.tolist()].select("segment_id", "path", "heading_path", "text").to_dicts()
    results = [
        {"rank": rank + 1, "score": float(scores[place]), **row}
        for rank, (place, row) in enumerate(zip(order, rows, strict=True))
    ]
    return {"name": model.name, "version": model.manifest.version, "results": results}


def search_page() -> HTMLResponse:
    """The page as an answer; its own script and style are allowed by their hashes."""
    text = files("embed_pipeline.serving").joinpath("search.html").read_text(encoding="utf-8")
    allowed = {tag: _script_hash(content) for tag, content in _INLINE_ELEMENT.findall(text)}
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return HTMLResponse(text, headers=headers)


def _script_hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
