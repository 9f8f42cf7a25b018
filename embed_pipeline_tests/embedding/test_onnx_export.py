"""The export: what the graph promises, and that nothing of the machine is in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from embed_pipeline.embedding.backend import EncoderConfig
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import OnnxExportError, check_onnx, export_onnx
from embed_pipeline.settings import Embedding, Release
from embed_pipeline.training.linear_adapter import append_adapter, set_adapter

TEXTS = ["python class", "how does a value work in python " * 20, "a", "object function class"]


def test_the_graph_takes_token_ids_and_gives_vectors(tiny_export):
    graph = onnx.load(str(tiny_export / "model.onnx")).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    assert kinds == {
        "input_ids": onnx.TensorProto.INT64,
        "attention_mask": onnx.TensorProto.INT64,
        "embeddings": onnx.TensorProto.FLOAT,
    }
    assert json.loads((tiny_export / "embedding_config.json").read_text()) == {
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "dimensions": 32,
        "max_tokens": 64,
        "pad_token_id": 0,
        "padding_side": "right",
        "passage_prefix": "the ",
        "query_prefix": "what is ",
        "truncation_side": "right",
    }


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes_with_no_path_of_this_machine(
    tiny_model, tiny_export, tmp_path, exporting
):
    export_onnx(tiny_model, tmp_path / "again", Release(), exporting)
    names = sorted(path.name for path in tiny_export.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    here = [str(tiny_model).encode(), str(Path(onnx.__file__).parent.parent).encode(), str(Path.home()).encode()]
    for name in names:
        content = (tiny_export / name).read_bytes()
        assert content == (tmp_path / "again" / name).read_bytes(), name
        assert not any(path in content for path in [*here, b"stack_trace", b"site-packages"]), name


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("pooling", ["cls", "lasttoken"])
def test_operator_sets_and_poolings_give_the_originals_vectors(tiny_model, tmp_path, opset, pooling):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pooling_mode": pooling}))
    embedding = Embedding(device="cpu")
    export_onnx(folder, tmp_path / "onnx", Release(opset=opset), embedding)
    exported = Encoder(OnnxBackend(tmp_path / "onnx", threads=1)).encode(TEXTS, "passage")
    original = Encoder.load(folder, embedding).encode(TEXTS, "passage")
    assert (exported * original).sum(axis=1).min() >= 0.99999
    versions = {entry.domain: entry.version for entry in onnx.load(str(tmp_path / "onnx" / "model.onnx")).opset_import}
    assert versions[""] == opset


@pytest.mark.slow
def test_a_linear_adapter_is_part_of_the_graph(tiny_model, tmp_path):
    model = load_model(tiny_model, Embedding(device="cpu"))
    matrix = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    set_adapter(append_adapter(model), matrix, 0.5)
    model.save_pretrained(str(tmp_path / "model"))
    export_onnx(tmp_path / "model", tmp_path / "onnx", Release(), Embedding(device="cpu"))
    exported = Encoder(OnnxBackend(tmp_path / "onnx", threads=1)).encode(TEXTS, "passage")
    original = Encoder.load(tmp_path / "model", Embedding(device="cpu")).encode(TEXTS, "passage")
    assert (exported * original).sum(axis=1).min() >= 0.99999
    without = Encoder.load(tiny_model, Embedding(device="cpu")).encode(TEXTS, "passage")
    assert (exported * without).sum(axis=1).max() < 0.99


def test_any_batch_and_length(tiny_export):
    backend = OnnxBackend(tiny_export, threads=1)
    for rows, length in ((1, 1), (1, 64), (7, 3)):
        vectors = backend.infer([list(range(1, length + 1))] * rows)
        assert vectors.shape == (rows, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_graph_of_another_shape_is_refused(tiny_export, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(OnnxExportError, match="expected \\['batch', 33\\]"):
        check_onnx(tiny_export / "model.onnx", replace(EncoderConfig.read(tiny_export), dimensions=33))
    model = onnx.load(str(tiny_export / "model.onnx"))
    model.graph.node[3].input[0] = "nowhere"
    onnx.save(model, str(path))
    with pytest.raises(OnnxExportError, match="not a valid graph"):
        check_onnx(path, EncoderConfig.read(tiny_export))
