"""Settings for a stub endpoint, and a tiny encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.llm import transport
from embed_pipeline.settings import Embedding, Settings


@pytest.fixture(scope="session")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.load(tiny_model, Embedding(device="cpu"))


@pytest.fixture
def make_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of a stub endpoint, with backoff in milliseconds; keyword arguments go to the synthesis group."""
    monkeypatch.setattr(transport, "BACKOFF_SECONDS", 0.005)

    def make(base_url: str = "http://127.0.0.1:9/v1", llm: dict[str, Any] | None = None, **synthesis: Any) -> Settings:
        endpoint = {"base_url": base_url, "model": "stub", "structured_outputs": "json_schema", **(llm or {})}
        return Settings.model_validate({"paths": {"store": tmp_path}, "llm": endpoint, "synthesis": synthesis})

    return make
