"""The tiny model, exported once for this room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

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
