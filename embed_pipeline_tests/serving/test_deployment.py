"""A deployment is proven through the real endpoint, and what is not the model's is found out."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import httpx
import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.serving.deployment import deploy, deployment_failures
from embed_pipeline.serving.errors import ServingError
from embed_pipeline.serving.process import free_port, start_endpoint
from embed_pipeline.settings import Embedding, Paths, Serving, Settings
from embed_pipeline_tests.serving.endpoint import changed

QUERIES = ["what is a class", "value of python", "how to object"]


@pytest.fixture(scope="module")
def corpus() -> pl.DataFrame:
    texts = [f"class {index} of python value {'in ' * (index % 50)}" for index in range(40)]
    places = {"document_id": "d", "path": "a.md", "title": "A", "heading_path": "", "token_count": 9}
    return tables.CORPUS.frame(
        [{"segment_id": f"s{index:03}", "position": index, "text": text, **places} for index, text in enumerate(texts)]
    )


def settings(store: Path, **serving) -> Settings:
    return Settings(
        paths=Paths(store=store),
        serving=Serving(**{"threads": 1, "port": 0, "drain_seconds": 2, **serving}),
        embedding=Embedding(device="cpu"),
    )


@pytest.fixture(scope="module")
def deployed(bundle, corpus, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    chosen = settings(store, model_name="other-name", port=free_port("127.0.0.1"))
    return store, chosen, deploy(bundle, corpus, QUERIES, chosen, keep=True)


def test_a_faithful_endpoint_passes_and_stays_where_it_is_to(deployed):
    store, chosen, frame = deployed
    row = frame.row(0, named=True)
    assert deployment_failures(frame, chosen) == []
    assert (row["release_version"], row["left_running"], row["texts_compared"]) == ("1", True, 43)
    assert row["min_cosine"] > 0.99999
    assert row["top10_overlap"] == 1.0
    assert row["median_milliseconds"] > 0
    record = json.loads((store / "deployment.json").read_text())
    assert record["url"] == row["url"] == f"http://127.0.0.1:{chosen.serving.port}"
    try:
        assert httpx.get(f"{record['url']}/v1/models").json()["data"][0]["id"] == "other-name"
    finally:
        os.kill(record["pid"], signal.SIGTERM)
        _, status = os.waitpid(record["pid"], 0)
    assert status == 0


def test_a_release_that_serves_other_vectors_is_found_out(bundle, corpus, tmp_path, monkeypatch):
    # A model whose prefixes are not those of its export: close, and wrong.
    prompts = {"query": "how ", "document": "the "}
    other = changed(bundle, tmp_path / "2", "model/config_sentence_transformers.json", prompts=prompts)
    monkeypatch.setenv("EMBED_PIPELINE_SERVING_API_KEY", "clef")
    chosen = settings(tmp_path / "store")
    frame = deploy(other, corpus, QUERIES, chosen)
    failures = deployment_failures(frame, chosen)
    assert any("min_cosine" in failure and "below 0.99999" in failure for failure in failures)
    assert not frame["left_running"][0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{frame['url'][0]}/v1/health/live")


def test_bounds_are_the_settings(deployed):
    _, chosen, frame = deployed
    worse = frame.with_columns(min_cosine=pl.lit(0.9), top10_overlap=pl.lit(0.5))
    assert [failure.split(": ")[1].split()[0] for failure in deployment_failures(worse, chosen)] == [
        "min_cosine",
        "top10_overlap",
    ]


def test_an_endpoint_that_dies_early_is_reported_with_its_log(bundle, corpus, tmp_path):
    broken = Path(shutil.copytree(bundle, tmp_path / "1"))
    (broken / "onnx" / "model.onnx").write_bytes(b"x")
    with pytest.raises(ServingError, match=r"(?s)exit code 1 before it was ready; its log ends:.*model\.onnx is not"):
        deploy(broken, corpus, QUERIES, settings(tmp_path / "store"))


def test_an_endpoint_that_is_never_ready_is_ended(bundle, tmp_path):
    with pytest.raises(ServingError, match=r"not ready after serving\.start_seconds = 0\.01"):
        start_endpoint(
            bundle, settings(tmp_path, start_seconds=0.01), port=free_port("127.0.0.1"), log=tmp_path / "log"
        )


def test_nothing_to_compare_is_said(bundle, corpus, tmp_path):
    with pytest.raises(ServingError, match="got 0 and 3"):
        deploy(bundle, tables.CORPUS.empty(), QUERIES, settings(tmp_path))
    with pytest.raises(ServingError, match="got 40 and 0"):
        deploy(bundle, corpus, [], settings(tmp_path))
