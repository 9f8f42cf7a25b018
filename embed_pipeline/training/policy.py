"""Batch, passes and learning rate from the number of examples, where the settings leave them open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from embed_pipeline.settings import Training

T = TypeVar("T")

SMALL_DATA = 2_000
# Under this many steps a contrastive fine-tuning at 2e-5 has hardly moved; more passes than this overfit.
_LEAST_STEPS = 30
_MOST_EPOCHS = 8
_SMALL_EPOCHS = 2.0
_BATCHES = ((SMALL_DATA, 32), (20_000, 64), (100_000, 128))
_LARGEST_BATCH = 256
_EPOCHS = ((SMALL_DATA, _SMALL_EPOCHS), (20_000, 2.0))


@dataclass(frozen=True)
class Plan:
    """How long and in what steps to train.

    Attributes:
        batch_size: examples in a batch, on each process.
        epochs: passes over the examples.
        learning_rate: peak learning rate.
        steps: optimizer steps of one process that works alone.
        warmup_steps: steps in which the learning rate rises.
        small_data: whether the rules for few examples applied.
    """

    batch_size: int
    epochs: float
    learning_rate: float
    steps: int
    warmup_steps: int
    small_data: bool


def plan(examples: int, training: Training) -> Plan:
    """Fill in what the settings leave open (``batch_size`` 0, ``epochs`` 0).

    Few examples get small batches, for enough steps, and up to eight passes to reach 30 steps; many get large
    batches, for more negatives at once, and a single pass.

    Args:
        examples: training examples.
        training: the settings.

    Raises:
        ValueError: there are no examples.
    """
    if examples < 1:
        message = f"examples is {examples}, below 1"
        raise ValueError(message)
    batch_size = min(training.batch_size or _first(_BATCHES, examples, _LARGEST_BATCH), examples)
    steps_per_epoch = math.ceil(examples / batch_size)
    epochs = training.epochs or _first(_EPOCHS, examples, 1.0)
    if not training.epochs and examples < SMALL_DATA:
        epochs = min(float(_MOST_EPOCHS), max(epochs, float(math.ceil(_LEAST_STEPS / steps_per_epoch))))
    steps = max(1, math.ceil(steps_per_epoch * epochs))
    return Plan(
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=training.learning_rate,
        steps=steps,
        warmup_steps=math.ceil(steps * training.warmup_share),
        small_data=examples < SMALL_DATA,
    )


def _first(table: Sequence[tuple[int, T]], examples: int, otherwise: T) -> T:
    return next((value for bound, value in table if examples < bound), otherwise)
