"""The released model on torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from embed_pipeline.embedding import packing, torch_backend
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.torch_backend import TorchBackend

TEXTS = ["python class", "how does it work " * 60, "value", "", "a function of the value", "python class"]


def opened(tiny_model: Path, tiny_export: Path, precision: str = "fp32") -> TorchBackend:
    return TorchBackend(tiny_model, tiny_export, precision, device="cpu", threads=1)


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_gives_the_vectors_of_the_export(tiny_model, tiny_export, kind):
    expected = OnnxBackend(tiny_export, threads=1).encode(TEXTS, kind)
    vectors = opened(tiny_model, tiny_export).encode(TEXTS, kind)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_bf16_is_near_and_narrow(tiny_model, tiny_export):
    expected = OnnxBackend(tiny_export, threads=1).encode(TEXTS, "passage")
    backend = opened(tiny_model, tiny_export, "bf16")
    vectors = backend.encode(TEXTS, "passage")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * expected).sum(axis=1).min() >= 0.999
    assert not np.allclose(vectors, expected, atol=1e-6)
    types = {type(module).__name__: module.weight.dtype for module in backend._model.modules() if _weighs(module)}
    assert types["Linear"] is torch.bfloat16
    # What sums and normalises stays wide.
    assert types["LayerNorm"] is types["Embedding"] is torch.float32


def _weighs(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), torch.nn.Parameter)


def test_a_packed_model_computes_no_padding(tiny_model, tiny_export, monkeypatch):
    monkeypatch.setattr(packing, "_check", lambda *_: None)
    load = torch_backend.load_model

    def packed(*arguments):
        model = load(*arguments)
        monkeypatch.setattr(packing, "_trial_vectors", lambda *_: torch.ones(1, 2))
        packing.pack(model, torch.bfloat16)
        return model

    assert opened(tiny_model, tiny_export, "bf16").computes_padding
    monkeypatch.setattr(torch_backend, "load_model", packed)
    assert not opened(tiny_model, tiny_export, "bf16").computes_padding


def test_rows_that_cannot_be_read_are_refused(tiny_model, tiny_export):
    backend = opened(tiny_model, tiny_export)
    assert backend.computes_padding
    assert not backend.on_gpu
    for rows, message in (([], "no row"), ([[]], "has 0 tokens"), ([[1] * 65], "has 65 tokens, must have 1 to 64")):
        with pytest.raises(ValueError, match=message):
            backend.infer(rows)


def test_another_model_than_the_exported_one_is_refused(tiny_model, tiny_export, tmp_path):
    other = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    config = other / "embedding_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dimensions": 16}))
    with pytest.raises(ModelError, match="has 32 dimensions and reads 64 tokens, its export 16 and 64"):
        opened(tiny_model, other)


def test_a_model_with_pickled_weights_is_refused(tiny_model, tiny_export, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        opened(model, tiny_export)
