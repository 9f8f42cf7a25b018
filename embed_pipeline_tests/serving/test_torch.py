"""Torch beside onnxruntime: chosen by measurement, and in half precision only where it is proven on this machine."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline import machine
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.proven import PROOF_PASSAGES
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.release.manifest import read_manifest
from embed_pipeline.release.releases import promote
from embed_pipeline.serving.runtimes import comparison_texts, open_export
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Gates, Paths, Serving, Settings
from embed_pipeline_tests.serving.endpoint import MODEL, changed, corpus_of, eventually, running
from embed_pipeline_tests.serving.test_runtimes import PARITY, listed

TEXTS = [f"class {index} of python value {'in ' * (index % 50)}" for index in range(80)]


@pytest.fixture(autouse=True)
def _bf16_here(monkeypatch):
    """As on a processor that multiplies bf16; torch computes the same elsewhere, slower."""
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: True)


@pytest.fixture(autouse=True)
def _no_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory) -> Path:
    """A store with a corpus."""
    store = tmp_path_factory.mktemp("stocked")
    (store / "tables").mkdir()
    corpus_of(TEXTS).write_parquet(store / "tables" / "corpus.parquet")
    return store


def opened(bundle: Path, store: Path, min_proven_cosine: float = 0.999, **serving) -> str:
    gates = Gates(min_proven_cosine=min_proven_cosine)
    settings = Settings(paths=Paths(store=store), gates=gates, serving=Serving(cores=1, **serving))
    export = open_export(bundle, read_manifest(bundle), settings)
    return f"{export.precision} {export.backend.runtime}"


def test_what_is_asked_for_is_served(bundle, stocked):
    assert opened(bundle, stocked) == "fp32 onnxruntime"
    assert opened(bundle, stocked, backend="torch") == "fp32 torch"
    assert opened(bundle, stocked, backend="torch", precision="bf16") == "bf16 torch"
    assert opened(bundle, stocked, backend="auto", precision="bf16") == "bf16 torch"


@pytest.mark.parametrize(("backend", "precision"), [("onnx", "bf16"), ("torch", "int8"), ("openvino", "fp16")])
def test_a_precision_that_the_back_end_has_not_is_refused_at_start(backend, precision):
    with pytest.raises(ValueError, match=f"precision is {precision}, which backend = {backend} does not compute"):
        Serving(backend=backend, precision=precision)


@pytest.mark.slow
@pytest.mark.parametrize(("slowed", "served"), [(TorchBackend, "onnxruntime"), (OnnxBackend, "torch")])
def test_left_to_itself_it_takes_the_faster(bundle, stocked, monkeypatch, slowed, served):
    original = slowed.infer
    monkeypatch.setattr(slowed, "infer", lambda self, ids: [original(self, ids) for _ in range(60)][-1])
    assert opened(bundle, stocked, backend="auto") == f"fp32 {served}"


def test_half_precision_that_is_not_near_enough_is_not_served(bundle, stocked, caplog):
    strict = {"min_proven_cosine": 1.0}
    with pytest.raises(ServingError, match=r"bf16 with torch: least cosine [\d.]+ is below gates\.min_proven_cosine"):
        opened(bundle, stocked, backend="torch", precision="bf16", **strict)
    with caplog.at_level(logging.INFO):
        assert opened(bundle, stocked, backend="torch", precision="auto", **strict) == "fp32 torch"
    assert "skipped: bf16 with torch" in caplog.text


@pytest.mark.parametrize("wrong", [np.nan, -1.0])
def test_vectors_that_are_wrong_here_are_not_served(bundle, stocked, monkeypatch, wrong):
    right = TorchBackend._begin

    def begin(self, tokens, mask, *, alone):
        vectors = right(self, tokens, mask, alone=alone)().copy()
        vectors[0] *= wrong
        return lambda: vectors

    monkeypatch.setattr(TorchBackend, "_begin", begin)
    with pytest.raises(ServingError, match="not finite|below gates"):
        opened(bundle, stocked, backend="torch", precision="bf16")


def test_half_precision_that_cannot_be_measured_is_not_served(bundle, tmp_path):
    with pytest.raises(ServingError, match="neither a corpus nor an export's parity"):
        opened(bundle, tmp_path, backend="torch", precision="bf16")
    assert opened(bundle, tmp_path, backend="torch", precision="auto") == "fp32 torch"


def test_half_precision_that_the_machine_has_not_is_not_served(bundle, stocked, monkeypatch):
    with pytest.raises(ServingError, match="nothing in this machine computes fp16 with torch"):
        opened(bundle, stocked, backend="torch", precision="fp16")
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: False)
    with pytest.raises(ServingError, match="nothing in this machine computes bf16 with torch"):
        opened(bundle, stocked, backend="torch", precision="bf16")


def test_a_model_that_torch_may_not_load_leaves_the_export(bundle, stocked, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / "1"))
    (copy / "model" / "model.safetensors").rename(copy / "model" / "pytorch_model.bin")
    assert opened(listed(copy), stocked, backend="auto") == "fp32 onnxruntime"
    with pytest.raises(ServingError, match="fp32 with torch: .*pickled weights"):
        opened(copy, stocked, backend="torch")


def test_it_is_proven_on_segments_whole_and_short_and_on_the_worst_texts(bundle, stocked, tmp_path):
    tables_folder = Paths(store=stocked).root / "tables"
    texts = comparison_texts(bundle, read_manifest(bundle), tables_folder / "corpus.parquet")
    whole = [text for text in texts if text in TEXTS]
    assert PROOF_PASSAGES == len(whole) < len(texts) == len(set(texts))
    copy = Path(shutil.copytree(bundle, tmp_path / "1"))
    worst = [{"kind": "query", "id": "q", "cosine": 0.9, "text": "the worst"}]
    (copy / "onnx" / "parity.json").write_text(json.dumps({**PARITY, "worst": worst}))
    assert comparison_texts(listed(copy), read_manifest(copy), tables_folder / "absent.parquet") == ["the worst"]
    assert opened(copy, tmp_path, backend="torch", precision="bf16") == "bf16 torch"


@pytest.mark.slow
def test_torch_serves_the_tuned_and_onnxruntime_the_base_model_and_both_follow_the_store(bundle, stocked, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(stocked, store)
    one = Path(shutil.copytree(bundle, store / "release" / "1"))
    shutil.copytree(one / "onnx", one / "base_onnx")
    changed(listed(one), store / "release" / "2", "onnx/embedding_config.json", query_prefix="how ")
    promote(Paths(store=store), "1")
    encoders = {n: Encoder(OnnxBackend(store / "release" / n / "onnx", threads=1)) for n in "12"}
    expected = {n: encoder.encode(["class"], "query")[0] for n, encoder in encoders.items()}
    with running(one, store=store, reload_seconds=0.02, backend="torch", precision="bf16") as served:
        for version in ("1", "2"):
            promote(Paths(store=store), version)
            eventually(lambda version=version: served.service.version == version)
            found = served.client.get("/v1/metadata").json()["data"]
            assert [(row["precision"], row["runtime"]) for row in found] == [("bf16", "torch"), ("fp32", "onnxruntime")]
            assert served.vectors("class")[0] @ expected[version] >= 0.9999
            fields = {"input": "class", "model": f"{MODEL}-base"}
            base = served.client.post("/v1/embeddings", json=fields).json()["data"][0]["embedding"]
            assert np.allclose(base, expected["1"], atol=1e-5)
