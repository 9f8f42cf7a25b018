"""The whole graph with its assets on object storage: another machine, with an empty store, goes on from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import httpx
import polars as pl
import pytest

from embed_pipeline.release.releases import RELEASES, current_bundle, current_version, promote
from embed_pipeline.serving.connections import free_port
from embed_pipeline.settings import Paths
from embed_pipeline.shelf import Shelf
from embed_pipeline.storage import read_table
from embed_pipeline.tables import QA_DATASET, RETRIEVAL_EVALUATION
from embed_pipeline_tests.object_storage import BUCKET, object_storage
from embed_pipeline_tests.project import Project, small_project, well_behaved
from embed_pipeline_tests.serving.endpoint import changed, eventually
from embed_pipeline_tests.stub_endpoint import stub_endpoint

pytestmark = pytest.mark.slow
PATHS = Paths(assets=f"s3://{BUCKET}/handbook")


@pytest.fixture(scope="module")
def storage():
    with object_storage() as environment:
        yield environment


@pytest.fixture(scope="module")
def moved(storage, tiny_model, tmp_path_factory):
    """A project after a whole run on one machine, and the same on another that has nothing but the assets.

    Run history and MLflow are shared, as Postgres and an MLflow server are.
    """
    root = tmp_path_factory.mktemp("machines")
    (root / "history").mkdir()
    (root / "history" / "dagster.yaml").write_text("telemetry: {enabled: false}\n", encoding="utf-8")
    with stub_endpoint(well_behaved) as stub:
        first = small_project(
            root / "first",
            tiny_model,
            stub.base_url,
            paths__assets=str(PATHS.assets),
            tracking__uri=f"sqlite:///{root / 'mlflow.db'}",
            # Tested elsewhere; here they would only take time.
            release__precisions="",
            release__base_export="false",
        )
        first.environment |= {**storage, "DAGSTER_HOME": str(root / "history")}
        status, output = first.command("run")
        assert status == 0, output
    local = {path.relative_to(first.store).parts[0] for path in first.store.rglob("*") if path.is_file()}
    second = Project(root / "second", {**first.environment, "EMBED_PIPELINE_PATHS__STORE": str(root / "second/store")})
    second.root.mkdir()
    shutil.rmtree(first.store)
    return second, local


def metrics() -> pl.DataFrame:
    return read_table(PATHS.root / "tables" / "retrieval_evaluation.parquet", RETRIEVAL_EVALUATION)


def test_the_store_holds_only_what_needs_a_file_system(moved):
    _, local = moved
    assert not local & {"tables", "trained_on"}
    assert local >= {"models", "release", "responses.sqlite", "reports"}
    root = PATHS.root
    assert {path.name for path in root.iterdir()} >= {"tables", "models", "release", "batches", "trained_on"}
    assert read_table(root / "tables" / "qa_dataset.parquet", QA_DATASET).height >= 20
    assert (root / "release" / str(current_version(PATHS)) / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_another_machine_finds_everything_current(moved):
    second, _ = moved
    for stage in ("finetune", "export"):
        status, output = second.command(stage)
        assert status == 0, output
        assert f"{stage}  0 made" in output
    assert not (second.store / "models").exists(), "nothing was fetched that nobody read"


@pytest.mark.slow
def test_another_machine_evaluates_and_exports_the_stored_model(moved):
    second, _ = moved
    before = metrics()
    for stage in ("eval", "export"):
        status, output = second.command(stage, "--force")
        assert status == 0, output
    assert metrics().equals(before)
    assert (second.store / "models" / "finetuned_model").is_dir()


@pytest.mark.slow
def test_another_machine_tells_a_pair_s_story(moved):
    second, _ = moved
    qa_id = read_table(PATHS.root / "tables" / "qa_dataset.parquet", QA_DATASET)["qa_id"][0]
    status, output = second.command("lineage", qa_id)
    assert status == 0, output
    assert "DOCUMENTS" in output


@pytest.mark.slow
def test_the_endpoint_of_another_machine_serves_the_release_and_follows_the_next(moved, tmp_path):
    second, _ = moved
    port = free_port("127.0.0.1")
    environment = {
        **os.environ,
        **second.environment,
        "EMBED_PIPELINE_PATHS__STORE": str(tmp_path / "store"),
        "EMBED_PIPELINE_SERVING__RELOAD_SECONDS": "0.2",
    }
    command = [sys.executable, "-m", "embed_pipeline.cli", "serve", "--port", str(port)]
    served = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)

    def version() -> str | None:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/v1/metadata").json()["data"][0]["version"]
        except (httpx.TransportError, KeyError, IndexError):
            return None

    try:
        eventually(lambda: version() == current_version(PATHS))
        assert [path.name for path in (tmp_path / "store").iterdir()] == ["release"]
        # A third machine stores another release and promotes it.
        third = Paths(store=tmp_path / "third", assets=PATHS.assets)
        bundle = current_bundle(third)
        changed(bundle, bundle.with_name("next"), "onnx/embedding_config.json", query_prefix="how ")
        Shelf.of(third).under(RELEASES).publish("next")
        promote(third, "next")
        eventually(lambda: version() == "next")
    finally:
        served.terminate()
        served.wait(60)
