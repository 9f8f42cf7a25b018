"""Fixtures for tests that ask a stub endpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.llm import transport
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.settings import LLM


@pytest.fixture
def store(tmp_path: Path) -> ResponseStore:
    with ResponseStore(tmp_path / "responses.sqlite") as opened:
        yield opened


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LLM]:
    """Settings for a stub, with backoff in milliseconds."""
    monkeypatch.setattr(transport, "BACKOFF_SECONDS", 0.005)

    def make(base_url: str = "http://127.0.0.1:9/v1", **changes: object) -> LLM:
        return LLM(base_url=base_url, model="stub", **changes)

    return make
