"""What a training takes of what was mined."""

from __future__ import annotations

import pytest
import torch

from embed_pipeline.settings import Settings
from embed_pipeline.training.task import used_negatives


@pytest.mark.parametrize(
    ("wanted", "cuda", "used"),
    [("auto", False, 1), ("auto", True, None), (3, False, 3), (0, True, 0), ("all", False, None)],
)
def test_a_cpu_takes_one_negative_unless_told_otherwise(monkeypatch, wanted, cuda, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    settings = Settings.model_validate({"training": {"negatives_per_example": wanted}})
    assert used_negatives(settings) == used
