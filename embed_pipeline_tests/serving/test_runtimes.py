"""Which export is served: the fastest of those whose parity allows it, and the base model beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.release.manifest import ReleaseError, bundle_files, read_manifest
from embed_pipeline.serving import runtimes as exports
from embed_pipeline.serving.runtimes import open_export
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Paths, Release, Serving, Settings
from embed_pipeline.storage import file_hash
from embed_pipeline_tests.serving.endpoint import MODEL, running

PARITY = {
    "passages": 1,
    "queries": 1,
    "min_cosine": 0.99,
    "mean_cosine": 0.99,
    "top10_overlap": 1.0,
    "ndcg_delta": -0.004,
    "recall_delta": 0.0,
    "worst": [],
}


def listed(bundle: Path) -> Path:
    """``bundle`` with a manifest that lists what it holds."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {name: file_hash(bundle / name) for name in bundle_files(bundle)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.fixture(scope="module")
def quantized(bundle, tmp_path_factory) -> Path:
    """A release with a real int8 export."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("quantized") / "1"))
    int8 = Path(shutil.copytree(copy / "onnx", copy / "onnx_int8"))
    quantize_dynamic(copy / "onnx" / "model.onnx", int8 / "model.onnx", weight_type=QuantType.QInt8)
    (int8 / "parity.json").write_text(json.dumps(PARITY))
    return listed(copy)


def settings(bundle: Path, release: Release, **serving) -> Settings:
    paths = Paths(store=bundle.parent / "store")
    return Settings(paths=paths, release=release, serving=Serving(cores=1, **serving))


def opened(bundle: Path, release: Release = Release(), **serving) -> str:  # noqa: B008 - frozen
    wanted = settings(bundle, release, **{"precision": "auto", **serving})
    return open_export(bundle, read_manifest(bundle), wanted).precision


def test_a_release_with_fp32_alone_is_served_in_fp32(bundle):
    assert opened(bundle) == "fp32"
    with pytest.raises(ServingError, match=r"release 1: it holds no onnx_int8/model\.onnx: int8 .* missed its bound"):
        opened(bundle, precision="int8")


def test_what_is_asked_for_is_served(quantized):
    assert [opened(quantized, precision=precision) for precision in ("fp32", "int8")] == ["fp32", "int8"]


@pytest.mark.slow
@pytest.mark.parametrize("faster", ["fp32", "int8"])
def test_left_to_itself_it_takes_the_faster(quantized, monkeypatch, faster):
    class Slowed(OnnxBackend):
        def __init__(self, folder, **options):
            super().__init__(folder, **options)
            self.rounds = 1 if folder.name == exports.EXPORT_FOLDERS[faster] else 20

        def infer(self, ids):
            for _ in range(self.rounds - 1):
                super().infer(ids)
            return super().infer(ids)

    monkeypatch.setattr(exports, "OnnxBackend", Slowed)
    assert opened(quantized) == faster


def test_an_export_that_changes_rankings_too_much_is_not_served(quantized):
    strict = Release(max_int8_ndcg_delta=0.001)
    assert opened(quantized, strict) == "fp32"
    with pytest.raises(ServingError, match=r"changes nDCG@10 by -0\.0040, more than release\.max_int8_ndcg_delta"):
        opened(quantized, strict, precision="int8")


def test_an_export_without_its_parity_is_refused(quantized, tmp_path):
    copy = Path(shutil.copytree(quantized, tmp_path / "1"))
    (copy / "onnx_int8" / "parity.json").unlink()
    with pytest.raises(ReleaseError, match="parity"):
        opened(listed(copy))


def test_the_precision_is_said(quantized):
    with running(quantized, precision="int8") as served:
        assert served.client.get("/v1/metadata").json()["data"][0]["precision"] == "int8"
        assert np.isfinite(served.vectors("class")).all()


def test_the_base_model_is_served_beside_the_tuned_one(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "1"))
    shutil.copytree(copy / "onnx", copy / "base_onnx")
    config = copy / "base_onnx" / "embedding_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "query_prefix": "how ", "passage_prefix": ""}))
    expected = Encoder(OnnxBackend(listed(copy) / "base_onnx", threads=1))
    with running(copy) as served:
        names = [model["id"] for model in served.client.get("/v1/models").json()["data"]]
        assert names == [MODEL, f"{MODEL}-base"]
        for kind in ("query", "passage"):
            fields = {"input": "class", "model": f"{MODEL}-base-{kind}"}
            answer = served.client.post("/v1/embeddings", json=fields).json()["data"][0]["embedding"]
            assert np.allclose(answer, expected.encode(["class"], kind)[0], atol=1e-6)
        assert not np.allclose(answer, served.vectors("class", input_type="passage")[0], atol=1e-3)


def test_tensorrt_says_why_it_is_not_served_here(bundle, tmp_path):
    with pytest.raises(
        ServingError, match=r"fp16 with tensorrt: it holds no tensorrt/model\.plan; it holds no onnx_fp16"
    ):
        opened(bundle, backend="tensorrt")
    copy = Path(shutil.copytree(bundle, tmp_path / "1"))
    for folder in ("tensorrt", "onnx_fp16"):
        shutil.copytree(copy / "onnx", copy / folder)
    (copy / "tensorrt" / "model.plan").write_bytes(b"engine")
    with pytest.raises(ServingError, match="no NVIDIA GPU; onnxruntime has no TensorRT provider here"):
        opened(listed(copy), backend="tensorrt")
