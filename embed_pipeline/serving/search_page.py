"""The corpus searched with every served model, and the page that shows the results side by side."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import HTMLResponse

from embed_pipeline.serving.served_model import ServedModel
from embed_pipeline.serving.service import Service
from embed_pipeline.serving.serving_errors import RequestError, invalid
from embed_pipeline.storage import read_table, table_path

if TYPE_CHECKING:
    import polars as pl
    from upath import UPath

logger = logging.getLogger(__name__)
SHOWN = 10
MAX_QUERY_CHARACTERS = 1000
MAX_SEGMENTS = 50_000
"""Segments that are indexed; of a larger corpus the first ones, and the page says so."""
# Texts given to a model at once while indexing: few, so that requests are merged in between.
_INDEXED_AT_ONCE = 16
_INLINE_ELEMENT = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass
class Index:
    """The corpus under some models.

    Attributes:
        models: those models.
        corpus: the segments indexed.
        segments: segments in the whole corpus.
        vectors: for each model float32 (segments, dimensions), filled as far as ``done`` says.
        done: vectors there, over all models.
        failure: why it cannot be finished.
    """

    models: tuple[ServedModel, ...]
    corpus: pl.DataFrame
    segments: int
    vectors: list[NDArray[np.float32]]
    done: int = 0
    failure: str | None = None

    @property
    def total(self) -> int:
        """Vectors wanted."""
        return len(self.models) * self.corpus.height


class Search:
    """Search over the corpus of the store. It is indexed when somebody first looks, and anew for a new release."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._path = table_path(service.settings.paths.root, "corpus")
        self._index: Index | None = None
        self._building: asyncio.Task[None] | None = None
        self._choosing = asyncio.Lock()

    async def find(self, query: str) -> dict[str, Any]:
        """The best segments for ``query`` under every model served, or how far the indexing has come.

        Raises:
            RequestError: 400 for no query or a very long one, 404 where there is no corpus, 503 while loading.
        """
        if not query.strip():
            raise invalid("q is empty", "q")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise invalid(f"q has {len(query)} characters, may have {MAX_QUERY_CHARACTERS}", "q")
        index = await self._current()
        if index.failure is not None:
            raise RequestError(500, f"the corpus could not be indexed: {index.failure}", code="internal_error")
        state = {"query": query, "segments": index.segments, "indexed": index.corpus.height}
        if index.done < index.total:
            return {**state, "state": "indexing", "done": index.done, "total": index.total, "systems": []}
        loop, systems = asyncio.get_running_loop(), []
        for model, vectors in zip(index.models, index.vectors, strict=True):
            embedded = await model.embed([query], "query", "END")
            system = await loop.run_in_executor(self._service.executor, _hits, index, model, vectors, embedded.vectors)
            systems.append(system)
        return {**state, "state": "ready", "done": index.done, "total": index.total, "systems": systems}

    async def _current(self) -> Index:
        """The index of the models served now; begun where it is not there yet."""
        self._service.require_ready()
        async with self._choosing:
            models = self._service.models
            if self._index is None or self._index.models != models:
                if self._building is not None:
                    self._building.cancel()
                loop = asyncio.get_running_loop()
                self._index = await loop.run_in_executor(self._service.executor, _empty, models, self._path)
                self._building = asyncio.create_task(self._build(self._index))
            return self._index

    async def _build(self, index: Index) -> None:
        texts = index.corpus["text"].to_list()
        try:
            for model, vectors in zip(index.models, index.vectors, strict=True):
                for start in range(0, len(texts), _INDEXED_AT_ONCE):
                    if self._service.models != index.models:
                        # Another release is served; the next look begins anew.
                        return
                    part = texts[start : start + _INDEXED_AT_ONCE]
                    vectors[start : start + len(part)] = await self._embed(model, part)
                    index.done += len(part)
        except (RequestError, RuntimeError, FloatingPointError) as error:
            index.failure = str(error)
            logger.exception("the corpus could not be indexed for the search page")

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


def _empty(models: tuple[ServedModel, ...], path: UPath) -> Index:
    from embed_pipeline import tables

    try:
        corpus = read_table(path, tables.CORPUS)
    except FileNotFoundError as error:
        message = f"there is no corpus at {path}; run the pipeline up to the corpus first"
        raise RequestError(404, message, code="no_corpus") from error
    shown = corpus.head(MAX_SEGMENTS)
    vectors = [np.zeros((shown.height, model.dimensions), dtype=np.float32) for model in models]
    return Index(models, shown, corpus.height, vectors)


def _hits(index: Index, model: ServedModel, vectors: NDArray[np.float32], query: NDArray[np.float32]) -> dict[str, Any]:
    scores = vectors @ query[0]
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
