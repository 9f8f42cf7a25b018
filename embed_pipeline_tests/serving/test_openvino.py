"""OpenVINO beside onnxruntime: chosen by measurement, and only where it is proven on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding import proven
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.openvino_backend import OpenVinoBackend
from embed_pipeline.release.manifest import read_manifest
from embed_pipeline.serving import runtimes as exports
from embed_pipeline.serving.runtimes import ServedExport, open_export
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Paths, Serving, Settings
from embed_pipeline_tests.serving.endpoint import running

TEXTS = [f"class {index} of python value" for index in range(20)]


@pytest.fixture(autouse=True)
def _measured(monkeypatch):
    monkeypatch.setattr(exports, "comparison_texts", lambda *_: TEXTS)


def opened(bundle: Path, **serving) -> ServedExport:
    settings = Settings(paths=Paths(store=bundle.parent), serving=Serving(cores=1, **serving))
    return open_export(bundle, read_manifest(bundle), settings)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_asked_for_is_served_from_the_fp32_export(bundle, precision):
    export = opened(bundle, backend="openvino", precision=precision)
    assert export.name == f"{precision} with openvino"
    expected = Encoder(OnnxBackend(bundle / "onnx", threads=1)).encode(TEXTS, "passage")
    found = Encoder(export.backend).encode(TEXTS, "passage")
    assert (found * expected).sum(axis=1).min() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("slowed", "served"), [(OpenVinoBackend, "onnxruntime"), (OnnxBackend, "openvino")])
def test_left_to_itself_it_takes_the_faster(bundle, monkeypatch, slowed, served):
    monkeypatch.setattr(exports, "TORCH_PRECISIONS", {})
    original = slowed.infer
    monkeypatch.setattr(slowed, "infer", lambda self, ids: [original(self, ids) for _ in range(60)][-1])
    assert opened(bundle, backend="auto").backend.runtime == served


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_vectors_that_are_wrong_here_are_not_served(bundle, monkeypatch, precision):
    right = OpenVinoBackend._begin

    def begin(*given, **options):
        vectors = right(*given, **options)()
        return lambda: vectors[:, ::-1]

    monkeypatch.setattr(OpenVinoBackend, "_begin", begin)
    with pytest.raises(ServingError, match=rf"{precision} with openvino: least cosine -?[\d.]+ is below gates"):
        opened(bundle, backend="openvino", precision=precision)


def test_int8_takes_smaller_groups_where_larger_ones_are_not_near_enough(bundle, monkeypatch):
    right, seen = proven.cosines_of, []

    def measured(*vectors):
        seen.append(right(*vectors).min())
        return np.array([0.998 if len(seen) == 1 else seen[-1]])

    monkeypatch.setattr(proven, "cosines_of", measured)
    assert opened(bundle, backend="openvino", precision="int8").name == "int8 with openvino"
    assert seen[1] != seen[0]


def test_without_the_package_it_is_refused_and_the_others_are_not(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ServingError, match=r"pip install 'embed-pipeline\[openvino\]'"):
        opened(bundle, backend="openvino")
    assert opened(bundle, backend="auto").backend.runtime != "openvino"


@pytest.mark.slow
def test_an_endpoint_says_what_computes(bundle):
    with running(bundle, backend="openvino", precision="int8") as served:
        row = served.client.get("/v1/metadata").json()["data"][0]
        assert (row["precision"], row["runtime"]) == ("int8", "openvino")
        expected = Encoder(OnnxBackend(bundle / "onnx", threads=1)).encode(["class"], "query")[0]
        found = served.vectors("class")[0]
        assert found @ expected >= 0.999
        assert np.abs(found - expected).max() > 1e-5
