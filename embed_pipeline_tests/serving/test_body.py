"""Bodies: too large, packed, slow, of another type; each refused before it costs anything."""

from __future__ import annotations

import gzip
import json
import socket
import time
import tracemalloc
from functools import partial

import httpx
import pytest

from embed_pipeline.serving import application
from embed_pipeline.serving.request import read_body, unpack
from embed_pipeline.serving.serving_errors import RequestError
from embed_pipeline_tests.serving.endpoint import MODEL, drip, running

LIMIT = 20_000
HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def small(bundle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "read_body", partial(read_body, seconds=0.5))
        with running(bundle, max_body_bytes=LIMIT) as served:
            yield served


def post(small, content, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return small.client.post("/v1/embeddings", content=content, headers={"content-type": "application/json", **headers})


def request_of(size: int) -> bytes:
    frame = json.dumps({"input": "a", "model": MODEL, "user": ""}).encode()
    return frame.replace(b'"user": ""', b'"user": "' + b"u" * (size - len(frame)) + b'"')


def status(connection: socket.socket) -> int:
    return int(connection.recv(65536).split(b" ")[1])


def test_a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not(small):
    assert len(request_of(LIMIT)) == LIMIT
    assert post(small, request_of(LIMIT)).status_code == 200
    refused = post(small, request_of(LIMIT + 1))
    assert refused.status_code == 413
    assert refused.json()["detail"] == f"the body is larger than {LIMIT} bytes"


def test_an_announced_size_is_refused_before_a_byte_of_it_comes(small):
    with small.connect() as connection:
        connection.sendall(HEAD + b"content-length: 999999999\r\n\r\n")
        assert status(connection) == 413


def test_a_client_that_waits_for_100_continue_is_refused_without_it(small):
    with small.connect() as connection:
        connection.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 999999999\r\n\r\n")
        assert status(connection) == 413


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(small):
    with small.connect() as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        assert status(connection) == 413


def test_a_client_still_sending_gets_its_413_and_a_closed_connection(small):
    for content in (b"x" * 5_000_000, (b"x" * 65536 for _ in range(80))):
        answer = post(small, content)
        assert (answer.status_code, answer.headers["connection"]) == (413, "close")


def test_a_client_that_sends_everything_before_it_reads_is_not_reset(small):
    with small.connect() as connection:
        connection.sendall(HEAD + b"content-length: 5000000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"x" * 50_000)
        assert status(connection) == 413
        assert connection.recv(65536) == b""


def test_gzip_is_unpacked_and_a_bomb_is_refused(small):
    assert post(small, gzip.compress(request_of(2000)), content_encoding="gzip").status_code == 200
    bomb = gzip.compress(b"x" * 10_000_000)
    assert len(bomb) < LIMIT
    assert post(small, bomb, content_encoding="gzip").status_code == 413


def test_a_bomb_takes_no_memory_beyond_the_limit():
    bomb = gzip.compress(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="larger than 20000 bytes"):
            unpack(bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


PACKED = gzip.compress(request_of(500), mtime=0)
"""Without the time of day, so that the processes which share the tests call them alike."""


@pytest.mark.parametrize("content", [b"not gzip", PACKED[:-9], PACKED + b"more"])
def test_what_is_not_whole_gzip_is_refused(small, content):
    assert post(small, content, content_encoding="gzip").status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": ""},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "application/json; charset=latin-1"},
        {"content_encoding": "br"},
        {"content_encoding": "gzip, gzip"},
    ],
)
def test_other_types_and_packings_are_a_415(small, headers):
    assert post(small, request_of(200), **headers).status_code == 415


def test_json_may_say_its_charset(small):
    assert post(small, request_of(200), content_type='application/json; charset="UTF-8"').status_code == 200


@pytest.mark.slow
def test_a_slow_body_is_closed_and_others_are_served(small):
    with small.connect() as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        started = time.monotonic()
        assert small.embed("a").status_code == 200
        assert status(connection) == 408
        # It goes on dripping; nobody waits for it.
        with pytest.raises(ConnectionError):
            drip(connection, b" ")
    assert 0.4 < time.monotonic() - started < 8


def test_a_connection_is_used_again_after_an_error_whose_body_was_read(small):
    for _ in range(3):
        assert post(small, b"{").status_code == 400
        assert small.embed("a").status_code == 200
