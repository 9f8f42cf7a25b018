"""The exported model through onnxruntime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend


@pytest.fixture(scope="module")
def backend(tiny_export: Path) -> OnnxBackend:
    return OnnxBackend(tiny_export, threads=1, batch_tokens=256)


@pytest.fixture
def folder(tiny_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_export, tmp_path / "onnx"))


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_equals_the_encoder(backend, tiny_model, exporting, kind):
    texts = ["python class", "how does it work " * 60, "value", "", "python class"]
    encoder = Encoder.load(tiny_model, exporting)
    vectors = backend.encode(texts, kind)
    assert vectors.dtype == np.float32
    assert (vectors * encoder.encode(texts, kind)).sum(axis=1).min() >= 0.99999
    assert (backend.dimensions, backend.max_tokens) == (encoder.dimensions, encoder.max_tokens) == (32, 64)
    assert (backend.query_prefix, backend.passage_prefix) == ("what is ", "the ")


def test_a_gpu_that_cannot_be_used_is_said(tiny_export, monkeypatch, caplog):
    import onnxruntime

    loaded = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("cuda"))
    backend = OnnxBackend(tiny_export, threads=1)
    assert (loaded, backend.on_gpu) == (["cuda"], False)
    assert "cannot use one here" in caplog.text


def test_tokens_have_special_tokens_and_are_cut_only_when_asked(backend):
    text = "the " * 100
    whole, cut = backend.tokenize([text])[0], backend.tokenize([text], truncate=True)[0]
    assert (len(whole), len(cut), backend.special_tokens) == (102, 64, 2)
    assert (cut[0], cut[-1]) == (whole[0], whole[-1])


def test_padding_changes_nothing(backend):
    rows = backend.tokenize(["python", "how does a class work in python"])
    together = backend.infer(rows)
    alone = np.concatenate([backend.infer([row]) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_rows_that_cannot_be_read_are_refused(backend):
    for rows, message in (([], "no row"), ([[]], "has 0 tokens"), ([[1] * 65], "has 65 tokens, must have 1 to 64")):
        with pytest.raises(ValueError, match=message):
            backend.infer(rows)


def test_no_texts(backend):
    assert backend.encode([], "query").shape == (0, 32)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "embedding_config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        OnnxBackend(folder)


def test_a_configuration_that_lacks_a_field_is_refused(folder):
    path = folder / "embedding_config.json"
    values = json.loads(path.read_text())
    del values["max_tokens"]
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="lacks max_tokens"):
        OnnxBackend(folder)


def test_what_is_no_model_is_refused(folder):
    (folder / "model.onnx").write_bytes(b"\xff\xff\xff not a model")
    with pytest.raises(ModelError, match="not an ONNX model"):
        OnnxBackend(folder)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "inside/../../secret.bin"])
def test_data_outside_the_folder_is_refused(folder, location):
    (folder.parent / "secret.bin").write_bytes(b"\0" * 10_000_000)
    model = onnx.load(str(folder / "model.onnx"))
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        OnnxBackend(folder)


def test_data_outside_is_found_in_subgraphs_and_constants(folder):
    from embed_pipeline.embedding.onnx_backend import refuse_outside_data

    tensor = onnx.TensorProto(name="hidden", data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    branch = onnx.helper.make_graph([constant], "branch", [], [])
    choice = onnx.helper.make_node("If", ["condition"], ["x"], then_branch=branch, else_branch=branch)
    model = onnx.helper.make_model(onnx.helper.make_graph([choice], "main", [], []))
    with pytest.raises(ModelError, match="'hidden'"):
        refuse_outside_data(folder / "model.onnx", model)


def test_threads_spin_for_moments_while_a_batch_runs_and_not_after_it(backend):
    options = backend._on_all_cores.get_session_options()
    entries = {"intra_op.allow_spinning": "1", "intra_op.spin_duration_us": "20", "force_spinning_stop": "1"}
    assert {name: options.get_session_config_entry(f"session.{name}") for name in entries} == entries


def test_operators_that_are_slower_together_stay_apart_on_a_processor(tiny_export, tmp_path, monkeypatch):
    import onnxruntime

    asked = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, path, sess_options, **options):
            asked.append(options["disabled_optimizers"])
            sess_options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
            super().__init__(path, sess_options, **options)

    def operators():
        OnnxBackend(tiny_export, threads=1)
        return {node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node}

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    fused = {"SkipLayerNormalization", "BiasGelu"}
    assert not operators() & fused
    monkeypatch.setattr("embed_pipeline.embedding.onnx_backend._SLOW_FUSIONS", ())
    assert operators() >= fused

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    operators()
    assert asked[-1] is None
