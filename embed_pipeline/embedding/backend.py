"""A released model ready to run: text to token ids to unit vectors, whichever runtime computes them.

The tokenizer, limits and prefixes come from the folder that :func:`embed_pipeline.release.onnx_export.export_onnx`
writes, and need neither torch nor transformers.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.batches import pad_rows, token_budget, token_budget_batches, tokenized_windows
from embed_pipeline.embedding.lanes import in_lanes
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.progress import progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "embedding_config.json"

Row = Sequence[int] | NDArray[np.integer[Any]]
"""Token ids of one text."""


class Backend(ABC):
    """A model as it was released, on some runtime.

    Attributes:
        runtime: name of what computes.
        on_gpu: whether it computes on a GPU.
        computes_padding: whether a short text takes as long as the longest of its batch.
        lanes: inferences that may run side by side, each on a core of its own; 1: one at a time.
        dimensions: length of a vector.
        max_tokens: longest text, in tokens with prefix and special tokens.
        query_prefix: put before every query.
        passage_prefix: put before every passage.
        base_model: name of the model that was tuned.
        special_tokens: special tokens that the tokenizer adds to a text.
    """

    runtime: ClassVar[str]
    on_gpu: bool
    computes_padding: bool = True
    lanes: int = 1

    def __init__(self, onnx_folder: Path, batch_tokens: int) -> None:
        """Read limits, prefixes and tokenizer.

        Args:
            onnx_folder: holds ``tokenizer.json`` and ``embedding_config.json``.
            batch_tokens: tokens in one batch of :meth:`encode`, padding included; 0: what suits the hardware.

        Raises:
            ModelError: a file is missing or cannot be read.
        """
        config = _read_config(onnx_folder / CONFIG_FILE)
        self.dimensions = int(config["dimensions"])
        self.max_tokens = int(config["max_tokens"])
        self.query_prefix = str(config["query_prefix"])
        self.passage_prefix = str(config["passage_prefix"])
        self.base_model = str(config["base_model"])
        self._pad_token_id = int(config["pad_token_id"])
        self._left = config.get("padding_side") == "left"
        self._batch_tokens = batch_tokens
        self._whole = _read_tokenizer(onnx_folder / TOKENIZER_FILE)
        self.special_tokens: int = self._whole.num_special_tokens_to_add(is_pair=False)
        self._cut = _read_tokenizer(onnx_folder / TOKENIZER_FILE)
        self._cut.enable_truncation(self.max_tokens)

    @abstractmethod
    def _run(self, tokens: NDArray[np.int64], mask: NDArray[np.int64], *, alone: bool) -> NDArray[np.float32]:
        """Unit vectors of a padded batch, over all cores, or else on one."""

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> list[NDArray[np.int32]]:
        """Token ids of each text with the special tokens; no prefix is added here.

        Args:
            texts: as they are to be read, prefix included.
            truncate: cut each to ``max_tokens``, special tokens kept; else nothing is cut.
        """
        tokenizer = self._cut if truncate else self._whole
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def infer(self, ids: Sequence[Row], *, alone: bool = True) -> NDArray[np.float32]:
        """Unit vectors, float32 (n, dimensions), of rows of token ids, run as one padded batch.

        Args:
            ids: at least one row.
            alone: whether it may use all cores; else it takes one, and up to ``lanes`` such calls run side by side.

        Raises:
            ValueError: there are no rows, or a row is empty or longer than ``max_tokens``.
        """
        if not len(ids):
            message = "ids holds no row"
            raise ValueError(message)
        for position, row in enumerate(ids):
            if not 0 < len(row) <= self.max_tokens:
                message = f"ids[{position}] has {len(row)} tokens, must have 1 to {self.max_tokens}"
                raise ValueError(message)
        return self._run(*self._pad(ids), alone=alone)

    def _pad(self, ids: Sequence[Row]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return pad_rows(ids, self._pad_token_id, left=self._left)

    def encode(
        self, texts: Sequence[str], kind: Literal["query", "passage"], label: str | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors of ``texts``, float32 (n, dimensions), in input order; long texts are cut.

        Raises:
            ModelError: the model gives a vector that is not finite.
        """
        prefix = self.query_prefix if kind == "query" else self.passage_prefix
        distinct = list(dict.fromkeys(texts))
        budget = token_budget(self._batch_tokens, on_gpu=self.on_gpu, lanes=self.lanes)
        vectors = np.empty((len(distinct), self.dimensions), dtype=np.float32)
        with progress(label or f"encode {kind} texts with {self.runtime}", len(distinct), "texts") as bar:
            read = partial(self.tokenize, truncate=True)
            for start, rows in tokenized_windows([prefix + text for text in distinct], read, on_gpu=self.on_gpu):
                for batch, found in self._infer_batches(rows, budget):
                    vectors[start + batch] = found
                    bar.advance(len(batch))
        if not np.isfinite(vectors).all():
            message = f"the released model gives vectors that are not finite with {self.runtime}"
            raise ModelError(message)
        position = {text: index for index, text in enumerate(distinct)}
        return vectors[[position[text] for text in texts]]

    def _infer_batches(
        self, rows: Sequence[Row], budget: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Positions of ``rows`` in batches, and their vectors; side by side where there are lanes and work for them."""
        lengths = [len(row) for row in rows]
        if self.lanes == 1 or len(rows) == 1:
            for batch in token_budget_batches(lengths, budget):
                yield batch, self.infer([rows[i] for i in batch])
            return
        batches = list(token_budget_batches(lengths, min(budget, math.ceil(sum(lengths) / self.lanes))))
        yield from in_lanes(lambda batch: self.infer([rows[i] for i in batch], alone=False), batches, self.lanes)


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        message = f"{path} is missing"
        raise ModelError(message)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise ModelError(message) from error
    needed = {"dimensions", "max_tokens", "query_prefix", "passage_prefix", "pad_token_id", "base_model"}
    missing = sorted(needed - set(config)) if isinstance(config, dict) else sorted(needed)
    if missing:
        message = f"{path} lacks {', '.join(missing)}"
        raise ModelError(message)
    return dict(config)
