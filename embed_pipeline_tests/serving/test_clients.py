"""The clients of retrieval stacks, unchanged, each where it is installed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline_tests.serving.endpoint import MODEL, running

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
