"""Half precision in the graph: close vectors, and nothing that normalises in fp16."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx

from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.release.precision import mixed_precision

TEXTS = ["python class", "how does a value work in python " * 20, "a", "object function class"]
WIDE = {"LayerNormalization", "Softmax", "ReduceL2", "ReduceSum", "Div", "Clip"}


def test_vectors_stay_close_and_of_unit_length(tiny_export, tmp_path):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "half"))
    onnx.save(mixed_precision(folder / "model.onnx"), str(folder / "model.onnx"))
    half = OnnxBackend(folder, threads=1).encode(TEXTS, "passage")
    full = OnnxBackend(tiny_export, threads=1).encode(TEXTS, "passage")
    assert (half * full).sum(axis=1).min() >= 0.9999
    assert not np.array_equal(half, full)
    np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)


def test_products_are_half_and_norms_are_not(tiny_export):
    graph = onnx.shape_inference.infer_shapes(mixed_precision(tiny_export / "model.onnx")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    found = {kind: {types[n.output[0]] for n in graph.node if n.op_type == kind} for kind in WIDE | {"MatMul"}}
    assert found["MatMul"] == {onnx.TensorProto.FLOAT16}
    assert all(onnx.TensorProto.FLOAT16 not in found[kind] for kind in WIDE)
    assert types["embeddings"] == onnx.TensorProto.FLOAT
