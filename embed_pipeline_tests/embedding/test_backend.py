"""What every backend does alike: reading, refusing, and vectors that do not depend on their batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding.backend import EncoderConfig
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.models import load_model


@pytest.mark.slow
def test_an_export_reads_texts_as_its_model_does(tiny_model, tiny_export, exporting):
    of, read = EncoderConfig.of(load_model(tiny_model, exporting)), EncoderConfig.read(tiny_export)
    assert of.as_dict() == read.as_dict()
    assert (read.dimensions, read.max_tokens, read.query_prefix, read.passage_prefix) == (32, 64, "what is ", "the ")
    text = "how does python work, naïve and 東京"
    assert of.tokenizer.encode(text).ids == read.tokenizer.encode(text).ids


def test_the_digest_tells_readings_apart(tiny_export, tmp_path):
    config = EncoderConfig.read(tiny_export)
    assert config.digest == EncoderConfig.read(tiny_export).digest
    other = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    path = other / "embedding_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_tokens": 63}))
    assert EncoderConfig.read(other).digest != config.digest


@pytest.mark.parametrize(("side", "kept"), [("right", "first"), ("left", "last")])
def test_a_text_is_cut_where_its_tokenizer_cuts(tiny_model, exporting, side, kept):
    model = load_model(tiny_model, exporting)
    model.tokenizer.truncation_side = side
    config = EncoderConfig.of(model)
    text = " ".join(["class", *["in"] * 80, "value"])
    ids, whole = config.cutting.encode(text).ids, config.tokenizer.encode(text).ids
    assert len(ids) == 64
    assert (ids[1] == whole[1], ids[-2] == whole[-2]) == (kept == "first", kept == "last")
    assert ids == model.tokenizer(text, truncation=True, max_length=64)["input_ids"]


@pytest.mark.slow
def test_a_model_without_a_fast_tokenizer_is_refused(tiny_model, exporting):
    from transformers import CanineTokenizer

    model = load_model(tiny_model, exporting)
    model[0].processor = CanineTokenizer()
    with pytest.raises(ModelError, match=r"the tokenizer CanineTokenizer has no tokenizer\.json form"):
        EncoderConfig.of(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "embedding_config.json"])
def test_a_missing_file_is_named(tiny_export, tmp_path, name):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        EncoderConfig.read(folder)


def test_a_configuration_that_lacks_a_field_is_refused(tiny_export, tmp_path):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    path = folder / "embedding_config.json"
    values = json.loads(path.read_text())
    del values["max_tokens"]
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="lacks max_tokens"):
        EncoderConfig.read(folder)


def test_tokens_have_special_tokens_and_are_cut_only_when_asked(opened):
    backend = opened(1)
    text = "the " * 100
    whole, cut = backend.tokenize([text])[0], backend.tokenize([text], truncate=True)[0]
    assert (len(whole), len(cut), backend.special_tokens) == (102, 64, 2)
    assert (cut[0], cut[-1]) == (whole[0], whole[-1])


def test_padding_and_cores_change_nothing(opened):
    backend = opened(3)
    rows = backend.tokenize(["python", "how does a class work in python"])
    together = backend.infer(rows)
    alone = np.concatenate([backend.infer([row], alone=False) for row in rows])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_what_was_begun_is_not_overwritten_by_the_next_batch(opened):
    backend = opened(1)
    first, second = backend.begin([[1, 5, 2]]), backend.begin([[1, 9, 2]])
    assert np.abs(first() - second()).max() > 1e-3
    np.testing.assert_allclose(first(), backend.infer([[1, 5, 2]]), atol=1e-6)


def test_rows_that_cannot_be_read_are_refused(opened):
    backend = opened(1)
    assert backend.computes_padding
    assert not backend.on_gpu
    for rows, message in (([], "no row"), ([[]], "has 0 tokens"), ([[1] * 65], "has 65 tokens, must have 1 to 64")):
        with pytest.raises(ValueError, match=message):
            backend.infer(rows)


def test_the_identity_is_that_of_the_weights_and_of_what_computes(opened, tiny_model, exporting):
    from embed_pipeline.embedding.torch_backend import TorchBackend

    backend = opened(1)
    assert backend.identity == opened(1).identity
    assert backend.identity.startswith(backend.runtime)
    half = TorchBackend.load(tiny_model, exporting, "bf16")
    assert half.identity != backend.identity
