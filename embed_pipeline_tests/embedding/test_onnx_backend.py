"""An export on onnxruntime: what it is opened with, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend


@pytest.fixture(scope="module")
def backend(tiny_export: Path) -> OnnxBackend:
    return OnnxBackend(tiny_export, threads=1)


@pytest.fixture
def folder(tiny_export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_export, tmp_path / "onnx"))


def test_a_gpu_that_cannot_be_used_is_said(tiny_export, monkeypatch, caplog):
    import onnxruntime

    loaded = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("cuda"))
    backend = OnnxBackend(tiny_export, threads=1)
    assert (loaded, backend.on_gpu) == (["cuda"], False)
    assert "cannot use one here" in caplog.text


def test_a_missing_model_is_named(folder):
    (folder / "model.onnx").unlink()
    with pytest.raises(ModelError, match=r"model\.onnx is missing"):
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
