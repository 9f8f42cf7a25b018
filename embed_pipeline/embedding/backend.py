"""What computes a model, behind one interface: texts to token ids, and rows of token ids to unit vectors.

Three modules implement it: :mod:`~embed_pipeline.embedding.torch_backend` a sentence-transformers model, in memory or
from its folder; :mod:`~embed_pipeline.embedding.onnx_backend` and :mod:`~embed_pipeline.embedding.openvino_backend` an
export, for which neither torch nor transformers is needed. :class:`~embed_pipeline.embedding.encoder.Encoder` encodes
any number of texts with one of them; the endpoint's queue hands its own batches to :meth:`Backend.infer`.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.families import (
    Kind,
    ModelError,
    embedding_dimensions,
    max_tokens_of,
    pad_token_of,
    padding_side_of,
    reading_tokenizer,
    truncation_side_of,
)
from embed_pipeline.embedding.token_batches import pad_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "embedding_config.json"
QUERY_FOLDER = "query"
"""Folder in an export with what computes queries, where the model has another way for them than for passages."""

Floats = NDArray[np.float32]
Row = Sequence[int] | NDArray[np.integer[Any]]
"""Token ids of one text."""
# Of Linear B and cuneiform, with different last bytes: a tokenizer that ends both in one token knows neither.
_UNUSUAL_LETTERS = ("\U00010001", "\U00012002")


@dataclass(frozen=True)
class EncoderConfig:
    """How a model reads texts, whatever computes it.

    Attributes:
        dimensions: length of a vector.
        max_tokens: longest text, in tokens with prefix and special tokens.
        query_prefix: put before every query.
        passage_prefix: put before every passage.
        pad_token_id: what short rows of a batch are filled up with.
        padding_side: where they are filled up.
        truncation_side: where a text that is too long is cut.
        tokenizer: cuts and pads nothing.
    """

    dimensions: int
    max_tokens: int
    query_prefix: str
    passage_prefix: str
    pad_token_id: int
    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, model: SentenceTransformer) -> EncoderConfig:
        """The configuration of a loaded model.

        Raises:
            ModelError: the model has no length of vectors, no limit of tokens, or no tokenizer of the fast kind.
        """
        return cls(
            dimensions=embedding_dimensions(model),
            max_tokens=max_tokens_of(model),
            query_prefix=model.prompts.get("query") or "",
            passage_prefix=model.prompts.get("document") or "",
            pad_token_id=pad_token_of(model),
            padding_side=padding_side_of(model),
            truncation_side=truncation_side_of(model),
            # A copy: whoever else uses the model's own sets truncation and padding on it.
            tokenizer=_whole(reading_tokenizer(model)),
        )

    @classmethod
    def read(cls, onnx_folder: Path) -> EncoderConfig:
        """The configuration that :func:`embed_pipeline.embedding.onnx_export.export_onnx` wrote to ``onnx_folder``.

        Raises:
            ModelError: a file is missing or cannot be read.
        """
        from tokenizers import Tokenizer

        config = _read_config(onnx_folder / CONFIG_FILE)
        tokenizer = onnx_folder / TOKENIZER_FILE
        if not tokenizer.is_file():
            message = f"{tokenizer} is missing"
            raise ModelError(message)
        return cls(
            dimensions=int(config["dimensions"]),
            max_tokens=int(config["max_tokens"]),
            query_prefix=str(config["query_prefix"]),
            passage_prefix=str(config["passage_prefix"]),
            pad_token_id=int(config["pad_token_id"]),
            padding_side="left" if config.get("padding_side") == "left" else "right",
            truncation_side="left" if config.get("truncation_side") == "left" else "right",
            tokenizer=_whole(Tokenizer.from_file(str(tokenizer))),
        )

    def as_dict(self) -> dict[str, Any]:
        """All but the tokenizer as JSON values, as :meth:`read` reads them."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "tokenizer"}

    @cached_property
    def cutting(self) -> Tokenizer:
        """A copy of the tokenizer that cuts texts to ``max_tokens``, special tokens kept."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.enable_truncation(self.max_tokens, direction=self.truncation_side)
        return tokenizer

    @cached_property
    def unknown_id(self) -> int | None:
        """Id of the token for what the tokenizer does not know; None where it knows all, as byte pairs do."""
        rows = [self.tokenizer.encode(letter, add_special_tokens=False).ids for letter in _UNUSUAL_LETTERS]
        last = {row[-1] for row in rows if row}
        return last.pop() if len(last) == 1 and all(rows) else None

    @cached_property
    def digest(self) -> str:
        """Hash of all that decides the token ids of a text, prefixes aside."""
        sides = f"{self.max_tokens} {self.pad_token_id} {self.padding_side} {self.truncation_side}"
        return hashlib.sha256(f"{sides} {self.tokenizer.to_str()}".encode()).hexdigest()


class Backend(ABC):
    """A model on some runtime.

    Attributes:
        runtime: name of what computes.
        device: where: ``cpu``, or a GPU as torch names it.
        computes_padding: whether a short text takes as long as the longest of its batch.
        lanes: inferences that may run side by side, each on a core of its own; 1: one at a time.
        config: how it reads texts.
        query_side: what computes queries, where the model has another way for them than for passages; None: this does.
    """

    runtime: ClassVar[str]
    device: str = "cpu"
    computes_padding: bool = True
    lanes: int = 1
    query_side: Backend | None = None

    def __init__(self, config: EncoderConfig) -> None:
        self.config = config
        self.dimensions, self.max_tokens = config.dimensions, config.max_tokens
        self.query_prefix, self.passage_prefix = config.query_prefix, config.passage_prefix
        self.special_tokens: int = config.tokenizer.num_special_tokens_to_add(is_pair=False)

    def of_kind(self, kind: Kind) -> Backend:
        """What computes texts of ``kind``."""
        return self.query_side if kind == "query" and self.query_side is not None else self

    @property
    @abstractmethod
    def identity(self) -> str:
        """What decides the bits of a vector: weights, arithmetic and the version of what computes."""

    @abstractmethod
    def _begin(self, tokens: NDArray[np.int64], mask: NDArray[np.int64], *, alone: bool) -> Callable[[], Floats]:
        """Begin to compute a padded batch, over all cores or else on one; the call gives its unit vectors."""

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.device.startswith("cuda")

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> list[NDArray[np.int32]]:
        """Token ids of each text with the special tokens; no prefix is added here.

        Args:
            texts: as they are to be read, prefix included.
            truncate: cut each to ``max_tokens``, special tokens kept; else nothing is cut.
        """
        tokenizer = self.config.cutting if truncate else self.config.tokenizer
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def begin(self, ids: Sequence[Row], *, alone: bool = True) -> Callable[[], Floats]:
        """Begin to compute rows of token ids as one padded batch; a GPU goes on while the caller prepares the next.

        Args:
            ids: at least one row.
            alone: whether it may use all cores; else it takes one, and up to ``lanes`` such calls run side by side.

        Returns:
            Waits for the unit vectors, float32 (n, dimensions), and gives them.

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
        left = self.config.padding_side == "left"
        return self._begin(*pad_rows(ids, self.config.pad_token_id, left=left), alone=alone)

    def infer(self, ids: Sequence[Row], *, alone: bool = True) -> Floats:
        """Unit vectors, float32 (n, dimensions), of rows of token ids, run as one padded batch.

        Raises:
            ValueError: as :meth:`begin`.
        """
        return self.begin(ids, alone=alone)()


def _whole(tokenizer: Tokenizer) -> Tokenizer:
    """``tokenizer``, made to cut and pad nothing."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise ModelError(message) from error
    needed = {"dimensions", "max_tokens", "query_prefix", "passage_prefix", "pad_token_id"}
    missing = sorted(needed - set(config)) if isinstance(config, dict) else sorted(needed)
    if missing:
        message = f"{path} lacks {', '.join(missing)}"
        raise ModelError(message)
    return dict(config)
