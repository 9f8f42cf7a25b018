"""Load, overload and disconnection, on a real socket."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.release.manifest import BundleError
from embed_pipeline.serving import application
from embed_pipeline.serving.service import Service
from embed_pipeline.serving.serving_errors import RequestError, ServingError
from embed_pipeline.settings import Serving, Settings
from embed_pipeline_tests.serving.endpoint import MODEL, changed, eventually, gated, running


def send(served, texts: list[str]) -> socket.socket:
    body = json.dumps({"input": texts, "model": MODEL}).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection = served.connect()
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def reset(connection: socket.socket) -> None:
    """Close at once, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("leave", [reset, socket.socket.close])
def test_the_work_of_a_client_that_left_is_dropped(bundle, leave):
    with running(bundle, max_batch_tokens=128) as served, gated(served.service) as gate:
        first = send(served, ["in"])
        eventually(lambda: gate.batches == [[5]])
        gone = send(served, ["of " * 30] * 50)
        eventually(lambda: served.metric("queue_texts") == 50)
        leave(gone)
        eventually(lambda: served.metric("queue_texts") == 0)
        gate.opened.set()
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
        first.close()
        eventually(lambda: served.metric("disconnected_total") == 1)
        assert served.embed("a").status_code == 200
        assert not any(34 in batch for batch in gate.batches)


@pytest.mark.slow
def test_a_full_queue_is_a_429_with_retry_after_and_the_rest_is_answered(bundle):
    limits = {"max_queue_tokens": 400, "max_request_tokens": 400, "max_batch_tokens": 128}
    with running(bundle, **limits) as served, ThreadPoolExecutor(16) as threads:
        with gated(served.service) as gate:
            first = threads.submit(served.embed, "in")
            eventually(lambda: bool(gate.batches))
            waiting = [threads.submit(served.embed, ["of " * 37] * 3) for _ in range(3)]
            eventually(lambda: served.metric("queue_texts") == 9)
            refused = served.embed(["of " * 37])
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            with (
                openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
                pytest.raises(openai.RateLimitError),
            ):
                client.embeddings.create(model=MODEL, input=["of " * 37])
        assert {future.result().status_code for future in [first, *waiting]} == {200}
        assert served.metric("rejected_total") == 2
        assert served.embed(["of " * 37]).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(("computes_padding", "batches"), [(True, [[5], [54]]), (False, [[5, 54]])])
def test_texts_of_any_length_share_a_batch_where_padding_costs_nothing(bundle, monkeypatch, computes_padding, batches):
    monkeypatch.setattr(OnnxBackend, "computes_padding", computes_padding)
    with running(bundle, cores=1) as served, gated(served.service) as gate, ThreadPoolExecutor(2) as threads:
        first = threads.submit(served.embed, "in")
        eventually(lambda: gate.batches == [[5]])
        second = threads.submit(served.embed, ["in", "of " * 50])
        eventually(lambda: served.metric("queue_texts") == 2)
        gate.opened.set()
        assert {first.result().status_code, second.result().status_code} == {200}
        assert gate.batches[1:] == batches


@pytest.mark.slow
def test_a_huge_text_holds_up_nobody(bundle):
    huge = "in of to " * 230_000
    backend = OnnxBackend(bundle / "onnx", threads=1)
    started = time.monotonic()
    backend.tokenize([huge])
    whole = time.monotonic() - started
    with running(bundle) as served, ThreadPoolExecutor(4) as threads:
        served.embed("a")
        huges = [threads.submit(served.embed, [huge], truncate=cut) for cut in ("END", "START", "END")]
        slowest = 0.0
        while not all(future.done() for future in huges):
            started = time.monotonic()
            assert served.embed("python class").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        assert {future.result().status_code for future in huges} == {200}
    assert slowest < whole


@pytest.mark.slow
def test_nothing_long_runs_on_the_event_loop(bundle, monkeypatch):
    threads: dict[str, set[str]] = {}

    def watched(name, function):
        def call(*arguments, **options):
            threads.setdefault(name, set()).add(re.split("[_-]", threading.current_thread().name)[0])
            return function(*arguments, **options)

        return call

    for name in ("parse_request", "write_answer"):
        monkeypatch.setattr(application, name, watched(name, getattr(application, name)))
    with running(bundle) as served:
        reader = served.service.models[0]._sides["passage"].reader
        monkeypatch.setattr(reader, "read", watched("read", reader.read))
        batcher = served.service.models[0]._sides["passage"].batcher
        monkeypatch.setattr(batcher, "_infer", watched("infer", batcher._infer))
        assert served.embed(["value " * 50 + str(index) for index in range(2048)]).status_code == 200
        assert served.embed(["in of to " * 230_000], truncate="END").status_code == 200
    # The second answer is short, and the loop writes it itself.
    assert "texts" in threads.pop("write_answer")
    assert threads.pop("infer") == {"inference"}
    assert threads.pop("read") == threads.pop("parse_request") == {"texts"}


def test_names_are_found_with_and_without_a_suffix(bundle):
    service = Service(Settings(serving=Serving(cores=1, model_name="m-query")))
    with pytest.raises(RequestError) as loading:
        service.find("m-query")
    assert (loading.value.status, "Retry-After" in loading.value.headers) == (503, True)
    service.load(bundle)
    try:
        found = {name: service.find(name).kind for name in ("m-query", "m-query-query", "m-query-passage")}
        assert found == {"m-query": None, "m-query-query": "query", "m-query-passage": "passage"}
        for name in ("m", "", "m-passage", "m-query-query-query", "-query"):
            with pytest.raises(RequestError) as unknown:
                service.find(name)
            assert (unknown.value.status, unknown.value.code) == (404, "model_not_found")
    finally:
        service.close()


def test_a_model_that_reads_more_than_a_batch_holds_is_refused(bundle, tmp_path):
    wide = changed(bundle, tmp_path / "2", "onnx/embedding_config.json", max_tokens=256)
    service = Service(Settings(serving=Serving(cores=1, max_batch_tokens=128)))
    try:
        with pytest.raises(ServingError, match=r"reads 256 tokens, more than serving.max_batch_tokens = 128"):
            service.load(wide)
        assert not service.ready
    finally:
        service.close()


@pytest.mark.parametrize(("computes_padding", "most"), [(True, 8_192), (False, 32_768)])
def test_padding_bounds_what_a_model_may_read(bundle, tmp_path, monkeypatch, computes_padding, most):
    monkeypatch.setattr(OnnxBackend, "computes_padding", computes_padding)
    service = Service(Settings(serving=Serving(cores=1)))
    try:
        service.load(changed(bundle, tmp_path / "2", "onnx/embedding_config.json", max_tokens=most))
        longer = changed(bundle, tmp_path / "3", "onnx/embedding_config.json", max_tokens=most + 1)
        with pytest.raises(
            ServingError, match=rf"reads {most + 1} tokens, more than serving.max_batch_tokens = {most};"
        ):
            service.load(longer)
        assert service.version == "2"
    finally:
        service.close()


def test_a_changed_bundle_is_refused(bundle, tmp_path):
    import shutil

    copy = shutil.copytree(bundle, tmp_path / "1")
    (copy / "onnx" / "tokenizer.json").write_text("{}")
    service = Service(Settings(serving=Serving(cores=1)))
    try:
        with pytest.raises(BundleError, match=r"onnx/tokenizer\.json is not the file"):
            service.load(copy)
    finally:
        service.close()
