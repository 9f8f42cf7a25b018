"""Token-budget batches, padding, windows and lanes."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed_pipeline.embedding import token_batches
from embed_pipeline.embedding.token_batches import (
    in_lanes,
    lanes_for,
    pad_rows,
    token_budget,
    token_budget_batches,
    tokenized_windows,
)
from embed_pipeline.machine import usable_cores


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    batches = [batch.tolist() for batch in token_budget_batches(lengths, budget)]
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    flat = [lengths[position] for batch in batches for position in batch]
    assert flat == sorted(flat, reverse=True)


def test_padding_on_either_side():
    ids, mask = pad_rows([[5, 6], [7]], 0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    ids, mask = pad_rows([[5, 6], [7]], 9, left=True)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [9, 7]], [[1, 1], [0, 1]])


def test_the_budget_is_what_is_wanted_or_suits_the_hardware():
    budgets = [token_budget(wanted, on_gpu=gpu) for wanted in ("auto", 300) for gpu in (False, True)]
    assert budgets == [1024, 65536, 300, 300]
    assert token_budget("auto", on_gpu=False, lanes=2) == 512


@pytest.mark.parametrize("on_gpu", [False, True])
def test_windows_hold_every_text_once_in_its_place(monkeypatch, on_gpu):
    monkeypatch.setattr(token_batches, "_CPU_WINDOW", 3)
    monkeypatch.setattr(token_batches, "_GPU_WINDOW", 2)
    texts = [str(number) for number in range(8)]

    def read(window):
        return [np.asarray([int(text)], np.int32) for text in window]

    found = list(tokenized_windows(texts, read, on_gpu=on_gpu))
    assert [start for start, _ in found] == ([0, 2, 4, 6] if on_gpu else [0, 3, 6])
    assert [int(row[0]) for _, rows in found for row in rows] == list(range(8))
    assert list(tokenized_windows([], read, on_gpu=on_gpu)) == []


@pytest.mark.parametrize("on_gpu", [False, True])
def test_what_a_tokenizer_raises_is_raised(on_gpu):
    def read(_):
        raise ValueError("no token")

    with pytest.raises(ValueError, match="no token"):
        list(tokenized_windows(["a"], read, on_gpu=on_gpu))


def test_a_small_model_has_a_lane_for_each_thread_and_a_large_one_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1" * 60)
    assert lanes_for(tmp_path / "model.onnx", 3) == 3
    assert lanes_for(tmp_path / "model.onnx", 0) == usable_cores()
    (tmp_path / "model.onnx.data").write_bytes(b"1" * 60)
    monkeypatch.setattr(token_batches, "LARGEST_BYTES", 100)
    assert lanes_for(tmp_path / "model.onnx", 3) == 1


def test_items_are_worked_on_side_by_side_and_come_in_order() -> None:
    barrier = threading.Barrier(3)

    def work(item: int) -> int:
        barrier.wait(10)
        return item * item

    assert list(in_lanes(work, range(6), 3)) == [(item, item * item) for item in range(6)]


def test_an_error_ends_it_all() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            message = "out of luck"
            raise RuntimeError(message)
        time.sleep(0.001)
        return item

    with pytest.raises(RuntimeError, match="out of luck"):
        list(in_lanes(work, range(10_000), 2))
    assert len(begun) < 1000
