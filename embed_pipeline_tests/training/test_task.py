"""What a training uses of what was mined, and its schedule, learning rate and adapter."""

from __future__ import annotations

import pytest
import torch

from embed_pipeline.settings import Adapter, Settings, Training
from embed_pipeline.tables import TRAINING_EXAMPLES
from embed_pipeline.training.task import (
    LEAST_DOCUMENTS,
    TrainingTask,
    adapter_share,
    learning_rate,
    schedule_for,
    used_negatives,
)


@pytest.mark.parametrize(
    ("wanted", "cuda", "used"),
    [("auto", False, 1), ("auto", True, None), (3, False, 3), (0, True, 0), ("all", False, None)],
)
def test_a_cpu_takes_one_negative_unless_told_otherwise(monkeypatch, wanted, cuda, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    settings = Settings.model_validate({"training": {"negatives_per_example": wanted}})
    assert used_negatives(settings) == used


def test_few_examples_get_small_batches_and_enough_steps() -> None:
    few, some, many = (schedule_for(n, Training()) for n in (300, 900, 50_000))
    assert (few.batch_size, some.batch_size, many.batch_size) == (32, 32, 128)
    assert few.small_data
    assert not many.small_data
    assert (few.epochs, few.steps) == (3.0, 30), "enough steps"
    assert (some.epochs, many.epochs) == (2.0, 1.0)
    assert schedule_for(100, Training()).epochs == 8, "enough steps"
    assert schedule_for(20, Training()).epochs == 8, "and no more passes than that"
    assert schedule_for(20, Training()).batch_size == 20


def test_what_is_set_is_kept() -> None:
    chosen = schedule_for(100, Training(batch_size=16, epochs=2.5, warmup_ratio=0.5))
    assert (chosen.batch_size, chosen.epochs) == (16, 2.5)
    assert (chosen.steps, chosen.warmup_steps) == (18, 9)


def test_the_rate_falls_with_the_width_of_the_model_and_is_low_for_generated_questions() -> None:
    labelled, generated = (
        [learning_rate(width, Training(), labelled=by_people) for width in (64, 384, 768, 4096)]
        for by_people in (True, False)
    )
    assert labelled == pytest.approx([1e-4, 1e-4, 5e-5, 9.375e-6])
    assert generated == pytest.approx([2e-5, 2e-5, 2e-5, 9.375e-6])
    assert learning_rate(4096, Training(lora_rank=16), labelled=False) == pytest.approx(1e-4)
    assert learning_rate(4096, Training(learning_rate=3e-5), labelled=False) == pytest.approx(3e-5)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="examples is 0"):
        schedule_for(0, Training())


def test_generated_questions_get_half_the_adapter_where_there_are_documents_to_learn_from() -> None:
    assert adapter_share(Settings(), labelled=False, documents=LEAST_DOCUMENTS) == 0.5
    assert adapter_share(Settings(), labelled=False, documents=LEAST_DOCUMENTS - 1) == 0
    assert adapter_share(Settings(), labelled=True, documents=1_000) == 0
    assert adapter_share(Settings(adapter=Adapter(share=0)), labelled=False, documents=1_000) == 0
    assert adapter_share(Settings(adapter=Adapter(share=1)), labelled=True, documents=1) == 1
    assert adapter_share(Settings(training=Training(contrastive=False)), labelled=True, documents=1) == 0.5


@pytest.mark.parametrize(
    ("rows", "unlearnable"),
    [
        ([("q1", "a"), ("q2", "a"), ("q3", "a")], 3),
        ([("q1", "a"), ("q1", "b"), ("q1", "c")], 3),
        ([("q1", "a")], 1),
        ([("q1", "a"), ("q1", "b"), ("q2", "a")], 2),
        ([("q1", "a"), ("q2", "b")], 0),
    ],
)
def test_examples_that_teach_nothing_are_said(rows, unlearnable, tiny_model, tmp_path, caplog) -> None:
    names = ["example_id", "qa_id", "question", "positive_segment_id"]
    given = [
        dict(zip(names, [f"e{n}", qa, f"what is {qa}", segment], strict=True)) for n, (qa, segment) in enumerate(rows)
    ]
    more = {"origin": "labelled", "negative_segment_ids": [], "positive_similarity": 0.5, "negative_similarities": []}
    examples = TRAINING_EXAMPLES.frame([row | more for row in given])
    settings = Settings.model_validate({"embedding": {"model": str(tiny_model), "device": "cpu"}})
    passages = {name: f"text {name}" for name in "abc"}
    task = TrainingTask.of(examples, passages, None, (["a"], ["text a"]), settings, work=tmp_path)
    assert task.examples.without_contrast == unlearnable
    assert (f"{unlearnable} of {len(rows)} examples teach nothing" in caplog.text) == bool(unlearnable)
