"""Who is let in: the key as bytes, and metrics on loopback."""

from __future__ import annotations

import openai
import pytest
from starlette.requests import Request

from embed_pipeline.serving.request import require_metrics_access
from embed_pipeline.serving.serving_errors import RequestError
from embed_pipeline_tests.serving.endpoint import MODEL, running

KEY = "clé-秘密"
BODY = b'{"input":"a","model":"embed-pipeline"}'


@pytest.fixture(scope="module")
def guarded(bundle):
    with running(bundle, api_key=KEY) as served:
        yield served


def embed(guarded, authorization: bytes | None) -> int:
    headers = {b"content-type": b"application/json"}
    if authorization is not None:
        headers[b"authorization"] = authorization
    return guarded.client.post("/v1/embeddings", content=BODY, headers=headers).status_code


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  "])
def test_the_right_key_is_let_in(guarded, scheme):
    assert embed(guarded, scheme + KEY.encode()) == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer wrong",
        "Bearer clé-秘密x".encode(),
        "Bearer clé-秘".encode(),
        KEY.encode(),
        b"Basic " + KEY.encode(),
        b"Bearer cl\xe9-\xff\xfe",
        b"Bearer \xff",
    ],
)
def test_any_other_is_a_401(guarded, authorization):
    assert embed(guarded, authorization) == 401


def test_the_openai_client_sees_an_authentication_error(guarded):
    with (
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.embeddings.create(model=MODEL, input="a")
    assert caught.value.code == "invalid_api_key"


def test_the_key_is_asked_before_the_body_is_read(guarded):
    with guarded.connect() as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_what_the_key_guards_and_what_is_open(guarded):
    statuses = {
        path: guarded.client.get(path).status_code
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/metadata", "/v1/health/live", "/v1/health/ready")
    }
    assert list(statuses.values()) == [401, 401, 401, 200, 200]
    assert guarded.client.get("/v1/models", headers={b"authorization": b"Bearer " + KEY.encode()}).status_code == 200
    # This machine may look without one.
    assert guarded.client.get("/metrics").status_code == 200


def asking(host: str | None, key: bytes | None = None) -> Request:
    headers = [] if key is None else [(b"authorization", b"Bearer " + key)]
    return Request({"type": "http", "headers": headers, "client": host and (host, 1)})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_metrics_are_open_on_loopback(host):
    require_metrics_access(asking(host), None, open_metrics=False)


@pytest.mark.parametrize("host", ["10.0.0.1", "::2", None, "unix", "2130706433"])
def test_metrics_elsewhere_need_the_key_or_the_setting(host):
    for key in (None, b"k"):
        with pytest.raises(RequestError) as caught:
            require_metrics_access(asking(host, b"other"), key, open_metrics=False)
        assert caught.value.status == 401
    require_metrics_access(asking(host, b"k"), b"k", open_metrics=False)
    require_metrics_access(asking(host), None, open_metrics=True)
