"""The one encoder behind mining, evaluation and parity: texts to unit vectors.

The vectors are those of ``SentenceTransformer.encode``; the time is less, because each distinct text is encoded
once, texts are tokenised once, and batches are cut by tokens from length-sorted texts instead of by count.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.batches import pad_rows, token_budget, token_budget_batches, tokenized_windows
from embed_pipeline.embedding.forward import Precision, prepare_for_inference, unit_vectors
from embed_pipeline.embedding.models import ModelError, load_model
from embed_pipeline.embedding.vector_store import VectorStore
from embed_pipeline.progress import Bar, progress
from embed_pipeline.settings import Embedding

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

Kind = Literal["query", "passage"]

_MOST_CHARACTERS_PER_TOKEN = 8


class Encoder:
    """A loaded model that turns queries and passages into vectors.

    Attributes:
        model: the sentence-transformers model, in eval mode.
        dimensions: length of a vector.
        max_tokens: longest text that is read whole, prefix and special tokens included; the rest is cut off.
        query_prefix: put before every query.
        passage_prefix: put before every passage.
    """

    def __init__(self, model: SentenceTransformer, embedding: Embedding, store: Path | None = None) -> None:
        self.model = model
        self.dimensions = embedding_dimensions(model)
        self.max_tokens = max_tokens_of(model)
        self.query_prefix: str = model.prompts.get("query") or ""
        self.passage_prefix: str = model.prompts.get("document") or ""
        self._tokenizer = model.tokenizer
        self._on_gpu = model.device.type == "cuda"
        self._batch_tokens = token_budget(embedding.batch_tokens, on_gpu=self._on_gpu)
        self._precision: Precision = "bf16" if embedding.precision == "bf16" else "fp32"
        arithmetic = f"{self._precision} {self._batch_tokens} {self.max_tokens} {model.device}"
        self._stored = VectorStore(store, model, arithmetic) if store else None

    @property
    def passage_tokens(self) -> int:
        """Longest passage that is read whole, in tokens: what prefix and special tokens leave of ``max_tokens``."""
        taken = self._tokenizer.num_special_tokens_to_add()
        if self.passage_prefix:
            taken += len(self._tokenizer(self.passage_prefix, add_special_tokens=False)["input_ids"])
        return self.max_tokens - int(taken)

    @classmethod
    def load(cls, name: str | Path, embedding: Embedding, store: Path | None = None) -> Encoder:
        """Load ``name`` as :func:`~embed_pipeline.embedding.models.load_model` does.

        Args:
            name: the model.
            embedding: device, precision and batch budget.
            store: folder in which the vectors of whole calls are kept for the next stage; None: they are not.

        Raises:
            ModelError: the model is not there, cannot be read, or brings code of its own.
        """
        encoder = cls(load_model(name, embedding), embedding, store)
        prepare_for_inference(encoder.model, encoder._precision)
        return encoder

    def encode(self, texts: Sequence[str], kind: Kind, label: str | None = None) -> NDArray[np.float32]:
        """Unit vectors of ``texts``, in input order.

        Args:
            texts: any number, in any order; repeats cost nothing.
            kind: whose prefix is put before each text.
            label: shown with rate and time left while it runs; None: nothing is shown.

        Returns:
            float32, (len(texts), dimensions), each row of length 1.

        Raises:
            ModelError: the model gives a vector that is not finite, or a text that has no tokens at all.
        """
        prefix = self.query_prefix if kind == "query" else self.passage_prefix
        distinct = list(dict.fromkeys(texts))
        read = [prefix + text for text in distinct]
        key = self._stored.key(read) if self._stored else None
        vectors = self._stored.get(key, (len(read), self.dimensions)) if self._stored and key else None
        if vectors is None:
            vectors = self._compute(read, label)
            if self._stored and key:
                self._stored.put(key, vectors)
        if len(distinct) == len(texts):
            return vectors
        position = {text: index for index, text in enumerate(distinct)}
        return vectors[[position[text] for text in texts]]

    def _compute(self, texts: Sequence[str], label: str | None) -> NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        with _shown(label, len(texts)) as bar:
            for start, rows in tokenized_windows(texts, self._tokenize, on_gpu=self._on_gpu):
                for positions, found in self._infer_in_turn(rows):
                    vectors[start + positions] = found
                    if bar is not None:
                        bar.advance(len(positions))
        _check_finite(vectors, texts)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without prefix, special tokens or a limit.

        A word that the tokenizer does not know is one token to it, however long: no text counts for less than a token
        for eight characters.
        """

        def count(window: Sequence[str]) -> list[int]:
            rows = self._tokenizer(
                list(window),
                add_special_tokens=False,
                truncation=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )["input_ids"]
            return [
                max(len(row), len(" ".join(text.split())) // _MOST_CHARACTERS_PER_TOKEN)
                for row, text in zip(rows, window, strict=True)
            ]

        return [tokens for _, counts in tokenized_windows(texts, count, on_gpu=False) for tokens in counts]

    def _tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        rows = self._tokenizer(
            list(texts),
            add_special_tokens=True,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                message = f"the model's tokenizer gives no token for the text {text[:80]!r}"
                raise ModelError(message)
        return [np.asarray(row, dtype=np.int32) for row in rows]

    def _infer_in_turn(
        self, rows: Sequence[NDArray[np.int32]]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Positions and vectors of one batch after the other; a GPU has the next before the last is fetched."""
        computed: list[tuple[NDArray[np.int64], Tensor]] = []
        for batch in token_budget_batches([len(row) for row in rows], self._batch_tokens):
            computed.append((batch, self._infer([rows[i] for i in batch])))
            if len(computed) > 1:
                positions, before = computed.pop(0)
                yield positions, before.cpu().numpy()
        for positions, last in computed:
            yield positions, last.cpu().numpy()

    def _infer(self, rows: Sequence[NDArray[np.int32]]) -> Tensor:
        left = self._tokenizer.padding_side == "left"
        tokens, mask = pad_rows(rows, self._tokenizer.pad_token_id or 0, left=left)
        return unit_vectors(self.model, tokens, mask, dimensions=self.dimensions, precision=self._precision)


def embedding_dimensions(model: SentenceTransformer) -> int:
    """Length of the vectors that ``model`` gives, after its own cut where it has one.

    Raises:
        ModelError: the model does not say.
    """
    # sentence-transformers renamed the method in version 6 and keeps the old name with a warning.
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    dimensions = ask()
    if not dimensions:
        message = "the model does not say how long its vectors are"
        raise ModelError(message)
    return min(int(dimensions), model.truncate_dim or int(dimensions))


def max_tokens_of(model: SentenceTransformer) -> int:
    """Longest text that ``model`` reads, in tokens with the special ones: its own limit, within its positions.

    Raises:
        ModelError: neither the model nor its tokenizer has a limit.
    """
    limits = [model.max_seq_length, model.tokenizer.model_max_length]
    config: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa's positions start after the padding index.
        offset = config.pad_token_id + 1 if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0
        limits.append(positions - offset)
    known = [int(limit) for limit in limits if limit and 0 < limit < 10**9]
    if not known:
        message = "the model has no max_seq_length and its tokenizer no model_max_length; set one in the model's folder"
        raise ModelError(message)
    return min(known)


@contextmanager
def _shown(label: str | None, total: int) -> Iterator[Bar | None]:
    if label is None:
        yield None
        return
    with progress(label, total, "texts") as bar:
        yield bar


def _check_finite(vectors: NDArray[np.float32], texts: Sequence[str]) -> None:
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        message = f"the model gives a vector that is not finite for {len(wrong)} texts, first {texts[wrong[0]][:80]!r}"
        raise ModelError(message)
