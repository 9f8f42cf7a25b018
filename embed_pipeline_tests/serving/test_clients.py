"""The clients of retrieval stacks, unchanged, each where it is installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import openai
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline_tests.serving.endpoint import MODEL, running

JAVA = shutil.which("java") if shutil.which("javac") else None
NODE, NODE_PACKAGES = shutil.which("node"), os.environ.get("NODE_PACKAGES")
TEXTS = ["python class", "value of a function", "in"]
LONG = "in of to " * 60


@pytest.fixture(scope="module")
def vectors(bundle):
    encoder = Encoder(OnnxBackend(bundle / "onnx", threads=1))
    return {kind: encoder.encode([*TEXTS, LONG], kind) for kind in ("query", "passage")}


def test_langchain_openai(endpoint, vectors):
    module = pytest.importorskip("langchain_openai")
    for kind in ("query", "passage"):
        client = module.OpenAIEmbeddings(
            model=f"{MODEL}-{kind}", base_url=f"{endpoint.url}/v1", api_key="none", check_embedding_ctx_length=False
        )
        assert np.allclose(client.embed_documents(TEXTS), vectors[kind][:3], atol=1e-6)
        assert np.allclose(client.embed_query(TEXTS[0]), vectors[kind][0], atol=1e-6)


def test_langchain_nvidia(endpoint, vectors):
    module = pytest.importorskip("langchain_nvidia_ai_endpoints")
    with warnings.catch_warnings():
        # It does not know the model by name, and says so.
        warnings.simplefilter("ignore")
        client = module.NVIDIAEmbeddings(model=MODEL, base_url=f"{endpoint.url}/v1", truncate="END")
        assert MODEL in [model.id for model in client.available_models]
    assert np.allclose(client.embed_documents([*TEXTS, LONG]), vectors["passage"], atol=1e-6)
    assert np.allclose(client.embed_query(LONG), vectors["query"][3], atol=1e-6)


def test_langchain_nvidia_finds_the_model_and_brings_a_key(bundle, vectors):
    module = pytest.importorskip("langchain_nvidia_ai_endpoints")
    with running(bundle, api_key="clef") as guarded, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = module.NVIDIAEmbeddings(base_url=f"{guarded.url}/v1", api_key="clef")
        assert client.model == MODEL
        assert np.allclose(client.embed_query(TEXTS[0]), vectors["query"][0], atol=1e-6)


def test_llama_index(endpoint, vectors):
    module = pytest.importorskip("llama_index.embeddings.openai_like")
    client = module.OpenAILikeEmbedding(model_name=f"{MODEL}-passage", api_base=f"{endpoint.url}/v1", api_key="none")
    assert np.allclose(client.get_text_embedding_batch(TEXTS), vectors["passage"][:3], atol=1e-6)
    assert np.allclose(client.get_query_embedding(TEXTS[0]), vectors["passage"][0], atol=1e-6)


def test_openai_cuts_nothing_and_reads_both_encodings(endpoint, vectors):
    with openai.OpenAI(base_url=f"{endpoint.url}/v1/", api_key="none", max_retries=0) as client:
        for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            answer = client.embeddings.create(model=f"{MODEL}-passage", input=TEXTS, **encoding)
            found = [item.embedding for item in answer.data]
            if encoding.get("encoding_format") == "base64":
                found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
            assert np.allclose(found, vectors["passage"][:3], atol=1e-6)
        answer = client.embeddings.create(model=f"{MODEL}-passage", input=TEXTS, dimensions=16)
        assert [len(item.embedding) for item in answer.data] == [16, 16, 16]
        with pytest.raises(openai.BadRequestError, match="set truncate to cut it"):
            client.embeddings.create(model=MODEL, input=LONG)
        cut = client.embeddings.create(model=f"{MODEL}-passage", input=LONG, extra_body={"truncate": "END"})
        assert np.allclose(cut.data[0].embedding, vectors["passage"][3], atol=1e-6)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="absent", input="in")


@pytest.mark.slow
def test_openai_with_a_key(bundle):
    with running(bundle, api_key="clef") as guarded:
        for key, error in (("wrong", openai.AuthenticationError), ("clef", None)):
            client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
            with client, pytest.raises(error) if error else nullcontext():
                client.embeddings.create(model=MODEL, input="in")


@pytest.mark.slow
@pytest.mark.skipif(NODE is None or NODE_PACKAGES is None, reason="NODE_PACKAGES names no folder of npm packages")
def test_javascript_clients(bundle, vectors):
    with running(bundle, truncate="END") as served:
        program = [NODE, str(Path(__file__).with_name("clients.mjs")), f"{served.url}/v1", MODEL, NODE_PACKAGES]
        done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True)
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert found, "none of the packages is installed there"
    wanted = {
        "openai: default": vectors["query"][0],
        "openai: float": vectors["query"][0],
        "openai: list": [32, 32],
        "openai: models": [MODEL],
        "openai: slash": 32,
        "openai: 100 at once": 100,
        "ai: embed": vectors["query"][0],
        "ai: embedMany": 3000,
        "langchain: query": vectors["query"][0],
        "langchain: documents": 1500,
        "langchain: long": 1,
    }
    for name in found.keys() & wanted.keys():
        same = (
            found[name] == wanted[name]
            if name == "openai: models"
            else np.allclose(found[name], wanted[name], atol=1e-6)
        )
        assert same, (name, found[name])
    refused = {
        "openai: unknown model": 404,
        "openai: token ids": 400,
        "openai: half an emoji": 400,
        "langchain: empty": 400,
    }
    said = {"openai: half an emoji": "input[1] holds half a surrogate pair", "langchain: empty": "input[1] is empty"}
    for name in found.keys() & refused.keys():
        assert found[name]["error"] == refused[name], (name, found[name])
        assert said.get(name, "") in found[name]["message"]
    assert found.keys() <= wanted.keys() | refused.keys()


@pytest.mark.slow
@pytest.mark.skipif(JAVA is None, reason="there is no JDK")
def test_java(bundle, vectors):
    with running(bundle, api_key="clef") as guarded:
        program = [JAVA, str(Path(__file__).with_name("Client.java")), f"{guarded.url}/v1", MODEL, "clef"]
        done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=True)
    found = {what: (int(status), json.loads(body)) for what, status, body in map(split_line, done.stdout.splitlines())}
    assert {what: status for what, (status, _) in found.items()} == {
        **dict.fromkeys(("one", "again", "many", "base64", "HTTP/1.1"), 200), "wrong key": 401,
    }  # fmt: skip
    for what in ("one", "again", "HTTP/1.1"):
        assert np.allclose(found[what][1]["data"][0]["embedding"], vectors["query"][0], atol=1e-6)
    assert [len(item["embedding"]) for item in found["many"][1]["data"]] == [16, 16]
    coded = base64.b64decode(found["base64"][1]["data"][0]["embedding"])
    assert np.allclose(np.frombuffer(coded, "<f4"), vectors["query"][0], atol=1e-6)


def split_line(line):
    return line.split("\t")
