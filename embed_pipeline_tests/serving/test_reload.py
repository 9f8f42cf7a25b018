"""The release that becomes current is served, no request is lost, and a broken one changes nothing."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.release.releases import promote
from embed_pipeline.serving.connections import bind
from embed_pipeline.serving.server import EmbeddingServer, Follower
from embed_pipeline.serving.service import Service
from embed_pipeline.settings import Paths, Serving, Settings
from embed_pipeline.storage import write_whole
from embed_pipeline_tests.serving.endpoint import MODEL, Running, changed, eventually, gated, running


@pytest.fixture
def store(bundle, tmp_path) -> Path:
    """Releases "1" and "2", which differ in the query prefix; "1" is current."""
    releases = tmp_path / "store" / "release"
    shutil.copytree(bundle, releases / "1")
    changed(bundle, releases / "2", "onnx/embedding_config.json", query_prefix="how ")
    promote(Paths(store=tmp_path / "store"), "1")
    return tmp_path / "store"


def following(store: Path, **serving):
    return running(store / "release" / "1", store=store, reload_seconds=0.02, **serving)


def version(served: Running) -> str:
    return served.client.get("/v1/metadata").json()["data"][0]["version"]


@pytest.mark.slow
def test_a_promoted_release_is_served_and_a_promoted_back_one_too(store):
    encoders = {name: Encoder(OnnxBackend(store / "release" / name / "onnx", threads=1)) for name in "12"}
    expected = {name: encoder.encode(["class"], "query") for name, encoder in encoders.items()}
    assert not np.allclose(expected["1"], expected["2"], atol=1e-3)
    with following(store) as served:
        for name in ("1", "2", "1"):
            before = served.service.models[0]
            promote(Paths(store=store), name)
            eventually(lambda name=name: version(served) == name)
            assert np.allclose(served.vectors("class"), expected[name], atol=1e-6)
            # What is served no more holds no thread.
            eventually(
                lambda before=before: (
                    before in served.service.models
                    or not any(t.is_alive() for t in before._sides["passage"].batcher._threads)
                )
            )


@pytest.mark.slow
def test_no_request_is_lost_while_releases_change(store):
    statuses: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(served.embed(["class", "value of " * 20]).status_code)

    with following(store) as served:
        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        for name in ("2", "1", "2", "1"):
            before = len(statuses)
            promote(Paths(store=store), name)
            eventually(lambda name=name: served.service.version == name)
            eventually(lambda before=before: len(statuses) > before + 8)
        stop.set()
        for client in clients:
            client.join()
    assert set(statuses) == {200}


@pytest.mark.slow
def test_models_change_between_two_steps_of_the_event_loop(store, monkeypatch):
    with running(store / "release" / "1", store=store, reload_seconds="never") as served:
        held, released, opened = threading.Event(), threading.Event(), threading.Event()
        opens = served.service._open

        def note(*arguments):
            models = opens(*arguments)
            opened.set()
            return models

        monkeypatch.setattr(served.service, "_open", note)
        served.service.loop.call_soon_threadsafe(lambda: (held.set(), released.wait(30)))
        assert held.wait(30)
        loading = threading.Thread(target=served.service.load, args=(store / "release" / "2",))
        loading.start()
        assert opened.wait(30)
        loading.join(0.2)
        before = served.service.version
        released.set()
        loading.join()
        assert (before, served.service.version) == ("1", "2")


class BeginningLoop:
    """An event loop that begins to run once somebody has looked."""

    looks = 0

    def is_running(self) -> bool:
        self.looks += 1
        return self.looks > 1

    def call_soon_threadsafe(self, call) -> None:
        call()


def test_a_release_loaded_just_before_the_event_loop_begins_is_served(bundle):
    service = Service(Settings(serving=Serving(cores=1)))
    service.loop = BeginningLoop()
    loading = threading.Thread(target=service.load, args=(bundle,), daemon=True)
    loading.start()
    loading.join(30)
    assert service.ready
    service.close()


@pytest.mark.slow
def test_what_the_old_release_has_begun_it_finishes(store):
    with following(store) as served, gated(served.service) as gate:
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(served.embed(["class"] * 3).status_code))
        asking.start()
        eventually(lambda: bool(gate.batches))
        promote(Paths(store=store), "2")
        eventually(lambda: served.service.version == "2")
        assert not answers
        gate.opened.set()
        asking.join()
        assert answers == [200]


def broken(store: Path, fault: str) -> None:
    """Make release "3" current, which cannot be served."""
    if fault == "gone":
        write_whole(store / "release" / "current", b"3\n")
        return
    tokens = 512 if fault == "too wide" else 64
    three = changed(store / "release" / "1", store / "release" / "3", "onnx/embedding_config.json", max_tokens=tokens)
    if fault == "changed":
        (three / "onnx" / "model.onnx").write_bytes(b"x")
    promote(Paths(store=store), "3")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["changed", "gone", "too wide"])
def test_a_release_that_cannot_be_served_leaves_the_one_before(store, caplog, fault):
    with following(store, max_batch_tokens=128) as served, caplog.at_level(logging.ERROR):
        broken(store, fault)
        eventually(lambda: served.metric("failed_reloads_total") == 1)
        assert "release 3 cannot be served, so 1 stays in service" in caplog.text
        assert served.embed("class").status_code == 200
        promote(Paths(store=store), "2")
        eventually(lambda: served.service.version == "2")
        assert served.metric("failed_reloads_total") == 1


def test_only_a_bundle_of_the_store_is_followed(store, bundle):
    service = Service(Settings(paths=Paths(store=store), serving=Serving(cores=1)))
    still = Service(Settings(paths=Paths(store=store), serving=Serving(cores=1, reload_seconds="never")))
    try:
        assert Follower.of(service, store / "release" / "1") is not None
        assert Follower.of(service, bundle) is None
        assert Follower.of(still, store / "release" / "1") is None
    finally:
        service.close()
        still.close()


@pytest.mark.slow
@pytest.mark.parametrize("comes", [True, False])
def test_before_the_first_release_it_waits_and_answers_503(bundle, tmp_path, comes):
    paths = Paths(store=tmp_path / "store")
    shutil.copytree(bundle, paths.store / "release" / "1")
    serving = Serving(port="auto", cores=1, reload_seconds=0.02)
    service = Service(Settings(paths=paths, serving=serving))
    server = EmbeddingServer(None, service, bind(serving))
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        statuses = [client.get(f"/v1/health/{what}").status_code for what in ("live", "ready")]
        refused = client.post("/v1/embeddings", json={"input": "in", "model": MODEL})
        if comes:
            promote(paths, "1")
            eventually(lambda: client.get("/v1/health/ready").status_code == 200)
            assert client.get("/v1/metadata").json()["data"][0]["version"] == "1"
        server.drain()
        thread.join(30)
    assert statuses == [200, 503]
    assert refused.status_code == 503
    assert not thread.is_alive()
