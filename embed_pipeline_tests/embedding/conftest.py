"""The tiny model, exported once, and the ways to open it that this room's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.settings import Embedding, Release


@pytest.fixture(scope="session")
def exporting() -> Embedding:
    """Settings of the export: with prefixes, so that a lost one shows."""
    return Embedding(device="cpu", query_prefix="what is ", passage_prefix="the ")


@pytest.fixture(scope="session")
def tiny_export(tiny_model: Path, exporting: Embedding, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX folder of the tiny model; tests that change it copy it first."""
    from embed_pipeline.embedding.onnx_export import export_onnx

    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_onnx(tiny_model, folder, Release(), exporting)
    return folder


@pytest.fixture(params=["torch", "onnxruntime", "openvino"])
def opened(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_export: Path, exporting: Embedding
) -> Callable[[int], Backend]:
    """Opens the tiny model on each runtime in turn, over so many cores (torch: one)."""

    def open_on(cores: int) -> Backend:
        from embed_pipeline.embedding.onnx_backend import OnnxBackend
        from embed_pipeline.embedding.openvino_backend import OpenVinoBackend
        from embed_pipeline.embedding.torch_backend import TorchBackend

        if request.param == "torch":
            return TorchBackend.load(tiny_model, exporting)
        return (OnnxBackend if request.param == "onnxruntime" else OpenVinoBackend)(tiny_export, threads=cores)

    return open_on
