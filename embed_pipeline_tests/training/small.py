"""A small training task that the training tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.settings import Settings
from embed_pipeline.tables import TRAINING_EXAMPLES

TOPICS = [
    "value",
    "object",
    "class",
    "function",
    "statement",
    "python",
    "number",
    "letter",
    "string",
    "list",
    "tuple",
    "module",
]


def passages() -> dict[str, str]:
    """Twenty-four short texts, two for each topic."""
    return {f"s{i:02}": f"the {TOPICS[i % 12]} is {'a b c ' * (i % 5)}{TOPICS[(i * 5 + 1) % 12]}" for i in range(24)}


def examples() -> pl.DataFrame:
    """Sixteen examples: twelve questions, four of them with two positives."""
    rows: list[dict[str, object]] = []
    for i in range(16):
        topic = i % 12
        rows.append(
            {
                "example_id": f"e{i:02}",
                "qa_id": f"q{topic:02}",
                "origin": "generated",
                "question": f"what is the {TOPICS[topic]}",
                "positive_segment_id": f"s{i:02}",
                "negative_segment_ids": [f"s{(topic + 5) % 12:02}"] if topic != 3 else [],
                "positive_similarity": 0.5,
                "negative_similarities": [0.1] if topic != 3 else [],
            }
        )
    return TRAINING_EXAMPLES.frame(rows)


def dev() -> QuerySet:
    """Four questions answered by the texts that no example has."""
    return QuerySet(
        name="dev",
        queries={f"d{i}": f"how does a {TOPICS[i + 4]} work" for i in range(4)},
        qrels={f"d{i}": {f"s{i + 16}": 1} for i in range(4)},
    )


def corpus() -> tuple[list[str], list[str]]:
    """Ids and texts of all segments."""
    texts = passages()
    return list(texts), list(texts.values())


def settings(model: Path, **training: Any) -> Settings:
    """Two passes in batches of four, in fp32, the general check left out."""
    values = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "evaluations_per_epoch": 2, **training}
    return Settings.model_validate(
        {
            "embedding": {"model": str(model), "precision": "fp32", "device": "cpu"},
            "training": values,
            "evaluation": {"general_questions": 0},
        }
    )
