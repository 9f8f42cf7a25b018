"""Small corpora, pairs and an encoder that the training data tests share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.settings import Settings


def settings(**training_data: Any) -> Settings:
    """Settings of the room alone: two negatives, half augmented, and segments of any length may be asked about."""
    chosen = {"num_negatives": 2, "max_augmented_share": 0.5, **training_data}
    return Settings.model_validate({"corpus": {"min_segment_tokens": 1}, "training_data": chosen})


def prose(topic: int, words: int = 60) -> str:
    """Words that no other topic uses, in an order that only the topic decides."""
    rng = np.random.default_rng(topic)
    return " ".join(f"t{topic}w{number}" for number in rng.integers(0, 40, words))


def corpus(documents: Mapping[str, Sequence[str]], titles: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Documents by path, each a list of segment texts; segment ids are ``<path>#<position>``."""
    rows: list[dict[str, object]] = []
    for path, texts in documents.items():
        rows += [
            {
                "segment_id": f"{path}#{position}",
                "document_id": document_id("".join(texts)),
                "path": path,
                "title": (titles or {}).get(path, path),
                "position": position,
                "heading_path": "",
                "text": text,
                "token_count": len(text.split()),
                "batch": "1",
                "label_set": None,
            }
            for position, text in enumerate(texts)
        ]
    return tables.CORPUS.frame(rows)


def document_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pairs(frame: pl.DataFrame, questions: Mapping[str, tuple[str, Sequence[str]]]) -> pl.DataFrame:
    """Pairs by id: the question and the segment ids that it was written from."""
    document_of = dict(frame.select("segment_id", "document_id").iter_rows())
    rows: list[dict[str, object]] = []
    for qa_id, (question, segments) in questions.items():
        known: dict[str, object] = {
            "qa_id": qa_id,
            "question": question,
            "segment_ids": sorted(segments),
            "document_ids": sorted({document_of[segment] for segment in segments}),
            "hop_count": len(segments),
            "origin": "generated",
        }
        rows.append({column.name: known.get(column.name, _default(column)) for column in tables.QA_DATASET.columns})
    return tables.QA_DATASET.frame(rows)


def many_documents(count: int, per_document: int = 3) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Unlike documents of one segment, and so many questions about each."""
    frame = corpus({f"d{i:03}.md": [prose(i)] for i in range(count)})
    asked = {
        f"q{i:03}-{n}": (f"what about t{i}w{n} and t{i}w{n + 1}", [f"d{i:03}.md#0"])
        for i in range(count)
        for n in range(0, 2 * per_document, 2)
    }
    return frame, pairs(frame, asked)


class GivenVectors:
    """An encoder that knows the vector of every text."""

    def __init__(self, vectors: Mapping[str, Sequence[float]]) -> None:
        self._vectors = {text: np.asarray(vector, np.float32) for text, vector in vectors.items()}
        self.calls: list[tuple[str, int]] = []

    def encode(self, texts: Sequence[str], kind: str, label: str | None = None) -> np.ndarray:
        self.calls.append((kind, len(texts)))
        rows = np.stack([self._vectors[text] for text in texts]).astype(np.float64)
        return np.ascontiguousarray((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))


def _default(column: tables.Column) -> object:
    return None if column.nullable else []
