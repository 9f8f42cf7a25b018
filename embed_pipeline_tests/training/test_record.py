"""The record of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed_pipeline.training.record import RECORD_FILE, read_record
from embed_pipeline.training.task import TrainingError


def test_a_record_that_is_cut_off_is_refused_and_a_model_without_one_has_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    (tmp_path / RECORD_FILE).write_text('{"examples": 1')
    with pytest.raises(TrainingError, match="does not say how the model was trained"):
        read_record(tmp_path)
