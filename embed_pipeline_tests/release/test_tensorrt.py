"""The engine's configuration against a stand-in for the tensorrt module; what runs needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest

from embed_pipeline.embedding import tensorrt_backend
from embed_pipeline.embedding.tensorrt_backend import TensorRTUnavailable
from embed_pipeline.release import tensorrt
from embed_pipeline.release.manifest import ReleaseError
from embed_pipeline.release.parity import Parity
from embed_pipeline.release.precision import engine_failures
from embed_pipeline.release.tensorrt import build_engine
from embed_pipeline.settings import Settings
from embed_pipeline.storage import file_hash


@pytest.fixture
def trt() -> MagicMock:
    """Only the names that TensorRT 11's bindings still have."""
    module = MagicMock(spec=["Logger", "Builder", "OnnxParser", "NetworkDefinitionCreationFlag", "BuilderFlag"])
    module.__version__ = "11.0.0"
    module.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    module.BuilderFlag = SimpleNamespace(TF32="TF32")
    builder = module.Builder.return_value
    builder.build_serialized_network.return_value = b"engine"
    config = builder.create_builder_config.return_value
    config.get_timing_cache.return_value.serialize.return_value = b"timings"
    config.set_timing_cache.return_value = True
    module.OnnxParser.return_value.parse.return_value = True
    return module


@pytest.fixture
def on_gpu(monkeypatch, trt):
    monkeypatch.setattr(tensorrt, "require_tensorrt", lambda: (trt, "NVIDIA H100 80GB HBM3"))
    return trt


def test_no_gpu_is_said_plainly(tiny_export, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TensorRTUnavailable, match=r"^no NVIDIA GPU$"):
        build_engine(tiny_export, tmp_path / "engine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tensorrt_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TensorRTUnavailable, match=r"^tensorrt is not installed$"):
        build_engine(tiny_export, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_the_builder_is_configured(on_gpu, tiny_export, tmp_path):
    path = build_engine(tiny_export, tmp_path, batch_tokens=1024)
    builder = on_gpu.Builder.return_value
    config = builder.create_builder_config.return_value
    profile = builder.create_optimization_profile.return_value
    builder.create_network.assert_called_once_with(1 << 1)
    assert profile.set_shape.call_args_list == [
        call(name, (1, 1), (8, 32), (16, 64)) for name in ("input_ids", "attention_mask")
    ]
    config.add_optimization_profile.assert_called_once_with(profile)
    config.clear_flag.assert_called_once_with("TF32")
    # What NVIDIA's embedding NIM takes.
    assert path.name == "model.plan"
    assert path.read_bytes() == b"engine"
    assert (tmp_path / "tokenizer.json").is_file()
    assert not (tmp_path / "model.onnx").exists()
    facts = json.loads((tmp_path / "engine.json").read_text())
    assert (facts["gpu"], facts["tensorrt"]) == ("NVIDIA H100 80GB HBM3", "11.0.0")
    assert facts["profile"] == {"min": [1, 1], "opt": [8, 32], "max": [16, 64]}
    assert facts["onnx_sha256"] == file_hash(tiny_export / "model.onnx")


def test_the_timing_cache_is_used_again_and_one_of_another_gpu_is_not(on_gpu, tiny_export, tmp_path):
    config = on_gpu.Builder.return_value.create_builder_config.return_value
    build_engine(tiny_export, tmp_path)
    build_engine(tiny_export, tmp_path)
    assert config.create_timing_cache.call_args_list == [call(b""), call(b"timings")]
    config.set_timing_cache.side_effect = [False, True]
    build_engine(tiny_export, tmp_path)
    assert config.create_timing_cache.call_args_list[2:] == [call(b"timings"), call(b"")]


def test_parser_and_builder_faults_are_errors(on_gpu, tiny_export, tmp_path):
    parser = on_gpu.OnnxParser.return_value
    parser.parse.return_value, parser.num_errors = False, 1
    parser.get_error.return_value = "unsupported operator"
    with pytest.raises(ReleaseError, match="unsupported operator"):
        build_engine(tiny_export, tmp_path)
    parser.parse.return_value = True
    on_gpu.Builder.return_value.build_serialized_network.return_value = None
    with pytest.raises(ReleaseError, match="built no engine"):
        build_engine(tiny_export, tmp_path)
    assert not list(tmp_path.glob("*.plan"))


def test_an_engine_is_released_within_the_bound_of_fp16():
    good = Parity(1, 1, 0.9995, 1.0, 1.0, 0.0, 0.0, ())
    assert engine_failures(good, Settings()) == []
    assert "TensorRT engine, fp16: min cosine 0.99" in engine_failures(replace(good, min_cosine=0.99), Settings())[0]
