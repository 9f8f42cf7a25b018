"""The server as a process: its start, its port, its end under load."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from embed_pipeline.serving.connections import bind, free_port
from embed_pipeline.serving.server import EmbeddingServer, serve
from embed_pipeline.serving.service import Service
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Serving, Settings
from embed_pipeline_tests.serving.endpoint import MODEL, eventually, gated, running


@contextmanager
def process(bundle, port: int, **environment: str):
    command = [sys.executable, "-m", "embed_pipeline.serving", str(bundle), "--port", str(port)]
    variables = {**os.environ, "EMBED_PIPELINE_SERVING__CORES": "1", **environment}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True, cwd=bundle.parent) as started:
        try:
            yield started
        finally:
            started.kill()


def answers(url: str, path: str) -> int:
    try:
        return httpx.get(url + path, timeout=60).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.slow
def test_sigterm_under_load_drains_and_exits_with_0(bundle):
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    texts = [f"value {index} " + "of " * 40 for index in range(2000)]
    with process(bundle, port) as served, ThreadPoolExecutor(8) as threads:
        eventually(lambda: answers(url, "/v1/health/ready") == 200)
        body = {"input": texts, "model": MODEL, "encoding_format": "base64"}
        work = [threads.submit(httpx.post, f"{url}/v1/embeddings", json=body, timeout=60) for _ in range(4)]
        eventually(lambda: "embed_queue_texts 0.0" not in httpx.get(f"{url}/metrics", timeout=60).text)
        served.send_signal(signal.SIGTERM)
        assert {future.result().status_code for future in work} == {200}
        assert served.wait(60) == 0
        assert "Traceback" not in served.stderr.read()
    assert answers(url, "/v1/health/live") == 0


def test_while_draining_ready_and_new_work_are_503_and_work_in_flight_finishes(bundle):
    with running(bundle) as served, ThreadPoolExecutor(2) as threads, gated(served.service) as gate:
        flying = threads.submit(served.embed, "in")
        eventually(lambda: bool(gate.batches))
        served.server.drain()
        assert served.client.get("/v1/health/ready").status_code == 503
        assert served.client.get("/v1/health/live").status_code == 200
        refused = served.embed("a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        gate.opened.set()
        assert flying.result().status_code == 200


def test_it_stops_when_nothing_is_in_flight_or_the_time_for_it_is_over(bundle):
    serving = Serving(port="auto", cores=1, drain_seconds=30)
    service = Service(Settings(serving=serving))
    with bind(serving) as listener:
        server = EmbeddingServer(bundle, service, listener)

        def stops(seconds_ago: float, in_flight: int) -> bool:
            server.should_exit, server._drain_since = False, time.monotonic() - seconds_ago
            service.open_requests = in_flight
            return asyncio.run(server.on_tick(1))

        assert [stops(0, 0), stops(1, 0), stops(1, 1), stops(29, 1), stops(31, 1)] == [False, True, False, False, True]
    service.close()


@pytest.mark.slow
def test_while_loading_it_lives_and_is_not_ready(bundle, monkeypatch):
    from embed_pipeline.serving import service as module

    seen = {}
    loads, opened = module.verify_bundle, threading.Event()

    def slow(folder):
        assert opened.wait(60)
        return loads(folder)

    def look() -> None:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(url, "/v1/health/live") == 200)
        seen["ready"] = answers(url, "/v1/health/ready")
        fields = {"input": "a", "model": MODEL}
        seen["embed"] = httpx.post(f"{url}/v1/embeddings", json=fields, timeout=60).status_code
        opened.set()

    monkeypatch.setattr(module, "verify_bundle", slow)
    port = free_port("127.0.0.1")
    watcher = threading.Thread(target=look)
    watcher.start()
    with running(bundle, port=port) as served:
        watcher.join()
        assert seen == {"ready": 503, "embed": 503}
        assert served.embed("a").status_code == 200


def test_a_busy_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            bind(Serving(), port)


def test_an_address_that_is_not_here_is_named():
    with pytest.raises(ServingError, match=r"cannot listen on 192\.0\.2\.1 port 0"):
        bind(Serving(host="192.0.2.1"), 0)


def test_its_threads_take_short_turns(bundle, monkeypatch):
    turns = []

    def noted(server):
        turns.append(sys.getswitchinterval())
        server._listener.close()

    monkeypatch.setattr(EmbeddingServer, "run_until_stopped", noted)
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1)
        serve(bundle, Settings(), port=0)
    finally:
        sys.setswitchinterval(before)
    assert turns == [pytest.approx(0.0005)]


def test_a_broken_bundle_ends_the_server_with_what_is_wrong(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "1")
    (copy / "onnx" / "model.onnx").write_bytes(b"x")
    with pytest.raises(ServingError, match=r"cannot be served: .*onnx/model\.onnx is not the file"):
        serve(copy, Settings(serving=Serving(port="auto", cores=1)))


@pytest.mark.slow
def test_the_command_says_what_is_wrong_in_one_line(tmp_path):
    with process(tmp_path / "nowhere", 0) as failed:
        assert failed.wait(60) == 1
        lines = failed.stderr.read().splitlines()
    assert lines[-1].startswith("error: ")
    assert "manifest.json cannot be read" in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_the_endpoint_loads_no_training_libraries(bundle):
    script = (
        "import sys, embed_pipeline.serving.server as s, embed_pipeline.serving.service as v\n"
        "from embed_pipeline.settings import *\n"
        "from pathlib import Path\n"
        "service = v.Service(Settings(serving=Serving(cores=1)))\n"
        f"service.load(Path({str(bundle)!r}))\n"
        "service.close()\n"
        "print([m for m in ('torch', 'transformers', 'dagster', 'mlflow', 'polars', 'faiss') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
