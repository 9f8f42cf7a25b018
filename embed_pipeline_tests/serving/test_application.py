"""The contract on a real socket, most of it through the real openai client."""

from __future__ import annotations

import base64
import json
import logging
import math

import numpy as np
import openai
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline_tests.serving.endpoint import MODEL, gated, running

TEXTS = ["python class", "value of a function", "in"]


@pytest.fixture
def client(endpoint):
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def expected(bundle):
    encoder = Encoder(OnnxBackend(bundle / "onnx", threads=1))
    return {kind: encoder.encode(TEXTS, kind) for kind in ("query", "passage")}


def test_the_openai_client_gets_the_models_vectors_in_order(client, expected):
    answer = client.embeddings.create(model=MODEL, input=TEXTS)
    assert np.allclose([item.embedding for item in answer.data], expected["query"], atol=1e-6)
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert (answer.object, answer.model, answer.data[0].object) == ("list", MODEL, "embedding")
    # [CLS] what is ... [SEP], and two words, four and one.
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4 + 2 + 4 + 4 + 4 + 1, 19)


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_the_name_or_the_field_says_whose_prefix(client, expected, kind):
    named = client.embeddings.create(model=f"{MODEL}-{kind}", input=TEXTS)
    asked = client.embeddings.create(model=MODEL, input=TEXTS, extra_body={"input_type": kind})
    for answer in (named, asked):
        assert np.allclose([item.embedding for item in answer.data], expected[kind], atol=1e-6)
    assert named.model == f"{MODEL}-{kind}"


def test_base64_is_little_endian_float32_and_numbers_are_the_same(endpoint):
    coded = endpoint.embed(TEXTS, encoding_format="base64").json()["data"]
    numbers = endpoint.embed(TEXTS, encoding_format="float").json()["data"]
    for left, right in zip(coded, numbers, strict=True):
        vector = np.frombuffer(base64.b64decode(left["embedding"]), dtype="<f4")
        assert np.array_equal(vector, np.array(right["embedding"], dtype=np.float32))
        assert math.isclose(float(np.linalg.norm(vector)), 1, rel_tol=1e-5)


def test_a_string_and_a_list_of_one_are_the_same(endpoint):
    assert np.array_equal(endpoint.vectors(TEXTS[0]), endpoint.vectors([TEXTS[0]]))


def test_dimensions_are_cut_and_at_length_one_again(client, expected):
    answer = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=16)
    short = expected["query"][:, :16]
    assert np.allclose(
        [item.embedding for item in answer.data], short / np.linalg.norm(short, axis=1, keepdims=True), atol=1e-6
    )
    for asked in (8, 0, 33):
        with pytest.raises(openai.BadRequestError, match="this model offers 16, 32"):
            client.embeddings.create(model=MODEL, input=TEXTS, dimensions=asked)


def test_length_is_an_error_or_a_cut(endpoint):
    long = "in of to " * 30 + "class"
    refused = endpoint.embed(["a", long])
    assert refused.status_code == 400
    assert "input[1] has 95 tokens, and the model reads at most 64" in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    before = endpoint.metric("truncated_total")
    ends, starts = endpoint.vectors(long, truncate="END"), endpoint.vectors(long, truncate="START")
    assert np.allclose(ends, endpoint.vectors("in of to " * 20), atol=1e-6)
    assert not np.allclose(starts, ends, atol=1e-3)
    assert endpoint.metric("truncated_total") == before + 2


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"model": "other", "input": "a"}, openai.NotFoundError),
        ({"model": f"{MODEL}-document", "input": "a"}, openai.NotFoundError),
        ({"model": MODEL, "input": ""}, openai.BadRequestError),
        ({"model": MODEL, "input": [[1, 2, 3]]}, openai.BadRequestError),
        ({"model": MODEL, "input": "a", "extra_body": {"truncate": "MIDDLE"}}, openai.BadRequestError),
        ({"model": f"{MODEL}-query", "input": "a", "extra_body": {"input_type": "passage"}}, openai.BadRequestError),
    ],
)
def test_errors_are_those_of_openai(client, call, error):
    with pytest.raises(error) as caught:
        client.embeddings.create(**call)
    assert caught.value.body.keys() == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    if error is openai.NotFoundError:
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_every_error_says_detail_too_and_every_answer_has_an_id(endpoint):
    answers = [
        endpoint.embed(""),
        endpoint.embed("a"),
        endpoint.client.get("/nowhere"),
        endpoint.client.get("/v1/embeddings"),
        endpoint.client.get("/v1/embeddings/"),
        endpoint.client.get("/v1/models"),
    ]
    assert [answer.status_code for answer in answers] == [400, 200, 404, 405, 404, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    for answer in answers:
        if answer.status_code >= 400:
            assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert answers[3].headers["allow"] == "POST"


def test_the_alias_answers_alike(endpoint):
    fields = {"input": TEXTS, "model": MODEL}
    one, other = (endpoint.client.post(path, json=fields).json() for path in ("/embeddings", "/v1/embeddings"))
    assert one == other


def test_unknown_fields_are_counted_and_no_user_is_logged(endpoint, caplog):
    before = endpoint.metric("unknown_fields_total")
    with caplog.at_level(logging.DEBUG):
        assert endpoint.embed("confidential", user="someone", foo=1, bar={"a": 2}).status_code == 200
    assert endpoint.metric("unknown_fields_total") == before + 2
    assert "someone" not in caplog.text
    assert "confidential" not in caplog.text


def test_a_strict_endpoint_wants_the_input_type(bundle):
    with running(bundle, strict_input_type=True) as strict:
        assert strict.embed("a").json()["error"]["param"] == "input_type"
        assert strict.embed("a", input_type="query").status_code == 200
        assert strict.client.post("/v1/embeddings", json={"input": "a", "model": f"{MODEL}-query"}).status_code == 200


def test_a_request_has_a_limit_of_tokens(bundle):
    with running(bundle, max_request_tokens=200) as small:
        assert small.embed(["in " * 40] * 4).status_code == 200
        refused = small.embed(["in " * 40] * 5)
    assert refused.status_code == 400
    assert "have 220 tokens, a request may have 200" in refused.json()["detail"]


def test_models_and_metadata_say_what_is_served(client, endpoint):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == client.models.retrieve(f"{MODEL}-query").id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    (release,) = endpoint.client.get("/v1/metadata").json()["data"]
    assert (release["id"], release["version"], release["parity"], release["mlflow"]) == (
        MODEL,
        "1",
        {"min_cosine": 1.0},
        {"run": "r1"},
    )
    assert release["model"]["dimensions"] == 32


@pytest.mark.slow
def test_a_model_may_have_a_slash_in_its_name(bundle):
    with running(bundle, model_name="org/model") as served:
        assert served.client.get("/v1/models/org/model-passage").json()["id"] == "org/model"


def test_health_answers(endpoint):
    assert endpoint.client.get("/v1/health/live").status_code == 200
    assert endpoint.client.get("/v1/health/ready").json()["message"] == "ready"


def test_metrics_cover_what_the_contract_names(endpoint):
    endpoint.embed(TEXTS)
    text = endpoint.client.get("/v1/metrics").text
    for name in (
        'embed_requests_total{path="/v1/embeddings",status="200"}',
        "embed_queue_seconds_count",
        "embed_tokenize_seconds_count",
        "embed_inference_seconds_count",
        "embed_batch_rows_count",
        "embed_batch_tokens_count",
        "embed_queue_tokens 0.0",
        "embed_queue_texts 0.0",
        "embed_rejected_total",
        "embed_truncated_total",
    ):
        assert name in text


def test_many_texts_in_one_request(endpoint):
    texts = [f"value {index} " + "of " * (index % 40) for index in range(2048)]
    vectors = endpoint.vectors(texts)
    assert vectors.shape == (2048, 32)
    for index in (0, 39, 1000, 2047):
        assert np.allclose(vectors[index], endpoint.vectors(texts[index])[0], atol=1e-5)


def test_a_failure_inside_is_a_500_without_a_trace(endpoint, caplog):
    def broken(_ids, *, alone):
        raise RuntimeError("secret detail")

    with gated(endpoint.service) as gate:
        gate.infer, kept = broken, gate.infer
        gate.opened.set()
        answer = endpoint.embed("a")
        gate.infer = kept
    assert answer.status_code == 500
    assert (answer.json()["error"]["type"], answer.json()["error"]["code"]) == ("server_error", "internal_error")
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["detail"]
    assert "secret detail" in caplog.text
    assert endpoint.embed("a").status_code == 200


def test_a_vector_that_is_not_finite_never_leaves(endpoint):
    with gated(endpoint.service) as gate:
        kept = gate.infer
        gate.infer = lambda ids, *, alone: np.full((len(ids), 32), np.nan, dtype=np.float32)
        gate.opened.set()
        answer = endpoint.embed("a")
        gate.infer = kept
    assert answer.status_code == 500
    assert json.loads(answer.text)["error"]["code"] == "internal_error"
