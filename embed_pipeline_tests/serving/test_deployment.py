"""A deployment is proven through the real endpoint, and what is not the model's is found out."""

from __future__ import annotations

import json
import os
import shutil
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import httpx
import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import Kind
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.release.bundle import Lineage, write_bundle
from embed_pipeline.release.releases import promote
from embed_pipeline.serving.connections import free_port
from embed_pipeline.serving.deployment import deploy, deployment_failures
from embed_pipeline.serving.process import (
    RunningEndpoint,
    confirm_release,
    keep_endpoint,
    kept_endpoint,
    served_release,
    start_endpoint,
)
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Deployment, Embedding, Paths, Release, Serving, Settings
from embed_pipeline_tests import families
from embed_pipeline_tests.serving.endpoint import changed, corpus_of, running

QUERIES = ["what is a class", "value of python", "how to object"]


@pytest.fixture(scope="module")
def corpus() -> pl.DataFrame:
    return corpus_of([f"class {index} of python value {'in ' * (index % 50)}" for index in range(40)])


def settings(store: Path, **serving) -> Settings:
    return Settings(
        paths=Paths(store=store),
        serving=Serving(**{"cores": 1, "port": "auto", "drain_seconds": 2, **serving}),
        embedding=Embedding(device="cpu"),
    )


def stop(pid: int) -> int:
    os.kill(pid, signal.SIGTERM)
    return os.waitpid(pid, 0)[1]


@pytest.mark.slow
def test_a_faithful_endpoint_is_kept_and_takes_up_the_next_release(bundle, corpus, tmp_path):
    chosen = settings(tmp_path, model_name="other-name", port=free_port("127.0.0.1"), reload_seconds=0.05)
    releases = tmp_path / "release"
    shutil.copytree(bundle, releases / "1")
    frame = deploy(releases / "1", corpus, QUERIES, chosen, keep=True)
    row = frame.row(0, named=True)
    kept = kept_endpoint(tmp_path)
    try:
        assert deployment_failures(frame, chosen) == []
        assert (row["release_version"], row["precision"], row["left_running"]) == ("1", "fp32", True)
        assert row["runtime"] == "onnxruntime"
        assert row["texts_compared"] == 43
        assert row["min_cosine"] > 0.99999
        assert row["top10_overlap"] == 1.0
        assert row["median_milliseconds"] > 0
        assert kept is not None
        assert kept.url == row["url"] == f"http://127.0.0.1:{chosen.serving.port}"
        assert httpx.get(f"{kept.url}/v1/models").json()["data"][0]["id"] == "other-name"

        changed(bundle, releases / "2", "onnx/config.json")
        frame = deploy(releases / "2", corpus, QUERIES, chosen, keep=True)
        assert frame.row(0, named=True)["url"] == kept.url
        assert served_release(kept.url)["version"] == "1"
        promote(Paths(store=tmp_path), "2")
        confirm_release("2", chosen)
        assert served_release(kept.url)["version"] == "2"
        assert kept_endpoint(tmp_path) == RunningEndpoint(kept.pid, kept.url, "2")
    finally:
        assert stop(json.loads((tmp_path / "deployment.json").read_text())["pid"]) == 0
    assert kept_endpoint(tmp_path) is None


@pytest.mark.slow
def test_a_release_that_an_endpoint_does_not_take_up_is_reported(bundle, tmp_path):
    confirm_release("2", settings(tmp_path))
    with running(bundle) as served:
        keep_endpoint(tmp_path, RunningEndpoint(os.getpid(), served.url, "1"))
        confirm_release("1", settings(tmp_path))
        with pytest.raises(ServingError, match=r"still serves 1 after serving\.start_seconds = 0\.3, not 2"):
            confirm_release("2", settings(tmp_path, start_seconds=0.3))


def test_a_process_that_serves_nothing_is_no_endpoint(tmp_path):
    # The process id may be another's by now.
    keep_endpoint(tmp_path, RunningEndpoint(os.getpid(), f"http://127.0.0.1:{free_port('127.0.0.1')}", "1"))
    assert kept_endpoint(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1}', '{"pid": "x", "url": "", "release_version": ""}'])
def test_a_damaged_note_of_an_endpoint_is_none(tmp_path, text):
    (tmp_path / "deployment.json").write_text(text)
    assert kept_endpoint(tmp_path) is None


@pytest.mark.slow
def test_a_release_that_serves_other_vectors_is_found_out(bundle, corpus, tmp_path, monkeypatch):
    # A model whose prefixes are not those of its export: close, and wrong.
    prompts = {"query": "how ", "document": "the "}
    other = changed(bundle, tmp_path / "2", "model/config_sentence_transformers.json", prompts=prompts)
    monkeypatch.setenv("EMBED_PIPELINE_SERVING_API_KEY", "clef")
    chosen = settings(tmp_path / "store")
    frame = deploy(other, corpus, QUERIES, chosen, keep=True)
    failures = deployment_failures(frame, chosen)
    assert any("min_cosine" in failure and "below 0.99999" in failure for failure in failures)
    assert not frame["left_running"][0]
    assert kept_endpoint(tmp_path / "store") is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{frame['url'][0]}/v1/health/live")


def test_bounds_are_the_settings():
    row = {
        "release_version": "1",
        "precision": "fp32",
        "runtime": "onnxruntime",
        "url": "u",
        "left_running": False,
        "texts_compared": 3,
        "min_cosine": 0.99,
        "top10_overlap": 0.9,
        "median_milliseconds": 1.0,
    }

    def failed(**changed) -> list[str]:
        failures = deployment_failures(tables.DEPLOYMENT.frame([{**row, **changed}]), Settings())
        return [failure.split(": ")[1] for failure in failures]

    assert failed() == ["min_cosine 0.9900000 is below 0.99999", "top10_overlap 0.9000000 is below 0.99"]
    # Other vectors are in the nature of onnxruntime's int8; other rankings are not.
    assert failed(precision="int8") == []
    assert failed(precision="int8", top10_overlap=0.7) == ["top10_overlap 0.7000000 is below 0.8"]
    assert failed(precision="int8", runtime="openvino", top10_overlap=0.7) == [
        "min_cosine 0.9900000 is below 0.999",
        "top10_overlap 0.7000000 is below 0.8",
    ]
    assert failed(runtime="openvino") == failed()
    for precision, runtime in (("fp16", "onnxruntime"), ("fp16", "torch"), ("bf16", "torch"), ("bf16", "openvino")):
        assert failed(precision=precision, runtime=runtime)[1] == "top10_overlap 0.9000000 is below 0.99"
        assert failed(precision=precision, runtime=runtime, top10_overlap=1.0) == [
            "min_cosine 0.9900000 is below 0.999"
        ]


@pytest.mark.slow
def test_an_endpoint_that_dies_early_is_reported_with_its_log(bundle, corpus, tmp_path):
    broken = Path(shutil.copytree(bundle, tmp_path / "1"))
    (broken / "onnx" / "model.onnx").write_bytes(b"x")
    with pytest.raises(ServingError, match=r"(?s)exit code 1 before it was ready; its log ends:.*model\.onnx is not"):
        deploy(broken, corpus, QUERIES, settings(tmp_path / "store"))


def test_a_port_that_is_taken_is_named_before_anything_starts(bundle, corpus, tmp_path):
    with running(bundle) as served:
        chosen = settings(tmp_path, port=int(served.url.rsplit(":", 1)[1]))
        with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1 port {chosen.serving.port}"):
            deploy(bundle, corpus, QUERIES, chosen, keep=True)


def test_an_endpoint_that_is_never_ready_is_ended(bundle, tmp_path):
    with pytest.raises(ServingError, match=r"not ready after serving\.start_seconds = 0\.01"):
        start_endpoint(
            bundle, settings(tmp_path, start_seconds=0.01), port=free_port("127.0.0.1"), log=tmp_path / "log"
        )


def test_nothing_to_compare_is_said(bundle, corpus, tmp_path):
    with pytest.raises(ServingError, match="got 0 and 3"):
        deploy(bundle, tables.CORPUS.empty(), QUERIES, settings(tmp_path))
    with pytest.raises(ServingError, match="got 40 and 0"):
        deploy(bundle, corpus, [], settings(tmp_path))


class PlainServer(BaseHTTPRequestHandler):
    """An OpenAI-compatible server as TEI and vLLM are: one model, prefixes left to its clients; or as NIM, by type."""

    encoder: ClassVar[Encoder]
    by_type: ClassVar[bool]
    twist: ClassVar[float]

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "tuned", "object": "model"}]}, known=self.path == "/v1/models")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = asked["input_type"] if self.by_type else None
        # Texts that come with their prefix are given to the side that has the same one.
        texts, prefixes = asked["input"], {side: self.prefix(side) for side in ("query", "passage")}
        kind = kind or next(side for side, prefix in prefixes.items() if texts[0].startswith(prefix))
        plain = texts if self.by_type else [text.removeprefix(prefixes[kind]) for text in texts]
        vectors = self.encoder.encode(plain, kind)
        vectors[:, 0] += self.twist
        rows = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        self.answer(
            {"object": "list", "data": rows, "model": asked["model"], "usage": usage}, known=asked["model"] == "tuned"
        )

    def prefix(self, kind: Kind) -> str:
        return self.encoder.backend.query_prefix if kind == "query" else self.encoder.backend.passage_prefix

    def answer(self, value: object, *, known: bool) -> None:
        body = json.dumps(value).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("by_type", [False, True])
@pytest.mark.parametrize("twist", [0.0, 0.2])
def test_an_endpoint_that_others_run_is_held_to_the_same_proof(bundle, corpus, tmp_path, by_type, twist):
    handler = type("Handler", (PlainServer,), {"by_type": by_type, "twist": twist})
    handler.encoder = Encoder.load(bundle / "model", Embedding(device="cpu"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    given = Deployment(
        endpoint_url=f"http://127.0.0.1:{server.server_port}", endpoint_prefixes="server" if by_type else "auto"
    )
    chosen = settings(tmp_path).model_copy(update={"deployment": given})
    try:
        frame = deploy(bundle, corpus, QUERIES, chosen)
    finally:
        server.shutdown()
        server.server_close()
    row = frame.row(0, named=True)
    assert (row["url"], row["runtime"], row["precision"]) == (given.endpoint_url, "endpoint", "fp32")
    assert row["texts_compared"] == 43
    assert bool(deployment_failures(frame, chosen)) is bool(twist)
    assert (row["min_cosine"] > 0.99999) is not bool(twist)


@pytest.mark.slow
def test_our_own_server_is_verified_by_its_address(bundle, corpus, tmp_path):
    with running(bundle) as served:
        given = Deployment(endpoint_url=f"{served.url}/")
        frame = deploy(bundle, corpus, QUERIES, settings(tmp_path).model_copy(update={"deployment": given}))
    assert frame.row(0, named=True)["runtime"] == "onnxruntime"
    assert deployment_failures(frame, settings(tmp_path)) == []


@pytest.mark.slow
def test_each_kind_of_text_is_served_by_its_own_route(corpus, tmp_path):
    chosen = settings(tmp_path)
    base = families.two_heads(tmp_path / "base")
    export_onnx(base, tmp_path / "onnx", Release(), chosen.embedding)
    bundle = tmp_path / "release" / "1"
    write_bundle(bundle, model=base, onnx_folder=tmp_path / "onnx", lineage=Lineage(version="1"))
    frame = deploy(bundle, corpus, QUERIES, chosen)
    assert deployment_failures(frame, chosen) == []
    assert frame["min_cosine"].item() > 0.99999
