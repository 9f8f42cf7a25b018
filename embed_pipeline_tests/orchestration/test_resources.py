"""A store can be moved and copied: MLflow's artifacts and Dagster's history go with it."""

from __future__ import annotations

import shutil

import dagster as dg
import pytest
from filelock import FileLock

from embed_pipeline.orchestration import resources
from embed_pipeline.orchestration.resources import MLflow, move_store, open_instance, prepare_home, upgrade_store
from embed_pipeline.orchestration.store_lock import COMMAND_TAG, StoreBusyError, close_abandoned, command_tags
from embed_pipeline.settings import Settings
from embed_pipeline.storage import StorageError, file_hashes


def settings_of(store):
    return Settings.model_validate({"paths": {"store": store}})


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A store with a run in MLflow that has artifacts and a model, and an event in Dagster's history."""
    store = tmp_path_factory.mktemp("stores") / "a store"
    tracker = MLflow.of(settings_of(store)).tracker()
    (store / "model").mkdir()
    (store / "model" / "modules.json").write_text("[]")
    with tracker.run("train", {}) as run:
        run.log_artifact(b"<p>words</p>", "report.html")
        tracker.register_model("m", run.run_id, store / "model", tags={}, metrics={})
    with open_instance(store) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("corpus"))
    return store


def copy(store, target):
    """As a backup is restored: the files, elsewhere."""
    shutil.copytree(store, target)
    return target


def artifacts(store):
    return sorted(path.name for path in (store / "mlartifacts").rglob("*") if path.is_file())


def test_a_store_that_was_copied_writes_into_itself_alone(used, tmp_path):
    before = file_hashes(used)
    store = copy(used, tmp_path / "restored")
    tracker = MLflow.of(settings_of(store)).tracker()
    with tracker.run("evaluate", {}) as run:
        run.log_artifact(b"more", "more.txt")
    assert artifacts(store) == ["modules.json", "more.txt", "report.html"]
    assert {text for _, text in tracker.text_artifacts()} == {"<p>words</p>", "more"}
    version = tracker._client.get_model_version("m", "1")
    assert version.source.startswith((store / "mlartifacts").as_uri())
    assert file_hashes(used) == before
    with open_instance(store) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey("corpus"))
    tracker.remove_artifacts(lambda text: "words" in text)
    assert artifacts(store) == ["modules.json", "more.txt"]
    assert file_hashes(used) == before


@pytest.mark.slow
@pytest.mark.parametrize("other_disk", [False, True])
def test_a_store_is_moved_whole(used, tmp_path, monkeypatch, other_disk):
    store, target = copy(used, tmp_path / "here"), tmp_path / "there" / "store"
    MLflow.of(settings_of(store)).tracker()
    if other_disk:
        target.parent.mkdir()
        rename = type(store).rename

        def apart(self, place):
            if self == store:
                raise OSError(18, "Invalid cross-device link")
            return rename(self, place)

        monkeypatch.setattr(type(store), "rename", apart)
    move_store(settings_of(store), target)
    assert not store.exists()
    assert {text for _, text in MLflow.of(settings_of(target)).tracker().text_artifacts()} == {"<p>words</p>"}
    with open_instance(target) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey("corpus"))
        assert str(store) not in (target / "dagster" / "dagster.yaml").read_text()
    assert str(store).encode() not in (target / "mlflow.db").read_bytes()


@pytest.mark.slow
def test_what_is_in_the_way_of_a_move_is_said_and_nothing_is_moved(used, tmp_path):
    store = copy(used, tmp_path / "here")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for target, said in ((tmp_path / "full", "not an empty folder"), (store / "inside", "lies in the store")):
        with pytest.raises(StorageError, match=said):
            move_store(settings_of(store), target)
    with pytest.raises(StorageError, match="there is no store"):
        move_store(settings_of(tmp_path / "absent"), tmp_path / "new")
    with FileLock(store / ".lock"), pytest.raises(StoreBusyError, match="another command"):
        move_store(settings_of(store), tmp_path / "new")
    with open_instance(store) as instance:
        instance.add_run(dg.DagsterRun("sdg", status=dg.DagsterRunStatus.STARTED))
    with pytest.raises(StoreBusyError, match=r"of sdg \(started\)"):
        move_store(settings_of(store), tmp_path / "new")
    assert artifacts(store) == artifacts(used)
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_abandoned_before_a_store_was_copied_is_closed_in_the_copy(used, tmp_path):
    store = copy(used, tmp_path / "copied")
    with open_instance(store) as instance:
        instance.add_run(dg.DagsterRun("sdg", status=dg.DagsterRunStatus.STARTED, tags=command_tags("sdg", used)))
        assert len(close_abandoned(instance, store)) == 1
        (run,) = instance.get_runs(filters=dg.RunsFilter(tags={COMMAND_TAG: "sdg"}))
        assert run.status == dg.DagsterRunStatus.FAILURE


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(used, tmp_path):
    store = copy(used, tmp_path / "store")
    said = upgrade_store(settings_of(store))
    assert dg.__version__ in said[0]
    assert "up to date" in said[1]
    assert prepare_home(store).is_dir()
    assert artifacts(store) == artifacts(used)
    with open_instance(store) as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey("corpus"))
    assert resources.trained_models(instance, "m") == []
