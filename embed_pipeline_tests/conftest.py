"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from embed_pipeline.settings import Embedding, Release

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DO_NOT_TRACK="1", MPLBACKEND="Agg")
for _variable in [name for name in os.environ if name.startswith("EMBED_PIPELINE_")]:
    del os.environ[_variable]
# A shell without job control has what runs in its background ignore Ctrl-C, and Dagster then ignores SIGTERM as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random-weight sentence-transformers model."""
    from embed_pipeline_tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def exporting() -> Embedding:
    """Settings of the export: with prefixes, so that a lost one shows."""
    return Embedding(device="cpu", query_prefix="what is ", passage_prefix="the ")


@pytest.fixture(scope="session")
def tiny_export(tiny_model: Path, exporting: Embedding, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX folder of the tiny model, made once for all processes of a run; tests that change it copy it first."""
    from embed_pipeline.embedding.onnx_export import export_onnx

    ours = tmp_path_factory.getbasetemp()
    shared = ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours
    folder = shared / "tiny-export"
    with FileLock(shared / "tiny-export.lock"):
        if not folder.exists():
            export_onnx(tiny_model, shared / "tiny-export-unfinished", Release(), exporting)
            (shared / "tiny-export-unfinished").rename(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models run faster on one thread than on several that wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
