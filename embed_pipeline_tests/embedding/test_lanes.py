from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding import lanes
from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.lanes import in_lanes, lanes_for, usable_cores
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.openvino_backend import OpenVinoBackend


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


@pytest.mark.parametrize("runtime", [OnnxBackend, OpenVinoBackend])
def test_vectors_computed_side_by_side_are_those_computed_alone(
    tiny_export: Path, runtime: type[OnnxBackend | OpenVinoBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = runtime(tiny_export, threads=3)
    assert backend.lanes == 3
    texts = ["the value of a class " * (count % 9) + f"object {count}" for count in range(60)]
    run, seen = runtime._run, []

    def watched(self: Backend, tokens: np.ndarray, mask: np.ndarray, *, alone: bool) -> np.ndarray:
        seen.append((threading.current_thread().name, alone))
        return run(self, tokens, mask, alone=alone)

    monkeypatch.setattr(runtime, "_run", watched)
    vectors = backend.encode(texts, "passage")
    assert len(seen) >= 3
    assert all(name.startswith("lane") and not alone for name, alone in seen)
    rows = backend.tokenize([backend.passage_prefix + text for text in texts], truncate=True)
    for row, vector in zip(rows, vectors, strict=True):
        np.testing.assert_allclose(backend.infer([row])[0], vector, atol=1e-5)


def test_a_single_text_has_all_cores(tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, seen = OnnxBackend(tiny_export, threads=3), []
    run = backend._run
    monkeypatch.setattr(backend, "_run", lambda *given, alone: (seen.append(alone), run(*given, alone=alone))[1])
    backend.encode(["the value of a class"], "query")
    assert seen == [True]
