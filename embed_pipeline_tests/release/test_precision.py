"""Other precisions: close vectors, smaller files, bounds that hold, and nothing that normalises in fp16."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.transformers import float16

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.release.bundle import EXPORT_FOLDERS
from embed_pipeline.release.manifest import ReleaseError
from embed_pipeline.release.parity import Parity
from embed_pipeline.release.precision import (
    measured_precisions,
    mixed_precision,
    precision_failures,
    write_precision,
    write_within_bounds,
)
from embed_pipeline.settings import Settings

TEXTS = ["python class", "how does a value work in python " * 20, "a", "object function class"]
WIDE = {"LayerNormalization", "Softmax", "ReduceL2", "ReduceSum", "Div", "Clip"}


def test_vectors_stay_close_and_of_unit_length(tiny_export, tmp_path):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "half"))
    onnx.save(mixed_precision(folder / "model.onnx"), str(folder / "model.onnx"))
    half = Encoder(OnnxBackend(folder, threads=1)).encode(TEXTS, "passage")
    full = Encoder(OnnxBackend(tiny_export, threads=1)).encode(TEXTS, "passage")
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


def test_a_converter_that_repeats_its_casts_gives_the_same_graph(tiny_export, monkeypatch):
    convert = float16.convert_float_to_float16

    def repeating(*arguments, **options):
        model = convert(*arguments, **options)
        model.graph.node.extend([node for node in model.graph.node if node.op_type == "Cast"])
        return model

    expected = mixed_precision(tiny_export / "model.onnx")
    monkeypatch.setattr(float16, "convert_float_to_float16", repeating)
    found = mixed_precision(tiny_export / "model.onnx")
    assert sorted(map(str, found.graph.node)) == sorted(map(str, expected.graph.node))


@pytest.mark.parametrize(("deltas", "written", "failing"), [([0.0], 1, 0), ([0.01, 0.0], 2, 0), ([0.01, 0.01], 2, 1)])
def test_int8_takes_blocks_where_channels_miss_the_bound(tiny_export, tmp_path, deltas, written, failing):
    full, cosines = Encoder(OnnxBackend(tiny_export, threads=1)).encode(TEXTS, "passage"), []

    def measure(folder: Path) -> Parity:
        found = Encoder(OnnxBackend(folder, threads=1)).encode(TEXTS, "passage")
        cosines.append(float((found * full).sum(axis=1).min()))
        return Parity(1, 1, cosines[-1], 1.0, 1.0, deltas[len(cosines) - 1], 0.0, ())

    parity, failures = write_within_bounds(tiny_export, tmp_path / "int8", "int8", measure, Settings())
    assert (len(cosines), len(failures), parity.min_cosine) == (written, failing, cosines[-1])
    if written > 1:
        assert 1 - cosines[1] < (1 - cosines[0]) / 4


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_another_precision_is_an_export_like_the_first(tiny_export, tmp_path, precision):
    folder = tmp_path / "other"
    write_precision(tiny_export, folder, precision)
    vectors = Encoder(OnnxBackend(folder, threads=1)).encode(TEXTS, "passage")
    full = Encoder(OnnxBackend(tiny_export, threads=1)).encode(TEXTS, "passage")
    assert (vectors * full).sum(axis=1).min() >= 0.97
    assert not np.array_equal(vectors, full)
    assert (folder / "model.onnx").stat().st_size < (tiny_export / "model.onnx").stat().st_size
    copied = {path.name for path in tiny_export.iterdir()} - {"parity.json"}
    assert {path.name for path in folder.iterdir()} == copied


def test_int8_weights_are_eight_bits(tiny_export, tmp_path):
    write_precision(tiny_export, tmp_path / "int8", "int8")
    graph = onnx.load(str(tmp_path / "int8" / "model.onnx")).graph
    weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 2]
    assert weights
    assert {tensor.data_type for tensor in weights} <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


def parity(**changes: float) -> Parity:
    figures = {"min_cosine": 1.0, "mean_cosine": 1.0, "top10_overlap": 1.0, "ndcg_delta": 0.0, "recall_delta": 0.0}
    return Parity(passages=1, queries=1, worst=(), **{**figures, **changes})


@pytest.mark.parametrize(
    ("precision", "figures", "missed"),
    [
        ("fp16", {"min_cosine": 0.9991, "ndcg_delta": 0.1}, ""),
        ("fp16", {"min_cosine": 0.9989}, "min cosine 0.99890 is below release.min_fp16_cosine 0.999"),
        ("fp16", {"min_cosine": float("nan")}, "min_fp16_cosine"),
        ("int8", {"min_cosine": 0.9, "ndcg_delta": -0.0049}, ""),
        ("int8", {"ndcg_delta": -0.0051}, "nDCG@10 changes by -0.0051, more than release.max_int8_ndcg_delta 0.005"),
        ("int8", {"ndcg_delta": float("nan")}, "max_int8_ndcg_delta"),
    ],
)
def test_each_precision_is_held_to_its_own_bound(precision, figures, missed):
    failures = precision_failures(precision, parity(**figures), Settings())
    assert bool(failures) == bool(missed)
    assert missed in "".join(failures)


def test_what_was_converted_is_found_with_its_figures(tmp_path):
    assert measured_precisions(tmp_path) == {}
    (tmp_path / EXPORT_FOLDERS["int8"]).mkdir()
    with pytest.raises(ReleaseError, match="parity"):
        measured_precisions(tmp_path)


def test_weights_beside_the_graph_have_one_name(tiny_export, tmp_path):
    large = Path(shutil.copytree(tiny_export, tmp_path / "large"))
    proto = onnx.load(str(large / "model.onnx"))
    options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(proto, str(large / "model.onnx"), **options)
    for number in (1, 2):
        write_precision(large, tmp_path / f"half{number}", "fp16")
    first, second = (sorted(path.name for path in (tmp_path / f"half{n}").glob("model.onnx*")) for n in (1, 2))
    assert first == second == ["model.onnx", "model.onnx.data"]
    for name in first:
        assert (tmp_path / "half1" / name).read_bytes() == (tmp_path / "half2" / name).read_bytes()
