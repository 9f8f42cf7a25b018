"""Batch, passes, learning rate and linear adapter where the settings leave them open.

From the number of examples, the width of the model, and who wrote the questions: at a rate that people's questions
bear, a model learns the mistakes and habits of a generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embed_pipeline.settings import Adapter, Training

SMALL_DATA = 2_000
# Under this many steps a contrastive fine-tuning at 2e-5 has hardly moved; more passes than this overfit.
_LEAST_STEPS = 30
_MOST_EPOCHS = 8
_BATCHES = ((SMALL_DATA, 32), (20_000, 64), (100_000, 128))
_LARGEST_BATCH = 256
_ONE_PASS = 20_000
_ADAPTER = 0.5
LEAST_DOCUMENTS = 20
"""In a corpus of fewer documents there is little else to rank than a sentence's own."""
_RATE, _LABELLED_RATE, _LABELLED_RATE_WIDTH = 2e-5, 1e-4, 384


@dataclass(frozen=True)
class Plan:
    """How long and in what steps to train.

    Attributes:
        batch_size: examples in a batch, on each process.
        epochs: passes over the examples.
        steps: optimizer steps of one process that works alone.
        warmup_steps: steps in which the learning rate rises.
        small_data: whether the rules for few examples applied.
    """

    batch_size: int
    epochs: float
    steps: int
    warmup_steps: int
    small_data: bool


def plan(examples: int, training: Training) -> Plan:
    """Fill in what the settings leave open about the steps (``batch_size`` and ``epochs`` of ``auto``).

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
    fitting = next((size for bound, size in _BATCHES if examples < bound), _LARGEST_BATCH)
    batch_size = min(fitting if training.batch_size == "auto" else training.batch_size, examples)
    steps_per_epoch = math.ceil(examples / batch_size)
    if training.epochs != "auto":
        epochs = training.epochs
    elif examples < SMALL_DATA:
        epochs = float(min(_MOST_EPOCHS, max(2, math.ceil(_LEAST_STEPS / steps_per_epoch))))
    else:
        epochs = 2.0 if examples < _ONE_PASS else 1.0
    steps = max(1, math.ceil(steps_per_epoch * epochs))
    return Plan(
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        warmup_steps=math.ceil(steps * training.warmup_ratio),
        small_data=examples < SMALL_DATA,
    )


def learning_rate(width: int, training: Training, *, labelled: bool) -> float:
    """Peak learning rate: the one that is set, or from the model and from who wrote the questions.

    384 wide, people's questions gain most at 1e-4 without a loss on passages that training never saw, and generated
    ones lose there, while they bear 2e-5 (docs/tuning.md). Under Adam the best rate of a wider model is lower in
    proportion (Yang et al. 2022, Tensor Programs V): neither goes beyond that. Adapters bear 1e-4 at every width.

    Args:
        width: hidden size of the encoder.
        training: the settings.
        labelled: whether people wrote most of the questions.
    """
    if training.learning_rate != "auto":
        return training.learning_rate
    if training.lora_rank is not None:
        return _LABELLED_RATE
    most = _LABELLED_RATE * min(1.0, _LABELLED_RATE_WIDTH / width)
    return most if labelled else min(_RATE, most)


def adapter_share(adapter: Adapter, *, labelled: bool, documents: int) -> float:
    """Share of the linear adapter that is wanted: the one that is set, or half of it under generated questions.

    Half gained on the queries that people wrote for two of three sets and lost on none; under people's questions it was
    not measured (docs/tuning.md).

    Args:
        adapter: the settings.
        labelled: whether people wrote the questions.
        documents: of the corpus.
    """
    if adapter.share != "auto":
        return adapter.share
    return 0.0 if labelled or documents < LEAST_DOCUMENTS else _ADAPTER
