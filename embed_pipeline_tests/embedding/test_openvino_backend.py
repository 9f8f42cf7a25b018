"""An export on OpenVINO: rounded to int8, in bf16, and what is refused."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from embed_pipeline.embedding import openvino_backend
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.openvino_backend import OpenVinoBackend

TEXTS = ["python class", "how does it work " * 60, "value", "", "a function of the value", "python class"]


def is_near_but_not_equal(vectors: np.ndarray, export: Path) -> bool:
    expected = Encoder(OnnxBackend(export, threads=1)).encode(TEXTS, "passage")
    return (vectors * expected).sum(axis=1).min() >= 0.999 and np.abs(vectors - expected).max() > 1e-5


def test_int8_is_near_and_rounded(tiny_export):
    vectors = Encoder(OpenVinoBackend(tiny_export, "int8", group_size=32, threads=1)).encode(TEXTS, "passage")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert is_near_but_not_equal(vectors, tiny_export)


def test_every_matrix_is_rounded_once(tiny_export):
    import openvino

    model = openvino.Core().read_model(str(tiny_export / "model.onnx"))
    before = [node for node in model.get_ordered_ops() if openvino_backend._constant_matrix(node) is not None]
    openvino_backend._round_weights(model, 32)
    whole = sum(node.get_output_size() and node.get_type_name() == "Constant" for node in model.get_ordered_ops())
    rounded = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.i8
    ]
    assert before
    assert whole > len(rounded) == len(before)
    assert all(node.shape[2] == 32 and np.abs(node.data).max() == 127 for node in rounded)
    with pytest.raises(ModelError, match="no matrix of the model has rows of a multiple of 32 weights"):
        openvino_backend._round_weights(model, 32)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_rounded_product_is_that_of_the_rounded_weights(transposed):
    import openvino
    from openvino import opset13

    rng = np.random.default_rng(3)
    weights = rng.normal(size=(5, 64)).astype(np.float32)
    inputs = opset13.parameter([-1, 64], openvino.Type.f32)
    constant = opset13.constant(weights if transposed else np.ascontiguousarray(weights.T))
    model = openvino.Model(opset13.matmul(inputs, constant, transpose_a=False, transpose_b=transposed), [inputs])
    openvino_backend._round_weights(model, 64)
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    rows = rng.normal(size=(7, 64)).astype(np.float32)
    found = openvino.Core().compile_model(model, "CPU", options)(rows)[0]
    scales = np.abs(weights).max(axis=1, keepdims=True) / 127
    np.testing.assert_allclose(found, rows @ (np.rint(weights / scales) * scales).T, rtol=1e-4, atol=1e-4)


def test_bf16_is_computed_or_refused(tiny_export):
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        vectors = Encoder(OpenVinoBackend(tiny_export, "bf16", threads=1)).encode(TEXTS, "passage")
        assert is_near_but_not_equal(vectors, tiny_export)
    else:
        with pytest.raises(ModelError, match="does not multiply bf16"):
            OpenVinoBackend(tiny_export, "bf16", threads=1)


def test_what_cannot_be_opened_is_named(tiny_export, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    (copy / "model.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"model\.onnx is not an ONNX model"):
        OpenVinoBackend(copy)
    node = onnx.helper.make_node("Unheard", ["input_ids"], ["embeddings"], domain="nobody")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("input_ids", "embeddings")]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:])), copy / "model.onnx")
    with pytest.raises(ModelError, match=r"OpenVINO cannot run .*model\.onnx"):
        OpenVinoBackend(copy)
    (copy / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
        OpenVinoBackend(copy)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match=r"openvino is not installed: pip install 'embed-pipeline\[openvino\]'"):
        OpenVinoBackend(tiny_export)
