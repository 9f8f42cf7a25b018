"""TensorRT's backends against a stand-in for its bindings, which computes the graph; what runs needs a GPU.

The names are those of the bindings of TensorRT 11.4.
"""

from __future__ import annotations

import ctypes
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from embed_pipeline.embedding import tensorrt_backend
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.tensorrt_backend import (
    Profile,
    TensorRTBackend,
    TensorRTProviderBackend,
    TensorRTUnavailable,
    provider_options,
)

GPU, VERSION, ROWS = "Tesla T4", "10.9.0.34", 3
IDS = [np.arange(1, 2 + length, dtype=np.int32) for length in (3, 9, 1, 30, 4, 7, 2)]


class Context:
    """An execution context whose memory is the processor's: it computes the graph that lies beside the engine."""

    def __init__(self, graph: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(graph))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.calls: list[tuple[int, ...]] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return shape[0] <= ROWS

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        given = {}
        for name, shape in self.shapes.items():
            values = (ctypes.c_int64 * int(np.prod(shape))).from_address(self.addresses[name])
            given[name] = np.ctypeslib.as_array(values).reshape(shape)
        (vectors,) = self._session.run(["embeddings"], given)
        ctypes.memmove(self.addresses["embeddings"], np.ascontiguousarray(vectors).ctypes.data, vectors.nbytes)
        self.calls.append(self.shapes["input_ids"])
        return stream_handle == 7


class Logger:
    """TensorRT's own log."""

    WARNING = 2

    def __init__(self, severity: int) -> None:
        self.severity = severity


@pytest.fixture
def engine(tiny_export, tmp_path, monkeypatch):
    """A folder with an engine, and the context that it is run by."""
    import torch

    folder = Path(shutil.copytree(tiny_export, tmp_path / "tensorrt"))
    context = Context(folder / "model.onnx")
    (folder / "model.plan").write_bytes(b"engine")
    profile = {"min": [1, 1], "opt": [2, 32], "max": [ROWS, 64]}
    (folder / "engine.json").write_text(json.dumps({"gpu": GPU, "tensorrt": VERSION, "profile": profile}))
    loaded = SimpleNamespace(create_execution_context=lambda: context)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: loaded if data == b"engine" else None)
    trt = SimpleNamespace(__version__=VERSION, Logger=Logger, Runtime=lambda _: runtime)
    monkeypatch.setattr(tensorrt_backend, "require_tensorrt", lambda: (trt, GPU))
    monkeypatch.setattr(TensorRTBackend, "device", "cpu")
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)

    @contextmanager
    def on(_):
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return folder, context


def test_an_engine_gives_its_vectors_in_parts_that_it_takes(engine, tiny_export):
    folder, context = engine
    backend = TensorRTBackend(folder)
    found = backend.infer(IDS)
    assert [shape[0] for shape in context.calls] == [3, 3, 1]
    np.testing.assert_allclose(found, OnnxBackend(tiny_export, threads=1).infer(IDS), atol=1e-6)
    assert VERSION in backend.identity
    assert GPU in backend.identity


def test_an_engine_of_another_gpu_or_version_is_refused(engine):
    folder, _ = engine
    facts = json.loads((folder / "engine.json").read_text())
    (folder / "engine.json").write_text(json.dumps(facts | {"tensorrt": "11.0.0"}))
    with pytest.raises(ModelError, match=r"is for Tesla T4 with TensorRT 11\.0\.0; this is Tesla T4 with 10\.9"):
        TensorRTBackend(folder)
    (folder / "engine.json").write_text("{}")
    with pytest.raises(ModelError, match=r"engine\.json does not describe an engine"):
        TensorRTBackend(folder)


def test_an_engine_that_cannot_be_loaded_or_run_is_said(engine):
    folder, context = engine
    context.execute_async_v3 = lambda stream: False
    with pytest.raises(ModelError, match="TensorRT cannot run"):
        TensorRTBackend(folder).infer(IDS)
    (folder / "model.plan").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="TensorRT cannot load"):
        TensorRTBackend(folder)


def test_a_machine_without_gpu_or_provider_says_so(tiny_export, tmp_path):
    with pytest.raises(TensorRTUnavailable, match=r"^no NVIDIA GPU$"):
        tensorrt_backend.require_tensorrt()
    with pytest.raises(TensorRTUnavailable, match=r"^onnxruntime has no TensorRT provider here$"):
        TensorRTProviderBackend(tiny_export, tmp_path)


def test_a_provider_that_does_not_start_is_refused(tiny_export):
    with pytest.raises(ModelError, match="onnxruntime cannot start TensorrtExecutionProvider"):
        OnnxBackend(tiny_export, provider=("TensorrtExecutionProvider", {}))


def test_the_provider_builds_one_engine_for_all_shapes(tmp_path):
    options = provider_options(Profile.covering(64, 1024), tmp_path)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:8x32,attention_mask:8x32"
    assert options["trt_profile_max_shapes"] == "input_ids:16x64,attention_mask:16x64"
    assert options["trt_engine_cache_path"] == str(tmp_path)


def test_the_profile_covers_the_models_limit():
    assert Profile.covering(8192, 1024).most == (1, 8192)
    with pytest.raises(ModelError, match="max_tokens is 0"):
        Profile.covering(0, 1024)
