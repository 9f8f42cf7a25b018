"""The ways to open the tiny model that this room's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.settings import Embedding


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
