"""A released tiny model, and endpoints that serve it on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embed_pipeline_tests.serving.endpoint import Running, running


@pytest.fixture(scope="session")
def bundle(tiny_model: Path, tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Release "1" of the tiny model: 32 dimensions, cut to 16 where asked, 64 tokens, with prefixes."""
    from embed_pipeline.release.bundle import Lineage, write_bundle

    folder = tmp_path_factory.mktemp("serving")
    lineage = Lineage(version="1", matryoshka_dimensions=(16, 32), parity={"min_cosine": 1.0}, mlflow={"run": "r1"})
    write_bundle(folder / "1", model=tiny_model, onnx_folder=tiny_export, lineage=lineage)
    return folder / "1"


@pytest.fixture(scope="session")
def endpoint(bundle: Path) -> Iterator[Running]:
    """The tiny release served with default settings; tests leave it as it is."""
    with running(bundle) as served:
        yield served
