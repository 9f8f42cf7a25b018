"""Texts to token ids within the model's limit, at a cost that does not grow with a text far beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.families import Kind
from embed_pipeline.serving.request import Truncate
from embed_pipeline.serving.serving_errors import ServingError, invalid

Row = NDArray[np.int32]

# A text up to this length is tokenised whole, so that a length error can say its length.
WHOLE_CHARACTERS = 50_000
# A part of a longer text is taken for enough when it has so many tokens more than the limit: those next to the cut
# may be others than in the whole text.
_SPARE_TOKENS = 128
_CHARACTERS_PER_TOKEN = 16
_GROWTH = 4
_WORD_CHARACTERS = 200


@dataclass(frozen=True)
class Reading:
    """Token ids of some texts.

    Attributes:
        rows: ids of each text, prefix and special tokens included.
        truncated: how many of them were cut.
    """

    rows: list[Row]
    truncated: int


class Reader:
    """Reads texts for one model."""

    def __init__(self, backend: Backend) -> None:
        """Find out where the tokenizer of ``backend`` puts its special tokens.

        Raises:
            ServingError: a prefix alone fills the model's limit.
        """
        self._backend = backend
        self._limit = backend.max_tokens
        empty, sample = (row.tolist() for row in backend.tokenize(["", "a"]))
        self._tail = len(empty) - _common(empty, sample)
        self._prefixes: dict[Kind, str] = {"query": backend.query_prefix, "passage": backend.passage_prefix}
        self._heads = {kind: self._head(prefix) for kind, prefix in self._prefixes.items()}

    def read(self, texts: Sequence[str], kind: Kind, truncate: Truncate, first: int = 0) -> Reading:
        """Token ids of ``texts``, each within the model's limit.

        Args:
            texts: without prefix.
            kind: whose prefix is put before each.
            truncate: what happens to a text that is too long; prefix and special tokens are always kept.
            first: position of the first text in its request, for the message.

        Raises:
            RequestError: a text is too long and ``truncate`` is NONE, or a text has no tokens at all.
        """
        prefix = self._prefixes[kind]
        short = [text if len(text) <= WHOLE_CHARACTERS else "" for text in texts]
        rows = self._backend.tokenize([prefix + text for text in short])
        truncated = 0
        for index, text in enumerate(texts):
            exact = True
            if len(text) > WHOLE_CHARACTERS:
                rows[index], exact = self._read_long(text, prefix, keep_end=truncate == "START")
            row = rows[index]
            if not len(row):
                raise invalid(f"input[{first + index}] has no token that the model knows", "input")
            if len(row) <= self._limit:
                continue
            if truncate == "NONE":
                count = f"{len(row)} tokens" if exact else f"more than {len(row)} tokens"
                where = f"input[{first + index}] has {count}"
                message = f"{where}, and the model reads at most {self._limit}; set truncate to cut it"
                raise invalid(message, "input", "context_length_exceeded")
            rows[index] = self._cut_start(row, kind) if truncate == "START" else self._cut_end(row)
            truncated += 1
        return Reading(rows, truncated)

    def _head(self, prefix: str) -> Row:
        """Ids before a text: special tokens and prefix."""
        row = self._backend.tokenize([prefix])[0]
        if len(row) >= self._limit:
            message = f"the prefix {prefix!r} has {len(row)} tokens, and the model reads at most {self._limit}"
            raise ServingError(message)
        return row[: len(row) - self._tail]

    def _read_long(self, text: str, prefix: str, *, keep_end: bool) -> tuple[Row, bool]:
        """Ids of as much of ``text`` as fills the limit, and whether that is all of it."""
        size = max(WHOLE_CHARACTERS, self._limit * _CHARACTERS_PER_TOKEN)
        while size < len(text):
            row = self._backend.tokenize([prefix + (_end(text, size) if keep_end else _start(text, size))])[0]
            if len(row) > self._limit + _SPARE_TOKENS:
                return row, False
            size *= _GROWTH
        return self._backend.tokenize([prefix + text])[0], True

    def _cut_end(self, row: Row) -> Row:
        return np.concatenate([row[: self._limit - self._tail], row[len(row) - self._tail :]])

    def _cut_start(self, row: Row, kind: Kind) -> Row:
        # The last tokens of the prefix may have merged with the text; what is left of it stays.
        head = _common(self._heads[kind].tolist(), row.tolist())
        return np.concatenate([row[:head], row[len(row) - (self._limit - head) :]])


def _common(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _start(text: str, size: int) -> str:
    """About ``size`` characters from the start, to the end of a word where one ends near."""
    space = max(text.rfind(" ", size - _WORD_CHARACTERS, size), text.rfind("\n", size - _WORD_CHARACTERS, size))
    return text[: space if space > 0 else size]


def _end(text: str, size: int) -> str:
    """About ``size`` characters from the end, from the start of a word where one starts near."""
    start = len(text) - size
    found = [text.find(space, start, start + _WORD_CHARACTERS) for space in (" ", "\n")]
    return text[min((place for place in found if place >= 0), default=start) :]
