from __future__ import annotations

import threading
from pathlib import Path

import pytest

from embed_pipeline.embedding import lanes
from embed_pipeline.embedding.lanes import in_lanes, lanes_for, usable_cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("900000000 100000", None)]
)
def test_a_container_uses_no_more_cores_than_its_quota(tmp_path: Path, quota: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == (cores or usable_cores(tmp_path / "none"))
    assert usable_cores() >= 1


def test_a_small_model_has_a_lane_for_each_thread_and_a_large_one_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1" * 60)
    assert lanes_for(tmp_path / "model.onnx", 3) == 3
    assert lanes_for(tmp_path / "model.onnx", 0) == usable_cores()
    (tmp_path / "model.onnx.data").write_bytes(b"1" * 60)
    monkeypatch.setattr(lanes, "LARGEST_BYTES", 100)
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
        return item

    with pytest.raises(RuntimeError, match="out of luck"):
        list(in_lanes(work, range(1000), 2))
    assert len(begun) < 1000
