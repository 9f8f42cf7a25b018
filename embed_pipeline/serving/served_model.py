"""A release ready to answer: its session, its reader and its queue, under its name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.families import TASKS, Kind
from embed_pipeline.release.manifest import Manifest
from embed_pipeline.serving.batcher import Batcher, Cores
from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.reading import Reader, Row
from embed_pipeline.serving.request import Truncate
from embed_pipeline.serving.runtimes import ServedExport
from embed_pipeline.serving.serving_errors import ServingError, invalid
from embed_pipeline.settings import Serving

# Texts tokenised in one go: a large request lets others pass between its parts.
_SLICE_CHARACTERS = 200_000
# For the estimate of a request's tokens before they are counted; English has four to five.
_MOST_CHARACTERS_PER_TOKEN = 4
# Attention over padded rows takes memory by the square of their length.
_PADDED_TOKENS, _PACKED_TOKENS = 8_192, 32_768
# Measured on two cores: no more texts a second above this, only longer waits.
_CPU_BATCH_TOKENS = 768
# A processor computes padding as it does a text; on a GPU a second batch costs more than some of it.
_MAX_CPU_PADDING, _MAX_GPU_PADDING = 16, 128


@dataclass(frozen=True)
class Embedded:
    """Vectors of a request's texts.

    Attributes:
        vectors: float32 (texts, dimensions), unit rows, in input order.
        tokens: tokens read, prefix and special tokens included.
    """

    vectors: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True)
class EndpointResources:
    """What the models of one endpoint have in common.

    Attributes:
        serving: limits.
        metrics: what is counted.
        executor: threads that tokenise.
        cores: held during inference, so that models do not compete for the machine.
    """

    serving: Serving
    metrics: Metrics
    executor: Executor
    cores: Cores


@dataclass(frozen=True)
class _Side:
    """What reads, queues and computes one kind of text, or both."""

    backend: Backend
    reader: Reader
    batcher: Batcher


class ServedModel:
    """One model behind one name.

    Attributes:
        name: what clients ask for.
        precision: fp32, int8, fp16 or bf16.
        runtime: onnxruntime or torch.
        manifest: the release that it comes from.
        dimensions: length of a whole vector.
        matryoshka: shorter lengths that its vectors may be cut to.
        created: when it was loaded, seconds since the epoch.
    """

    def __init__(
        self,
        name: str,
        export: ServedExport,
        manifest: Manifest,
        shared: EndpointResources,
        *,
        matryoshka: Sequence[int] = (),
    ) -> None:
        """Run ``export`` once and start its queue.

        Raises:
            ServingError: the model reads longer texts than fit a batch, or gives no vectors.
        """
        self.name, self.manifest, self.created = name, manifest, int(time.time())
        backend, self.precision, serving = export.backend, export.precision, shared.serving
        self.runtime = backend.runtime
        fitting = _PADDED_TOKENS if backend.computes_padding else _PACKED_TOKENS
        most = fitting if serving.max_batch_tokens == "auto" else serving.max_batch_tokens
        if backend.max_tokens > most:
            message = (
                f"{name} reads {backend.max_tokens} tokens, more than serving.max_batch_tokens = {most}; "
                f"set it to {backend.max_tokens} or more"
            )
            raise ServingError(message)
        self.dimensions = backend.dimensions
        self.matryoshka = tuple(matryoshka)
        self._limit, self._max_request_tokens = backend.max_tokens, serving.max_request_tokens
        self._metrics, self._executor = shared.metrics, shared.executor
        self._sides: dict[Kind, _Side] = {}
        for kind in TASKS:
            side = backend.of_kind(kind)
            known = next((made for made in self._sides.values() if made.backend is side), None)
            self._sides[kind] = known or self._open_side(side, kind, most, shared)

    def _open_side(self, backend: Backend, kind: Kind, most: int, shared: EndpointResources) -> _Side:
        reader = Reader(backend)
        rows = reader.read(["a"], kind, "NONE").rows
        for alone in (True, False):
            if not np.isfinite(backend.infer(rows, alone=alone)).all():
                message = f"{self.name} of release {self.manifest.version} gives a vector that is not finite"
                raise ServingError(message)
        batcher = Batcher(
            backend.infer,
            lanes=backend.lanes,
            max_padding=_max_padding(backend),
            batch_tokens=most if backend.on_gpu else min(_CPU_BATCH_TOKENS, most),
            max_queue_tokens=shared.serving.max_queue_tokens,
            max_queue_seconds=shared.serving.max_queue_seconds,
            metrics=shared.metrics,
            cores=shared.cores,
        )
        return _Side(backend, reader, batcher)

    async def embed(self, texts: Sequence[str], kind: Kind, truncate: Truncate) -> Embedded:
        """Vectors of ``texts``. When the task is cancelled, what has not run yet is dropped.

        Raises:
            RequestError: a text or the request is too long, or the queue is full.
        """
        estimate = sum(min(len(text) // _MOST_CHARACTERS_PER_TOKEN + 1, self._limit) for text in texts)
        batcher = self._sides[kind].batcher
        with batcher.reservation(len(texts), estimate):
            rows = await self._read(texts, kind, truncate)
            pending = batcher.submit(rows, estimate)
        try:
            vectors = await pending.future
        except asyncio.CancelledError:
            batcher.drop(pending)
            raise
        return Embedded(vectors, sum(len(row) for row in rows))

    def close(self) -> None:
        """Finish what waits and stop."""
        for batcher in {side.batcher for side in self._sides.values()}:
            batcher.close()

    async def _read(self, texts: Sequence[str], kind: Kind, truncate: Truncate) -> list[Row]:
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        rows: list[Row] = []
        tokens = 0
        for part in _slices(texts):
            reading = await loop.run_in_executor(
                self._executor, self._sides[kind].reader.read, texts[part], kind, truncate, part.start
            )
            rows.extend(reading.rows)
            self._metrics.truncated.inc(reading.truncated)
            tokens += sum(len(row) for row in reading.rows)
            if tokens > self._max_request_tokens:
                more = f"the first {len(rows)} of {len(texts)} texts have {tokens} tokens"
                message = f"{more}, a request may have {self._max_request_tokens}; send fewer texts at a time"
                raise invalid(message, "input")
        self._metrics.tokenize_seconds.observe(time.monotonic() - started)
        return rows


def cut(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first ``dimensions`` of each vector, at length 1 again."""
    if vectors.shape[1] == dimensions:
        return vectors
    short = vectors[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = short / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def _max_padding(backend: Backend) -> int:
    if not backend.computes_padding:
        return backend.max_tokens
    return _MAX_GPU_PADDING if backend.on_gpu else _MAX_CPU_PADDING


def _slices(texts: Sequence[str]) -> Iterator[slice]:
    start, size = 0, 0
    for index, text in enumerate(texts):
        if size and size + len(text) > _SLICE_CHARACTERS:
            yield slice(start, index)
            start, size = index, 0
        size += len(text)
    yield slice(start, len(texts))
