"""A model on torch: in half precision, from a release, and packed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from embed_pipeline.embedding import packing, torch_backend
from embed_pipeline.embedding.backend import EncoderConfig
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.settings import Embedding

TEXTS = ["python class", "how does it work " * 60, "value", "", "a function of the value", "python class"]
CPU = Embedding(device="cpu")


def test_bf16_is_near_and_narrow(tiny_model):
    full = Encoder.load(tiny_model, CPU).encode(TEXTS, "passage")
    backend = TorchBackend.load(tiny_model, CPU, "bf16")
    vectors = Encoder(backend).encode(TEXTS, "passage")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors * full).sum(axis=1).min() >= 0.999
    assert not np.allclose(vectors, full, atol=1e-6)
    modules = [module for module in backend.model.modules() if _weighs(module)]
    assert {module.weight.dtype for module in modules if isinstance(module, torch.nn.Linear)} == {torch.bfloat16}
    types = {type(module).__name__: module.weight.dtype for module in modules}
    # What sums and normalises stays wide.
    assert types["LayerNorm"] is types["Embedding"] is torch.float32


def _weighs(module: torch.nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), torch.nn.Parameter)


def test_narrowed_weights_give_what_autocast_gives(tiny_model):
    narrow = Encoder.load(tiny_model, Embedding(device="cpu", precision="bf16"))
    wide = Encoder(TorchBackend(TorchBackend.load(tiny_model, CPU).model, "bf16"))
    np.testing.assert_allclose(narrow.encode(TEXTS, "query"), wide.encode(TEXTS, "query"), atol=1e-6)


def test_a_released_model_is_read_as_its_export_is(tiny_model, tiny_export):
    config = EncoderConfig.read(tiny_export)
    backend = TorchBackend.load(tiny_model, CPU, config=config)
    assert (backend.query_prefix, backend.passage_prefix) == ("what is ", "the ")
    # The folder itself has no prefixes.
    plain = Encoder.load(tiny_model, CPU).encode(["the value"], "passage")
    np.testing.assert_allclose(Encoder(backend).encode(["value"], "passage"), plain, atol=1e-6)


def test_another_model_than_the_exported_one_is_refused(tiny_model, tiny_export, tmp_path):
    other = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    path = other / "embedding_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dimensions": 16}))
    with pytest.raises(ModelError, match="has 32 dimensions and reads 64 tokens, its export 16 and 64"):
        TorchBackend.load(tiny_model, CPU, config=EncoderConfig.read(other))


def test_a_packed_model_computes_no_padding(tiny_model, monkeypatch):
    monkeypatch.setattr(packing, "_check", lambda *_: None)
    load = torch_backend.load_model

    def packed(*arguments):
        model = load(*arguments)
        monkeypatch.setattr(packing, "_trial_vectors", lambda *_: torch.ones(1, 2))
        packing.pack(model, torch.bfloat16)
        return model

    assert TorchBackend.load(tiny_model, CPU, "bf16").computes_padding
    monkeypatch.setattr(torch_backend, "load_model", packed)
    assert not TorchBackend.load(tiny_model, CPU, "bf16").computes_padding


def test_a_model_with_pickled_weights_is_refused(tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        TorchBackend.load(model, CPU)
