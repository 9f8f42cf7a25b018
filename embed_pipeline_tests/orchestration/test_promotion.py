"""The champion's history: what took whose place, what was refused, and the way back."""

import dagster as dg
import pytest

from embed_pipeline.orchestration import promotion
from embed_pipeline.orchestration.promotion import (
    CHAMPION,
    put_in_service,
    record_promotion,
    record_refusal,
    roll_back,
)
from embed_pipeline.release.manifest import BundleError, Manifest, ModelFacts
from embed_pipeline.release.releases import current_version, promote
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Settings


class Tracker:
    """Records aliases and tags."""

    def __init__(self):
        self.aliases, self.tags = {}, {}

    def set_alias(self, name, alias, version):
        self.aliases[alias] = version

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
        tracker, before = self.tracker, current_version(self.settings.paths)

        @dg.asset
        def deployment(context: dg.AssetExecutionContext) -> None:
            if reasons:
                record_refusal(context, tracker, manifest(number), before, list(reasons))
            else:
                record_promotion(context, tracker, manifest(number), before)

        if not reasons:
            promote(self.settings.paths, f"v{number}")
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


def test_a_release_that_the_running_endpoint_does_not_take_up_leaves_the_one_before(store, monkeypatch):
    paths = store.settings.paths
    store.release(1)
    store.release(2)
    promote(paths, "v1")
    put_in_service("v2", "v1", store.settings)
    assert current_version(paths) == "v2"

    def refuse(version, settings):
        assert current_version(paths) == version
        raise ServingError("it still serves v2")

    monkeypatch.setattr(promotion, "confirm_release", refuse)
    with pytest.raises(ServingError):
        put_in_service("v1", "v2", store.settings)
    assert current_version(paths) == "v2"
