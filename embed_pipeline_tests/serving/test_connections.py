"""Connections that dawdle over their headers are closed, and no others."""

from __future__ import annotations

import json
import time

import pytest

from embed_pipeline.serving import connections as protocol
from embed_pipeline.serving.connections import MAX_HEADER_BYTES
from embed_pipeline_tests.serving.endpoint import drip, running

LIVE = b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def hasty(bundle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "MAX_HEADER_SECONDS", 0.4)
        with running(bundle) as served:
            yield served


def seconds_until_closed(connection) -> float:
    started = time.monotonic()
    assert connection.recv(1000) == b""
    return time.monotonic() - started


@pytest.mark.parametrize("start", [b"", b"GET", LIVE, b"POST /v1/embeddings HTTP/1.1\r\ncontent-le"])
def test_headers_that_do_not_come_close_the_connection(hasty, start):
    with hasty.connect() as connection:
        connection.sendall(start)
        assert hasty.client.get("/v1/health/live").status_code == 200
        assert 0.2 < seconds_until_closed(connection) < 5


def test_headers_that_drip_close_it_at_the_same_time(hasty):
    with hasty.connect() as connection:
        started = time.monotonic()
        connection.sendall(b"GET /v1/health/live HTTP/1.1\r\nx: ")
        with pytest.raises(ConnectionError):
            drip(connection, b"x")
        assert time.monotonic() - started < 3


@pytest.mark.slow
def test_the_second_request_of_a_connection_is_held_to_it_too(hasty):
    with hasty.connect() as connection:
        connection.sendall(LIVE + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        # Between requests a connection may rest.
        time.sleep(0.6)
        connection.sendall(LIVE + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(LIVE)
        assert 0.2 < seconds_until_closed(connection) < 5


def test_blank_lines_do_not_keep_a_connection(hasty):
    with hasty.connect() as connection:
        connection.sendall(LIVE + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.sendall(b"\r\n")
        assert seconds_until_closed(connection) < 5


def test_a_request_that_takes_longer_than_its_headers_may_is_answered(hasty):
    body = b'{"input":"a","model":"embed-pipeline"}'
    with hasty.connect() as connection:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        connection.sendall(head + str(len(body)).encode() + b"\r\n\r\n")
        time.sleep(0.7)
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_headers_without_end_are_refused(hasty):
    with hasty.connect() as connection:
        connection.sendall(LIVE + b"x-padding: " + b"x" * MAX_HEADER_BYTES)
        assert connection.recv(1000).startswith(b"HTTP/1.1 431")


def test_what_is_not_http_is_a_400(hasty):
    with hasty.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = connection.recv(1000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["message"] == "this is no valid HTTP/1.1 request"
