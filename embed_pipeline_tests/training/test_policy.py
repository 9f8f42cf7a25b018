from __future__ import annotations

import pytest

from embed_pipeline.settings import Training
from embed_pipeline.training.policy import plan


def test_few_examples_get_small_batches_and_enough_steps() -> None:
    few, some, many = (plan(n, Training()) for n in (300, 900, 50_000))
    assert (few.batch_size, some.batch_size, many.batch_size) == (32, 32, 128)
    assert few.small_data
    assert not many.small_data
    assert (few.epochs, few.steps) == (3.0, 30), "enough steps"
    assert (some.epochs, many.epochs) == (2.0, 1.0)
    assert plan(100, Training()).epochs == 8, "enough steps"
    assert plan(20, Training()).epochs == 8, "and no more passes than that"
    assert plan(20, Training()).batch_size == 20


def test_what_is_set_is_kept() -> None:
    chosen = plan(100, Training(batch_size=16, epochs=2.5, learning_rate=1e-4, warmup_share=0.5))
    assert (chosen.batch_size, chosen.epochs, chosen.learning_rate) == (16, 2.5, 1e-4)
    assert (chosen.steps, chosen.warmup_steps) == (18, 9)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="examples is 0"):
        plan(0, Training())
