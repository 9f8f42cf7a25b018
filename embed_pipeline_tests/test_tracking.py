from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from embed_pipeline.tracking import Tracker, TrackingError


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path_factory.mktemp('store') / 'new' / 'mlflow.db'}", "tests")


@pytest.fixture(scope="module")
def client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracker.uri)


def test_a_run_holds_parameters_curves_and_artifacts(tracker: Tracker, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>report</p>")
    with tracker.run("first", {"dagster_run": "r1"}) as run:
        run.log_parameters({f"setting.{i}": i for i in range(250)})
        run.log_parameters({"long": "x" * 10_000})
        run.log_curves({"loss": [(step, 1.0 / (step + 1)) for step in range(1500)]})
        run.log_metrics({"nDCG@10": 0.5}, step=3)
        run.log_artifact(tmp_path / "report.html")
        run.log_artifact(b"png", "plots.png")
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["dagster_run"] == "r1"
    assert len(stored.data.params) == 251
    assert len(stored.data.params["long"]) == 6000
    assert stored.data.params["long"].endswith("…")
    assert len(client.get_metric_history(run.run_id, "loss")) == 1500
    assert stored.data.metrics["nDCG_at_10"] == 0.5
    assert {item.path for item in client.list_artifacts(run.run_id)} == {"report.html", "plots.png"}
    assert run.run_url is None


def test_artifacts_lie_beside_the_database(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.run("where", {}) as run:
        pass
    database = Path(tracker.uri.removeprefix("sqlite:///"))
    assert client.get_run(run.run_id).info.artifact_uri.startswith((database.parent / "mlartifacts").as_uri())
    with sqlite3.connect(database) as connection:
        assert connection.execute("select count(*) from runs").fetchone()[0] >= 1


def test_a_block_that_raises_fails_the_run_which_can_be_gone_on_with(tracker: Tracker, client: MlflowClient) -> None:
    ids = []

    def broken() -> None:
        with tracker.run("broken", {}) as run:
            ids.append(run.run_id)
            run.log_parameters({"seed": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    run_id = ids[0]
    assert client.get_run(run_id).info.status == "FAILED"
    with tracker.run("ignored", {}, run_id=run_id) as again:
        assert again.run_id == run_id
        assert client.get_run(run_id).info.status == "RUNNING"
        again.log_parameters({"seed": 1})
        with pytest.raises(TrackingError, match="seed"):
            again.log_parameters({"seed": 2})
    assert client.get_run(run_id).info.status == "FINISHED"
    with pytest.raises(TrackingError, match="nowhere"), tracker.run("x", {}, run_id="nowhere"):
        pass


def test_versions_are_registered_with_their_files_and_aliases_move(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modules.json").write_text("[]")
    assert tracker.get_version("tuned", "champion") is None
    with tracker.run("train", {}) as run:
        first, second = (
            tracker.register_model(
                "tuned", run.run_id, tmp_path / "model", tags={"data": "d1"}, metrics={"nDCG@10": 0.25}
            )
            for _ in range(2)
        )
    assert (first, second) == ("1", "2")
    stored = client.get_model_version("tuned", "1")
    assert stored.run_id == run.run_id
    assert stored.tags == {"data": "d1", "metric.nDCG_at_10": "0.25"}
    assert (Path(stored.source.removeprefix("file://")) / "modules.json").read_text() == "[]"
    assert tracker.get_version("tuned", "champion") is None
    for version in ("1", "2"):
        tracker.record_gate("tuned", version, [])
        tracker.set_alias("tuned", "champion", version)
        assert tracker.get_version("tuned", "champion") == version
    tracker.set_version_tags("tuned", "2", {"verdict": "better"})
    assert client.get_model_version("tuned", "2").tags["verdict"] == "better"


def test_only_a_version_that_passed_the_gate_becomes_the_champion(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    with tracker.run("train", {}) as run:
        version = tracker.register_model("gated", run.run_id, tmp_path, tags={}, metrics={})
    tracker.set_alias("gated", "candidate", version)
    with pytest.raises(TrackingError, match="has not passed the gate: it was not evaluated"):
        tracker.set_alias("gated", "champion", version)
    tracker.record_gate("gated", version, ["people: lost 0.1", "general questions: lost 0.2"])
    with pytest.raises(TrackingError, match=r"people: lost 0\.1; general questions: lost 0\.2"):
        tracker.set_alias("gated", "champion", version)
    tracker.record_gate("gated", version, [])
    tracker.set_alias("gated", "champion", version)
    assert tracker.get_version("gated", "champion") == version


def test_a_run_whose_process_was_killed_is_recorded_as_failed(tracker: Tracker, client: MlflowClient) -> None:
    names = {"over": "killed", "going on": "alive", "other": None}
    ids = {}
    for name, dagster_run in names.items():
        tags = {} if dagster_run is None else {"dagster.run_id": dagster_run}
        ids[name] = client.create_run(
            client.get_experiment_by_name(tracker.experiment).experiment_id, tags=tags
        ).info.run_id
    assert tracker.fail_abandoned(lambda run: run == "killed") == [ids["over"]]
    assert {name: client.get_run(run).info.status for name, run in ids.items()} == {
        "over": "FAILED", "going on": "RUNNING", "other": "RUNNING",
    }  # fmt: skip


def test_an_alias_is_moved_back_where_what_follows_fails(tracker: Tracker, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[]")
    with tracker.run("train", {}) as run:
        first, second = (tracker.register_model("moved", run.run_id, tmp_path, tags={}, metrics={}) for _ in range(2))
    for version in (first, second):
        tracker.record_gate("moved", version, [])

    def broken(version: str) -> None:
        with tracker.moved_alias("moved", "champion", version):
            assert tracker.get_version("moved", "champion") == version
            raise KeyboardInterrupt

    for before in (None, first):
        with pytest.raises(KeyboardInterrupt):
            broken(second)
        assert tracker.get_version("moved", "champion") == before
        with tracker.moved_alias("moved", "champion", first):
            pass
    with pytest.raises(TrackingError, match="99"), tracker.moved_alias("moved", "champion", "99"):
        pass
    assert tracker.get_version("moved", "champion") == first


def test_what_is_not_there_is_named(tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="version 99"):
        tracker.set_alias("tuned", "champion", "99")
    with pytest.raises(TrackingError, match="absent"), tracker.run("x", {}) as run:
        run.log_artifact(tmp_path / "absent")
    with pytest.raises(TrackingError, match="needs a name"), tracker.run("x", {}) as run:
        run.log_artifact(b"bytes")


@pytest.mark.slow
def test_links_lead_to_where_browsers_find_the_server(tmp_path: Path) -> None:
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "links", pages="http://localhost:5000/")
    assert tracker.version_url("tuned", "1") == "http://localhost:5000/#/models/tuned/versions/1"


def test_the_url_of_a_run_on_a_server_shows_no_password(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.run("url", {}) as run:
        stored = client.get_run(run.run_id)
    remote = Tracker.__new__(Tracker)
    remote._pages = "https://user:secret@mlflow.example/"
    experiment = stored.info.experiment_id
    assert remote.version_url("a model", "3") == "https://mlflow.example/#/models/a%20model/versions/3"
    assert tracker.version_url("tuned", "1") is None
    assert remote._run_url(stored) == f"https://mlflow.example/#/experiments/{experiment}/runs/{run.run_id}"


@pytest.mark.slow
def test_opening_a_new_store_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "quiet")
    assert not [record for record in caplog.records if record.name.startswith("alembic")]
