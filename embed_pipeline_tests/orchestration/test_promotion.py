"""The champion's history: what took whose place, what was refused, and the way back."""

import contextlib
from contextlib import contextmanager

import dagster as dg
import pytest
from filelock import FileLock

from embed_pipeline.orchestration import promotion
from embed_pipeline.orchestration.promotion import (
    CHAMPION,
    promote_release,
    record_refusal,
    roll_back,
)
from embed_pipeline.orchestration.store_lock import StoreBusyError
from embed_pipeline.release.manifest import BundleError, Manifest, ModelFacts
from embed_pipeline.release.releases import current_version
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Settings
from embed_pipeline.storage import StorageError
from embed_pipeline.tracking import TrackingError


class Tracker:
    """Records aliases and tags."""

    def __init__(self):
        self.aliases, self.tags, self.unknown = {}, {}, set()

    @contextmanager
    def moved_alias(self, name, alias, version):
        if version in self.unknown:
            raise TrackingError(f"MLflow, version {version} of registered model {name!r}: not found")
        before = dict(self.aliases)
        self.aliases[alias] = version
        try:
            yield
        except BaseException:
            self.aliases = before
            raise

    def set_version_tags(self, name, version, tags):
        self.tags[version] = tags["decision"]


def manifest(number):
    facts = ModelFacts(dimensions=8, max_tokens=64, query_prefix="", passage_prefix="", base_model="tiny")
    return Manifest(version=f"v{number}", model=facts, mlflow={"model": "m", "version": str(number)}, files={})


class Store:
    """Releases on disk, and the instance that their history is in."""

    def __init__(self, folder, instance):
        self.instance, self.tracker = instance, Tracker()
        self.settings = Settings.model_validate({"paths": {"store": folder}})

    def release(self, number, reasons=()):
        """A new release that is promoted, or refused for the reasons given."""
        folder = self.settings.paths.store / "release" / f"v{number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(manifest(number).model_dump_json())
        tracker, settings = self.tracker, self.settings

        @dg.asset
        def deployment(context: dg.AssetExecutionContext) -> None:
            if reasons:
                record_refusal(context, tracker, manifest(number), current_version(settings.paths), list(reasons))
            else:
                promote_release(context, tracker, settings, manifest(number))

        assert dg.materialize([deployment], instance=self.instance).success

    def history(self):
        records = self.instance.fetch_materializations(dg.AssetKey(CHAMPION), limit=20).records
        return [{k: v.value for k, v in record.asset_materialization.metadata.items()} for record in records]

    def back(self, version=None):
        return roll_back(self.instance, self.tracker, self.settings, version)


@pytest.fixture
def store(tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Store(tmp_path, instance)


def test_promotions_are_an_asset_history_and_an_alias(store):
    store.release(1)
    store.release(2)
    newest, first = store.history()
    assert (newest["decision"], newest["version"], newest["before"]) == ("promoted", "v2", "v1")
    assert (first["version"], "before" in first) == ("v1", False)
    assert store.tracker.aliases == {"champion": "2"}
    assert store.tracker.tags["2"].startswith("promoted")


def test_a_refusal_is_recorded_with_its_reason_and_changes_nothing(store):
    store.release(1)
    store.release(2, reasons=["it is worse"])
    [observation] = store.instance.fetch_observations(dg.AssetKey(CHAMPION), limit=5).records
    said = {name: value.value for name, value in observation.event_log_entry.asset_observation.metadata.items()}
    assert (said["decision"], said["refused_version"], said["version"], said["reason"]) == (
        "refused", "v2", "v1", "it is worse",
    )  # fmt: skip
    assert store.tracker.aliases == {"champion": "1"}
    assert "it is worse" in store.tracker.tags["2"]


def test_the_way_back_leads_to_the_release_before_and_then_to_the_one_before_that(store):
    for number in (1, 2, 3):
        store.release(number)
    assert store.back() == "v2"
    assert current_version(store.settings.paths) == "v2"
    assert store.tracker.aliases == {"champion": "2"}
    assert store.history()[0]["decision"] == "rolled back"
    assert store.back() == "v1"
    assert current_version(store.settings.paths) == "v1"
    assert store.back("v3") == "v3"
    assert store.tracker.aliases == {"champion": "3"}


def test_a_release_that_was_promoted_twice_is_no_way_back_from_itself(store):
    store.release(1)
    store.release(2)
    store.release(2)
    assert store.back() == "v1"


def test_without_an_earlier_release_nothing_changes(store):
    store.release(1)
    with pytest.raises(BundleError, match="no release before v1"):
        store.back()
    with pytest.raises(BundleError):
        store.back("v9")
    assert current_version(store.settings.paths) == "v1"


def state(store):
    """All that says which release is served."""
    return current_version(store.settings.paths), dict(store.tracker.aliases), len(store.history())


@pytest.mark.parametrize("reason", ["mlflow", "endpoint", "history", "files", "disk", "busy"])
def test_the_way_back_is_gone_whole_or_not_at_all(store, monkeypatch, reason):
    store.release(1)
    store.release(2)
    before = state(store)

    def refuse(*_arguments, **_named):
        raise refusal

    refusal: Exception = ServingError("it still serves v2")
    held = contextlib.nullcontext()
    if reason == "mlflow":
        store.tracker.unknown.add("1")
        refusal = TrackingError()
    elif reason == "endpoint":
        monkeypatch.setattr(promotion, "confirm_release", refuse)
    elif reason == "history":
        refusal = OSError(28, "No space left on device")
        monkeypatch.setattr(type(store.instance), "report_runless_asset_event", refuse)
    elif reason == "files":
        refusal = BundleError()
        (store.settings.paths.store / "release" / "v1" / "stray").write_text("x")
    elif reason == "disk":
        refusal = OSError(28, "No space left on device")
        monkeypatch.setattr("os.fsync", refuse)
        refusal = StorageError()
    else:
        refusal = StoreBusyError()
        held = FileLock(store.settings.paths.store / ".lock")
    with held, pytest.raises(type(refusal)):
        store.back()
    monkeypatch.undo()
    assert state(store) == before


def test_a_release_that_the_running_endpoint_does_not_take_up_leaves_the_one_before(store, monkeypatch):
    store.release(1)
    before = state(store)

    def refuse(version, settings):
        assert current_version(settings.paths) == version
        raise ServingError("it still serves v1")

    monkeypatch.setattr(promotion, "confirm_release", refuse)
    with pytest.raises(ServingError):
        store.release(2)
    assert state(store) == before
