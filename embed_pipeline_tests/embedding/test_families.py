"""Every family in use, with tiny weights in its real layout: the vectors of plain sentence-transformers, everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import max_tokens_of, static_embedding
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.settings import Embedding, Release
from embed_pipeline_tests import families

CPU = Embedding(device="cpu")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain(folder: Path, kind: str, prefix: str) -> np.ndarray:
    """Vectors of sentence-transformers itself, with the prompt that the model is meant to get."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if model.tokenizer is not None and getattr(model.tokenizer, "pad_token", "") is None:
        # sentence-transformers stops without one.
        model.tokenizer.pad_token = model.tokenizer.eos_token
    if folder.name == "Mistral":
        model.tokenizer.add_bos_token = model.tokenizer.add_eos_token = True
    if static_embedding(model) is None:
        model.max_seq_length = max_tokens_of(model)
    encode = model.encode_query if kind == "query" else model.encode_document
    return unit(encode(list(families.sample_texts()), prompt=prefix))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_vectors_are_those_of_sentence_transformers_and_the_export_keeps_them(name, tmp_path):
    folder = families.FAMILIES[name](tmp_path / name)
    encoder = Encoder.load(folder, CPU)
    export_onnx(folder, tmp_path / "onnx", Release(), CPU)
    exported = Encoder(OnnxBackend(tmp_path / "onnx", threads=1))
    texts = list(families.sample_texts())
    prefixes = {"query": encoder.backend.of_kind("query").query_prefix, "passage": encoder.backend.passage_prefix}
    for kind, prefix in prefixes.items():
        vectors = encoder.encode(texts, kind)
        np.testing.assert_allclose(vectors, plain(folder, kind, prefix), atol=2e-5)
        np.testing.assert_allclose(exported.encode(texts, kind), vectors, atol=2e-5)
