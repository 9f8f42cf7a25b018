"""The parity gate: an export passes, an export with one perturbed weight does not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.search import search
from embed_pipeline.release.manifest import ReleaseError
from embed_pipeline.release.parity import Parity, _ranked, measure_parity
from embed_pipeline.settings import Gates

CORPUS = {f"s{i}": f"the class {i} is a value of python object {i * 7} " * (1 + i % 6) for i in range(40)}
QUERIES = {f"q{i}": f"how does object {i * 7} of class {i} work" for i in range(12)}
QRELS = {f"q{i}": {f"s{i}": 1} for i in range(12)}


def test_an_export_passes(tiny_model, tiny_export, exporting):
    parity = measure_parity(tiny_model, OnnxBackend(tiny_export), CORPUS, QUERIES, QRELS, embedding=exporting)
    assert parity.failures(Gates()) == []
    assert (parity.passages, parity.queries) == (40, 12)
    assert 0.99999 <= parity.min_cosine <= parity.mean_cosine <= 1
    assert (parity.ndcg_delta, parity.recall_delta) == (0, 0)
    assert len(parity.worst) == 10
    assert parity.worst[0].cosine == parity.min_cosine
    assert json.loads(json.dumps(parity.as_dict()))["worst"][0]["id"] == parity.worst[0].id


def test_one_perturbed_weight_fails(tiny_model, tiny_export, exporting, tmp_path):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    model = onnx.load(str(folder / "model.onnx"))
    # Of the feed-forward part: in a random model's attention one query or key weight changes next to nothing.
    weight = next(t for t in model.graph.initializer if sorted(t.dims) == [32, 64])
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(folder / "model.onnx"))
    parity = measure_parity(tiny_model, OnnxBackend(folder), CORPUS, QUERIES, QRELS, embedding=exporting)
    failures = parity.failures(Gates())
    assert failures
    assert failures[0].startswith("min cosine 0.9")
    assert parity.worst[0].text in failures[0]


def test_a_lost_prefix_fails(tiny_model, tiny_export, exporting, tmp_path):
    folder = Path(shutil.copytree(tiny_export, tmp_path / "onnx"))
    path = folder / "embedding_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "query_prefix": ""}))
    parity = measure_parity(tiny_model, OnnxBackend(folder), CORPUS, QUERIES, QRELS, embedding=exporting)
    assert parity.failures(Gates())
    assert {text.kind for text in parity.worst} == {"query"}


def test_every_bound_fails_by_itself_and_so_does_nan():
    good = Parity(1, 1, 1.0, 1.0, 1.0, 0.0, 0.0, ())
    assert good.failures(Gates()) == []
    for name, bad in (("min_cosine", 0.9), ("top10_overlap", 0.5), ("ndcg_delta", -0.1), ("ndcg_delta", 0.1)):
        assert len(replace(good, **{name: bad}).failures(Gates())) == 1
        assert len(replace(good, **{name: np.nan}).failures(Gates())) == 1


def test_nothing_to_compare_is_an_error(tiny_model, tiny_export, exporting):
    for corpus, queries, qrels in (({}, QUERIES, QRELS), (CORPUS, {}, QRELS), (CORPUS, QUERIES, {"q1": {"other": 1}})):
        with pytest.raises(ReleaseError, match="parity needs"):
            measure_parity(tiny_model, OnnxBackend(tiny_export), corpus, queries, qrels, embedding=exporting)


def test_passages_of_one_text_are_not_ordered_by_rounding():
    passages = np.array([[0.6, 0.8], [0.8, 0.6], [0.8, 0.6], [1.0, 0.0]], np.float32)
    noisy = passages + np.array([[0, 0], [0, 0], [1e-6, 0], [0, 0]], np.float32)
    question = np.array([[1.0, 0.0]], np.float32)
    assert search(question, noisy, 4).indices.tolist() == [[3, 2, 1, 0]]
    assert _ranked(question, noisy).indices.tolist() == _ranked(question, passages).indices.tolist() == [[3, 1, 2, 0]]
