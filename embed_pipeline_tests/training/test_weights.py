"""Mixtures and means of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embed_pipeline.training.weights import RunningMean, mean_weights, mix_weights


def test_a_mixture_lies_on_the_line_and_leaves_whole_numbers_alone() -> None:
    base = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor([1])}
    tuned = {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor([7])}
    assert mix_weights(base, tuned, 0.25)["w"].tolist() == [0.25, 2.5]
    assert mix_weights(base, tuned, 0.25)["n"].tolist() == [7]
    assert torch.equal(mix_weights(base, tuned, 1.0)["w"], tuned["w"])


def test_the_mean_is_the_same_whether_or_not_it_was_written_between(tmp_path: Path) -> None:
    states = [{"w": torch.tensor([float(i), 2.0 * i]), "n": torch.tensor([i])} for i in (1, 2, 6)]
    assert mean_weights(states)["w"].tolist() == pytest.approx([3.0, 6.0])
    assert mean_weights(states)["n"].tolist() == [1]
    whole, cut = RunningMean(), RunningMean()
    for state in states:
        whole.add({"w": state["w"]})
        cut.add({"w": state["w"]})
        cut.save(tmp_path / "mean.safetensors")
        cut = RunningMean.load(tmp_path / "mean.safetensors")
    assert cut.count == 3
    assert torch.equal(cut.value()["w"], whole.value()["w"])
    assert RunningMean.load(tmp_path / "absent").count == 0
