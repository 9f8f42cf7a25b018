"""A documents folder and settings that point to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty documents folder."""
    path = tmp_path / "documents"
    path.mkdir()
    return path


@pytest.fixture
def make_settings(folder: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings with changes to the corpus group."""

    def make(**corpus: object) -> Settings:
        return Settings.model_validate({"paths": {"documents": folder, "store": tmp_path / "store"}, "corpus": corpus})

    return make
