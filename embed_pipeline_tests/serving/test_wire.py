"""What clients send, byte for byte, and what they get: odd HTTP, odd types, odd bodies."""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Sequence

import pytest

from embed_pipeline_tests.serving.endpoint import DEADLINE, MODEL, Running

OK = json.dumps({"model": MODEL, "input": "in"}).encode()
H2C = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
WEBSOCKET = (b"connection: Upgrade", b"upgrade: websocket", b"sec-websocket-key: x", b"sec-websocket-version: 13")
CHUNKED = b"transfer-encoding: chunked"
GZIP = b"content-encoding: gzip"
JAVA = shutil.which("java")


def answers(endpoint: Running, pieces: Sequence[bytes | float], wanted: int = 1) -> list[int]:
    """The statuses of the first answers to what is sent; a number among the pieces is a wait. 0: it was closed."""
    with endpoint.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            if isinstance(piece, float):
                time.sleep(piece)
            else:
                connection.sendall(piece)
        stream = connection.makefile("rb")
        bodiless = pieces[0].startswith(b"HEAD ")
        return [one_answer(stream, bodiless=bodiless) for _ in range(wanted)]


def one_answer(stream, *, bodiless: bool) -> int:
    """The status of the next answer that is not 100, read to its end."""
    while True:
        line = stream.readline()
        if not line:
            return 0
        status, length = int(line.split(b" ")[1]), 0
        for header in iter(stream.readline, b"\r\n"):
            name, _, value = header.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        stream.read(0 if bodiless else length)
        if status != 100:
            return status


def post(
    body: bytes = OK,
    *headers: bytes,
    path: bytes = b"/v1/embeddings",
    version: bytes = b"1.1",
    kind: bytes | None = b"application/json",
    sized: bool = True,
    host: bytes | None = b"x",
) -> bytes:
    lines = [b"POST %b HTTP/%b" % (path, version)]
    lines += [] if host is None else [b"host: " + host]
    lines += [] if kind is None else [b"content-type: " + kind]
    lines += [b"content-length: %d" % len(body)] if sized else []
    return b"\r\n".join([*lines, *headers, b"", b""]) + body


def get(path: bytes, *headers: bytes, method: bytes = b"GET", host: bytes = b"x") -> bytes:
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"host: " + host, *headers, b"", b""])


def chunks(body: bytes, size: int = 7) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def asked(**fields) -> bytes:
    return json.dumps({"model": MODEL, "input": "in", **fields}).encode()


def numbered(value: object) -> str:
    """The same name for every case, which pytest then numbers: some are 60,000 bytes long."""
    return "case"


HEAD, BODY = post(OK, *H2C)[: -len(OK)], OK


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ([HEAD + BODY], [200]),
        ([HEAD, 0.05, BODY], [200]),
        ([HEAD[:40], 0.02, HEAD[40:-3], 0.02, HEAD[-3:] + BODY[:5], 0.02, BODY[5:]], [200]),
        ([HEAD + BODY, post()], [200, 200]),
        ([HEAD + BODY, HEAD + BODY, HEAD, 0.02, BODY], [200, 200, 200]),
        ([post() + HEAD + BODY + post()], [200, 200, 200]),
        ([post(b"", *H2C, CHUNKED, sized=False), 0.05, chunks(OK)], [200]),
        ([post(b"", *H2C, CHUNKED, sized=False) + chunks(OK) + post()], [200, 200]),
        ([get(b"/v1/models", *H2C)], [200]),
        ([get(b"/v1/models", *H2C) + post()], [200, 200]),
        ([post(OK, *WEBSOCKET)], [200]),
        ([post(OK, b"connection: keep-alive, Upgrade", b"upgrade: TLS/1.2, h2c")], [200]),
        ([post(OK, *H2C, b"expect: 100-continue")[: -len(OK)], 0.05, OK], [200]),
        ([post(OK, *H2C, b"connection: close"), post()], [200, 0]),
        ([get(b"/v1/health/live", *WEBSOCKET)], [200]),
        ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"], [400]),
    ],
    ids=numbered,
)
def test_another_protocol_is_declined_and_the_request_is_answered(endpoint, pieces, wanted):
    assert answers(endpoint, pieces, len(wanted)) == wanted


@pytest.mark.slow
@pytest.mark.skipif(JAVA is None, reason="there is no Java")
def test_javas_client_with_its_defaults(endpoint, tmp_path):
    program = tmp_path / "Ask.java"
    program.write_text(
        "import java.net.URI; import java.net.http.*;\n"
        "public class Ask { public static void main(String[] a) throws Exception {\n"
        "  HttpClient c = HttpClient.newHttpClient();\n"
        "  for (int i = 0; i < 3; i++) {\n"
        '    HttpRequest r = HttpRequest.newBuilder(URI.create(a[0])).header("content-type", "application/json")\n'
        "      .POST(HttpRequest.BodyPublishers.ofString(a[1])).build();\n"
        "    System.out.println(c.send(r, HttpResponse.BodyHandlers.ofString()).statusCode());\n"
        "  } } }\n"
    )
    command = [JAVA, str(program), f"{endpoint.url}/v1/embeddings", OK.decode()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if "com.sun.tools.javac" in done.stderr:
        pytest.skip("this Java has no compiler")
    assert done.stdout.split() == ["200"] * 3, done.stderr


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (post(version=b"1.0", host=None), {200}),
        (post(OK, b"connection: keep-alive", version=b"1.0"), {200}),
        (post(host=None), {200, 400}),
        (post(host=b"[", path=b"/nope"), {404}),
        (get(b"/v1/embeddings", host=b"[::1"), {405}),
        (post(host=b"a b/c?d@e:99999999", path=b"/nope"), {404}),
        (post(host=b"\xff\xfe", path=b"/nope"), {404}),
        (post(host=b"", path=b"/nope"), {404}),
        (post(path=b"http://x:8000/v1/embeddings"), {200}),
        (post(path=b"/v1/embeddings/"), {200, 404}),
        (post(path=b"/v1/v1/embeddings"), {404}),
        (post(path=b"/embeddings"), {200}),
        (post(path=b"//v1/embeddings"), {200, 404}),
        (post(path=b"/openai/deployments/embed-pipeline/embeddings?api-version=2024-02-01"), {404}),
        (post(path=b"/v1/embeddings?api-version=1"), {200}),
        (post(path=b"/v1/%65mbeddings"), {200}),
        (post(path=b"/v1/\xc3\xa9"), {400, 404}),
        (get(b"*", method=b"OPTIONS"), {200, 404, 405}),
        (get(b"/v1/health/ready", method=b"HEAD"), {200}),
        (get(b"/v1/models", method=b"HEAD"), {200}),
        (get(b"/", method=b"HEAD"), {200}),
        (get(b"/v1"), {404}),
        (get(b"a:80", method=b"CONNECT"), {400, 405}),
        (get(b"/", method=b"TRACE"), {400, 405}),
        (post(OK, b"content-type: application/json"), {200}),
        (post(OK, b"accept: */*"), {200}),
        (post(OK, b"accept: application/xml"), {200, 406}),
        (post(OK, b"accept: text/event-stream"), {200}),
        (post(OK, b"expect: 200-ok"), {200, 417}),
        (post(b"", CHUNKED, sized=False) + chunks(OK), {200}),
        (post(b"", CHUNKED, b"trailer: x", sized=False) + b"%x;a=b\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(OK), OK), {200}),
        (post(OK, CHUNKED), {400}),
        (post(OK, b"content-length: 5"), {400}),
        (post(OK, b"content-length: -1", sized=False), {400}),
        (post(OK, b"content-length: +%d" % len(OK), sized=False), {400}),
        (post(OK, b"content-length: %d" % (len(OK) - 3), sized=False), {400}),
        (post(b"", sized=False), {400}),
        (post(b"", b"transfer-encoding: gzip, chunked", sized=False) + chunks(OK), {200, 400, 415, 501}),
        (post(gzip.compress(OK, mtime=0), GZIP), {200}),
        (post(gzip.compress(OK, mtime=0), b"content-encoding: x-gzip"), {200, 415}),
        (post(gzip.compress(OK[:9], mtime=0) + gzip.compress(OK[9:], mtime=0), GZIP), {200, 400}),
        (post(b"", GZIP, CHUNKED, sized=False) + chunks(gzip.compress(OK, mtime=0)), {200}),
        (post(zlib.compress(OK), b"content-encoding: deflate"), {415}),
        (post(OK, b"content-encoding: br"), {415}),
        (post(OK, b"content-encoding: "), {200, 415}),
        (b"\r\n\r\n" + post(), {200}),
        (post().replace(b"\r\n", b"\n"), {200, 400}),
        (post(OK, b"x-a: b\r\n c"), {200, 400}),
        (post(OK, b"x-a: b\0c"), {400}),
        (post(OK, b"x-a: " + b"a" * 60_000), {200, 431}),
        (post(OK, b"x-a: " + b"a" * 100_000), {431}),
        (post(OK, *H2C, b"x-a: " + b"a" * 100_000), {431}),
        (post(OK, *(b"x-%d: y" % number for number in range(1000))), {200, 431}),
        (get(b"/" + b"a" * 30_000), {404, 414}),
        (get(b"/v1/models/openai/embed-pipeline"), {404}),
        (get(b"/v1/models/embed-pipeline-query"), {200}),
        (get(b"/v1/models/"), {200, 404}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {0, 400}),
        (get(b"/metrics", b"accept: application/openmetrics-text", b"accept-encoding: gzip"), {200}),
        (get(b"/metrics", b"x-forwarded-for: 8.8.8.8"), {200, 401}),
        (post(OK, b"authorization: Basic eDp5"), {200}),
        (post(OK, b"api-key: x"), {200}),
        (get(b"/../../etc/passwd"), {400, 404}),
        (get(b"/search"), {400}),
        (get(b"/search?q=%ff%fe"), {404}),
    ],
    ids=numbered,
)
def test_http_as_clients_and_proxies_write_it(endpoint, sent, wanted):
    assert set(answers(endpoint, [sent])) <= wanted
    assert endpoint.embed("in").status_code == 200


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (b"application/json; charset=utf-8", 200),
        (b'application/json; charset="UTF-8"', 200),
        (b"Application/JSON;charset=UTF-8", 200),
        (b"application/json;", 200),
        (b"application/json; charset=utf-8;", 200),
        (b"application/json ; ; charset=utf-8 ;;", 200),
        (b"application/json; charset=utf-8; profile=x", 200),
        (b'application/json; profile="a;charset=utf-16"; charset=utf-8', 200),
        (b"application/json; profile=x; charset=utf-16", 415),
        (b"application/json;odata.metadata=minimal;charset=utf-8", 200),
        (b"application/json; charset=us-ascii", 200),
        (b"application/json; charset=iso-8859-1", 415),
        (b"application/json; charset = utf-8", 200),
        (b"application/json; CHARSET=UTF8", 200),
        (b"application/json; charset=utf_8", 200),
        (b"application/json; charset=", 415),
        (b"application/json; charset=nonsense", 415),
        (b"application/json; charset*=utf-8''utf-16", 415),
        (b"text/json", 415),
        (b"text/plain", 415),
        (b"application/x-www-form-urlencoded", 415),
        (b"application/vnd.api+json", 415),
        (b"", 415),
        (b";;;", 415),
        (b"application/json\xff", 415),
        (None, 415),
    ],
    ids=numbered,
)
def test_content_types_with_any_parameters(endpoint, kind, wanted):
    assert answers(endpoint, [post(kind=kind)]) == [wanted]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", 400),
        (b"null", 400),
        (b"[]", 400),
        (b"\xef\xbb\xbf" + OK, 200),
        (b"\xef\xbb\xbf\xef\xbb\xbf" + OK, 400),
        (OK.decode().encode("utf-16"), 400),
        (OK + b"\0", 400),
        (OK + b"\r\n", 200),
        (OK + OK, 400),
        (b"{'model':'embed-pipeline'}", 400),
        (b'{"model":"embed-pipeline","input":"in","input":"of"}', 200),
        (asked(input=[]), 400),
        (asked(input=5), 400),
        (asked(input=""), 400),
        (asked(input=" "), 200),
        (asked(input="\n\n\n"), 200),
        (asked(input="\u200b\ufeff"), 200),
        (asked(input="a\0b"), 200),
        (asked(input="\x01\x02\x7f"), 200),
        (b'{"model":"embed-pipeline","input":"\\ud83d\\ude00"}', 200),
        (b'{"model":"\\ud800","input":"in"}', 400),
        (b'{"model":"embed-pipeline","input":"in","\\ud800":1}', 400),
        (asked(input=[1, 2, 3]), 400),
        (asked(input=[[1, 2, 3]]), 400),
        (asked(input=[[]]), 400),
        (asked(input=["a", [1]]), 400),
        (asked(input=[1.5]), 400),
        (asked(input=[True]), 400),
        (asked(input={"text": "a"}), 400),
        (b'{"model":"embed-pipeline","messages":[{"role":"user","content":"x"}]}', 400),
        (b'{"inputs":"x"}', 400),
        (asked(input="word " * 500), 400),
        (asked(input="word " * 500, truncate="END"), 200),
        (asked(input="word " * 500, truncate="START"), 200),
        (asked(truncate=True), 400),
        (asked(truncate_prompt_tokens=-1), 200),
        (asked(dimensions=None, encoding_format=None, user=None), 200),
        (asked(dimensions=32), 200),
        (asked(dimensions=32.0), 400),
        (asked(dimensions=0), 400),
        (asked(dimensions=1536), 400),
        (b'{"model":"embed-pipeline","input":"a","dimensions":' + b"9" * 5000 + b"}", 400),
        (b'{"model":"embed-pipeline","input":"a","dimensions":1e400}', 400),
        (asked(encoding_format="base64"), 200),
        (asked(encoding_format="float32"), 400),
        (asked(user={}), 400),
        (asked(foo=1, stream=False, n=1, timeout=None, metadata={"a": [1]}), 200),
        (asked(input_type="passage"), 200),
        (b'{"input":"a"}', 400),
        (asked(model="text-embedding-ada-002"), 404),
        (asked(model=1), 400),
        (asked(model="embed-pipeline-query", input_type="passage"), 400),
        (b'{"model":"embed-pipeline","input":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (asked(input=["a"] * 2049), 400),
        (asked(input="a" * (9 << 20)), 413),
    ],
    ids=numbered,
)
def test_bodies_as_clients_write_them(endpoint, body, wanted):
    assert answers(endpoint, [post(body)]) == [wanted]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"model":"embed-pipeline","input":["in","cut \\ud83d"]}',
            r"input[1] holds half a surrogate pair (\ud83d) at character 4; cut texts between characters",
        ),
        (
            b'{"model":"embed-pipeline","input":"\\udc80"}',
            r"input holds half a surrogate pair (\udc80) at character 0; cut texts between characters",
        ),
        (
            '{"model":"embed-pipeline","input":["in","of","caf\xe9"]}'.encode("latin-1"),
            "input[2] holds byte 0xe9, which is not UTF-8, at character 3; cut texts between characters",
        ),
        (
            b'{"model":"embed-pipeline","input":["\xed\xa0\x80"]}',
            "input[0] holds byte 0xed, which is not UTF-8, at character 0; cut texts between characters",
        ),
        (asked(input=["a", ""]), "input[1] is empty"),
        (asked(input=["a", None]), "input[1] must be a string, got null"),
        (OK.decode().encode("utf-16"), "the body is UTF-16; JSON is UTF-8"),
    ],
)
def test_a_batch_says_which_of_its_inputs_is_wrong(endpoint, body, said):
    answer = endpoint.client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"] == said


def test_the_endpoint_cuts_long_texts_for_clients_that_cannot_ask_for_it(endpoint, bundle):
    from embed_pipeline_tests.serving.endpoint import running

    long = "in of to " * 60
    assert endpoint.embed(long).json()["error"]["code"] == "context_length_exceeded"
    with running(bundle, truncate="END") as cutting:
        assert (cutting.vectors(long) == endpoint.vectors(long, truncate="END")).all()
        assert (cutting.vectors(long, truncate="START") == endpoint.vectors(long, truncate="START")).all()
        assert cutting.embed(long, truncate="NONE").status_code == 400
        schema = cutting.client.get("/openapi.json").json()["components"]["schemas"]["EmbeddingRequest"]
        assert schema["properties"]["truncate"]["default"] == "END"
