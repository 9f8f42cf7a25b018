"""What a training is given, in one piece: examples, dev questions, corpus, settings, and the folder it works in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from embed_pipeline.embedding.models import resolve_model, torch_device
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.methods import made_by
from embed_pipeline.settings import TRAINING, Settings
from embed_pipeline.tables import content_hash
from embed_pipeline.training.batches import Examples, number_examples
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.policy import Plan, plan

Record = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Task:
    """One training, before a seed is chosen.

    Attributes:
        examples: the numbered examples.
        dev: questions for choosing the checkpoint; None: the last weights win.
        corpus: ids and texts of all segments.
        documents: the document of each of them, for the linear adapter; empty: each is one of its own.
        settings: groups ``embedding``, ``training`` and ``evaluation``, and the first seed.
        work: folder of checkpoints and finished seeds, of one training at a time.
        fingerprint: hash of all that decides the trained weights; the choice among them, the linear adapter and the
            guard against forgetting are made anew each time.
        record: called with the step and its figures.
    """

    examples: Examples
    dev: QuerySet | None
    corpus: tuple[Sequence[str], Sequence[str]]
    settings: Settings
    work: Path
    fingerprint: str
    documents: Sequence[str] = ()
    record: Record | None = field(default=None, compare=False)

    @property
    def plan(self) -> Plan:
        """Batch and passes."""
        return plan(len(self.examples), self.settings.training)

    @classmethod
    def of(
        cls,
        examples: pl.DataFrame,
        passages: Mapping[str, str],
        dev: QuerySet | None,
        corpus: tuple[Sequence[str], Sequence[str]],
        settings: Settings,
        *,
        work: Path,
        documents: Sequence[str] = (),
        record: Record | None = None,
    ) -> Task:
        """Number the examples and take the fingerprint, so that no other training's checkpoint is taken up.

        Args:
            examples: table ``training_examples``.
            passages: segment id to text, for every segment that an example names.
            dev: as the attribute; an empty set is none.
            corpus: as the attribute.
            settings: as the attribute.
            work: as the attribute.
            documents: as the attribute.
            record: as the attribute.

        Raises:
            TrainingError: there are no examples to train on, or one names an unknown segment.
        """
        if not settings.training.contrastive:
            examples = examples.clear()
        elif examples.is_empty():
            raise TrainingError("there are no training examples")
        kept = used_negatives(settings)
        numbered = number_examples(
            examples.with_columns(pl.col("negative_segment_ids").list.head(kept)) if kept is not None else examples,
            passages,
        )
        asked = dev or None
        parts = [
            content_hash(examples.sort("example_id")),
            numbered.passages,
            [asked.queries, asked.qrels] if asked else [],
            hashlib.sha256("\0".join([*corpus[0], *corpus[1]]).encode()).hexdigest(),
            made_by(TRAINING, settings),
            resolve_model(settings.embedding.model),
        ]
        fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return cls(numbered, asked, corpus, settings, work, fingerprint, documents, record)


def used_negatives(settings: Settings) -> int | None:
    """Mined negatives of each example that a training uses, most similar first; None: all.

    Each is a passage more to encode for every question of a batch, and the passages are what a step's time goes to:
    on a CPU a second one buys less than the passes over the data that fit into the same time.
    """
    wanted = settings.training.negatives_per_example
    if wanted == "all":
        return None
    if wanted != "auto":
        return wanted
    return 1 if torch_device(settings.embedding) == "cpu" else None
