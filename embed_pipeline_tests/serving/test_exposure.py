"""Whom the endpoint shows itself to: names, web pages, addresses without a key, more connections than it may hold."""

from __future__ import annotations

import logging
import os
import resource
import socket
import subprocess
import sys

import httpx
import pytest

from embed_pipeline.serving.connections import bind, free_port
from embed_pipeline.serving.server import EmbeddingServer
from embed_pipeline.serving.service import Service
from embed_pipeline.settings import SERVING_KEY_VARIABLE, Serving, Settings, SettingsError, serving_api_key
from embed_pipeline_tests.serving.endpoint import DEADLINE, MODEL, eventually, running

ORIGIN = "https://notes.example"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1:1",
        "[::1]:8000",
        "10.1.2.3",
        "embeddings",
        "a.localhost",
        "localhost.",
        "",
    ],
)
@pytest.mark.parametrize("path", ["/", "/v1/models"])
def test_names_of_this_machine_are_answered(endpoint, host, path):
    assert endpoint.client.get(path, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "EVIL.example.", "1.2.3"]
)
@pytest.mark.parametrize("path", ["/", "/search?q=in", "/v1/models", "/metrics", "/nope", "/openapi.json"])
def test_a_web_page_that_calls_this_machine_by_its_own_name_is_refused(endpoint, host, path):
    answer = endpoint.client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "serving.allowed_hosts" in answer.json()["detail"]
    assert answer.headers["x-request-id"]


def test_a_proxys_name_is_allowed_by_setting(bundle):
    with running(bundle, allowed_hosts=("Embeddings.Example",)) as served:
        assert served.client.get("/v1/models", headers={"host": "embeddings.example:443"}).status_code == 200
        assert served.client.get("/v1/models", headers={"host": "evil.example"}).status_code == 421


def test_an_address_of_the_network_answers_to_any_name(bundle):
    with running(bundle, host="0.0.0.0") as served:
        assert served.client.get("/v1/models", headers={"host": "embeddings.example"}).status_code == 200


@pytest.mark.slow
def test_no_web_page_may_use_it_unless_its_origin_is_named(endpoint, bundle):
    assert endpoint.client.options("/v1/embeddings", headers=PREFLIGHT).status_code == 405
    assert "access-control-allow-origin" not in endpoint.client.get("/v1/models", headers={"origin": ORIGIN}).headers
    with running(bundle, allowed_origins=(ORIGIN, "app://obsidian.md")) as served:
        for origin in (ORIGIN, "app://obsidian.md"):
            answer = served.client.options("/v1/embeddings", headers={**PREFLIGHT, "origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
            body = {"model": MODEL, "input": "in"}
            answer = served.client.post("/v1/embeddings", json=body, headers={"origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
            # A page may read why it was refused, too.
            answer = served.client.post("/v1/embeddings", json={}, headers={"origin": origin})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (400, origin)
        other = served.client.options("/v1/embeddings", headers={**PREFLIGHT, "origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers
    with running(bundle, allowed_origins=("*",)) as served:
        answer = served.client.options("/v1/embeddings", headers=PREFLIGHT)
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("0.0.0.0", "clef", False),
        ("127.0.0.1", None, False),
        ("::1", None, False),
    ],
)
def test_an_open_address_without_a_key_is_warned_of(bundle, caplog, host, key, warned):
    settings = Settings(serving=Serving(host=host, port="auto"))
    service = Service(settings, key)
    with bind(settings.serving) as listener, caplog.at_level(logging.WARNING, logger="embed_pipeline"):
        EmbeddingServer(bundle, service, listener)
    service.close()
    said = [record.getMessage() for record in caplog.records]
    assert [SERVING_KEY_VARIABLE in line and "search page shows the corpus" in line for line in said] == [True] * warned


@pytest.mark.parametrize("given", ["secret", "secret\n", "secret\r\n", " \tsecret "])
def test_blanks_around_a_key_do_not_lock_anybody_out(monkeypatch, given):
    monkeypatch.setenv(SERVING_KEY_VARIABLE, given)
    assert serving_api_key() == "secret"


@pytest.mark.parametrize("given", ["", " ", "\n", "\t\r\n"])
def test_a_blank_key_is_refused(monkeypatch, given):
    monkeypatch.setenv(SERVING_KEY_VARIABLE, given)
    with pytest.raises(SettingsError, match=f"{SERVING_KEY_VARIABLE} is set and blank"):
        serving_api_key()


@pytest.mark.slow
def test_all_addresses_are_those_of_ipv4_too(bundle):
    with running(bundle, host="::") as served:
        port = served.url.rsplit(":", 1)[1]
        for host in ("[::1]", "127.0.0.1"):
            assert httpx.get(f"http://{host}:{port}/v1/health/ready").status_code == 200
            # Metrics are open to this machine, whichever way its address is written.
            assert httpx.get(f"http://{host}:{port}/metrics").status_code == 200


@pytest.mark.slow
def test_more_connections_than_it_may_hold_are_logged_once_and_it_recovers(bundle, tmp_path):
    port, log = free_port("127.0.0.1"), tmp_path / "log"
    command = [sys.executable, "-m", "embed_pipeline.serving", str(bundle), "--port", str(port)]
    variables = {**os.environ, "EMBED_PIPELINE_SERVING__CORES": "1"}
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command,
            env=variables,
            stderr=file,
            cwd=bundle.parent,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96)),  # noqa: PLW1509 - no threads
        ) as served,
    ):
        try:
            url = f"http://127.0.0.1:{port}"

            def ready() -> bool:
                try:
                    return httpx.get(f"{url}/v1/health/ready", timeout=DEADLINE).status_code == 200
                except httpx.TransportError:
                    return False

            eventually(ready)
            idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(120)]
            eventually(lambda: "new connections are refused" in log.read_text())
            for connection in idle:
                connection.close()
            eventually(ready)
            assert log.read_text().count("may hold 96 files and connections") == 1
            assert "Traceback" not in log.read_text()
        finally:
            served.terminate()
