"""The one way from texts to vectors: round trips, mining, training, evaluation, parity and a deployment's check.

Each distinct text is encoded once, texts are tokenised some thousands at a time, and batches are cut by tokens from
length-sorted texts, whichever backend computes them. Passages of a document batch are encoded together and apart from
all others, so that a stored batch is not encoded again where the corpus has grown. With torch the vectors are those of
``SentenceTransformer.encode``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import Backend, Floats
from embed_pipeline.embedding.families import TASKS, Kind, ModelError
from embed_pipeline.embedding.token_batches import in_lanes, token_budget, token_budget_batches, tokenized_windows
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.embedding.vector_store import VectorStore, release
from embed_pipeline.progress import Bar, progress
from embed_pipeline.settings import Auto, Embedding

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


_Rows = Sequence[NDArray[np.int32]]

_MOST_CHARACTERS_PER_TOKEN = 8


class Encoder:
    """A model that turns queries and passages into vectors.

    Attributes:
        backend: what computes it; queries may have a side of their own.
        dimensions: length of a vector.
        max_tokens: longest text that is read whole, prefix and special tokens included; the rest is cut off.
    """

    def __init__(
        self,
        backend: Backend,
        batch_tokens: int | Auto = "auto",
        store: Path | None = None,
        batches: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Encode with ``backend``.

        Args:
            backend: the model, opened.
            batch_tokens: tokens in one batch, padding included; auto: what suits the hardware.
            store: folder in which vectors are kept for the next stage; None: they are not.
            batches: hash of a passage to the document batch that it came with, as of
                :func:`~embed_pipeline.text.passages.batch_of_passages`.
        """
        self.backend = backend
        self.dimensions, self.max_tokens = backend.dimensions, backend.max_tokens
        self._budget = token_budget(batch_tokens, on_gpu=backend.on_gpu, lanes=backend.lanes)
        self._batches = batches
        self._stores: dict[Kind, VectorStore] = {}
        if store is not None:
            for kind in TASKS:
                side = backend.of_kind(kind)
                arithmetic = f"{side.config.digest} {self._budget} {side.lanes} {side.identity}"
                self._stores[kind] = VectorStore(store, arithmetic)

    @property
    def passage_tokens(self) -> int:
        """Longest passage that is read whole, in tokens: what prefix and special tokens leave of ``max_tokens``."""
        return self.max_tokens - len(self.backend.tokenize([self.backend.passage_prefix])[0])

    @classmethod
    def load(
        cls,
        name: str | Path,
        embedding: Embedding,
        store: Path | None = None,
        batches: Mapping[int, str] = MappingProxyType({}),
    ) -> Encoder:
        """Load ``name``, as :func:`~embed_pipeline.embedding.models.resolve_model` takes it, with torch.

        ``store`` and ``batches`` are those of the constructor.

        Raises:
            ModelError: the model is missing, cannot be read, or brings code of its own.
        """
        return cls(TorchBackend.load(name, embedding), embedding.batch_tokens, store, batches)

    @classmethod
    def of(cls, model: SentenceTransformer, embedding: Embedding) -> Encoder:
        """Encode with a model in memory, which is left as it is: it may be in training."""
        return cls(TorchBackend(model, embedding.precision), embedding.batch_tokens)

    def encode(self, texts: Sequence[str], kind: Kind, label: str | None = None) -> Floats:
        """Unit vectors of ``texts``, in input order.

        Args:
            texts: any number, in any order; repeats cost nothing.
            kind: whose prefix is put before each text.
            label: shown with rate and time left while it runs; None: nothing is shown.

        Returns:
            float32, (len(texts), dimensions), each row of length 1; with a store, many lie in a file and are read from
            there as they are used.

        Raises:
            StorageError: the store's disk is full.
            ModelError: the model gives a vector that is not finite, or a text that has no tokens at all.
        """
        backend, stored = self.backend.of_kind(kind), self._stores.get(kind)
        prefix = backend.query_prefix if kind == "query" else backend.passage_prefix
        distinct = list(dict.fromkeys(texts))
        vectors = self._room(len(distinct), kind)
        left: list[tuple[list[int], list[str], Path | None]] = []
        for batch, places in self._calls(distinct, kind).items():
            read = [prefix + distinct[place] for place in places]
            path = stored.place(read, batch=bool(batch)) if stored else None
            found = stored.get(path, (len(read), self.dimensions)) if stored and path else None
            if found is None:
                left.append((places, read, path))
            else:
                vectors[places] = found
                release(vectors)
        total = sum(len(read) for _, read, _ in left)
        with progress(label, total, "text") if label and total else nullcontext() as bar:
            for places, read, path in left:
                found = self._compute(read, backend, bar)
                vectors[places] = found
                release(vectors)
                if stored and path:
                    stored.put(path, found)
        if len(distinct) == len(texts):
            return vectors
        position = {text: index for index, text in enumerate(distinct)}
        every = self._room(len(texts), kind)
        return np.take(vectors, [position[text] for text in texts], axis=0, out=every, mode="clip")

    def _room(self, texts: int, kind: Kind) -> Floats:
        shape, stored = (texts, self.dimensions), self._stores.get(kind)
        return stored.room(shape) if stored else np.empty(shape, np.float32)

    def _calls(self, texts: Sequence[str], kind: Kind) -> dict[str, list[int]]:
        """Batch to the places of its texts, in an order that no other text decides; those of no batch as they come."""
        batches = self._batches if kind == "passage" else {}
        calls: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            calls.setdefault(batches.get(hash(text), ""), []).append(place)
        return {batch: sorted(places, key=texts.__getitem__) if batch else places for batch, places in calls.items()}

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without prefix, special tokens or a limit.

        A word that the tokenizer does not know is one token to it, however long: no text counts for less than a token
        for eight characters.
        """
        windows = tokenized_windows(texts, self.backend.tokenize, on_gpu=False)
        read = [len(row) - self.backend.special_tokens for _, rows in windows for row in rows]
        return [
            max(tokens, math.ceil(len(" ".join(text.split())) / _MOST_CHARACTERS_PER_TOKEN))
            for tokens, text in zip(read, texts, strict=True)
        ]

    def count_unknown(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that stand for words or characters which the tokenizer does not know."""
        unknown = self.backend.config.unknown_id
        windows = tokenized_windows(texts, self.backend.tokenize, on_gpu=False)
        return [0 if unknown is None else int((row == unknown).sum()) for _, rows in windows for row in rows]

    def _compute(self, texts: Sequence[str], backend: Backend, bar: Bar | None) -> Floats:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        tokenize = partial(backend.tokenize, truncate=True)
        for start, rows in tokenized_windows(texts, tokenize, on_gpu=backend.on_gpu):
            for position, row in enumerate(rows, start):
                if not len(row):
                    message = f"the model's tokenizer gives no token for the text {texts[position][:80]!r}"
                    raise ModelError(message)
            for positions, found in self._infer(rows, backend):
                vectors[start + positions] = found
                if bar is not None:
                    bar.advance(len(positions))
        self._check_finite(vectors, texts)
        return vectors

    def _infer(self, rows: _Rows, backend: Backend) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """Positions of ``rows`` in batches, and their vectors; side by side where there are lanes and work for them."""
        lengths, lanes = [len(row) for row in rows], backend.lanes
        if lanes > 1 and len(rows) > 1:
            batches = list(token_budget_batches(lengths, min(self._budget, math.ceil(sum(lengths) / lanes))))
            yield from in_lanes(lambda batch: backend.infer([rows[i] for i in batch], alone=False), batches, lanes)
            return
        # A GPU has the next batch before the vectors of the last are fetched.
        begun = deque[tuple[NDArray[np.int64], Callable[[], Floats]]]()
        for batch in token_budget_batches(lengths, self._budget):
            begun.append((batch, backend.begin([rows[i] for i in batch])))
            if len(begun) > 1:
                positions, vectors = begun.popleft()
                yield positions, vectors()
        for positions, vectors in begun:
            yield positions, vectors()

    def _check_finite(self, vectors: Floats, texts: Sequence[str]) -> None:
        wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(wrong):
            computed = f"the model, computed by {self.backend.runtime}, gives a vector that is not finite"
            message = f"{computed} for {len(wrong)} texts, first {texts[wrong[0]][:80]!r}"
            raise ModelError(message)
