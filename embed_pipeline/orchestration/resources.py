"""The MLflow resource of the assets, and the Dagster instance that records the runs of commands."""

import os
from pathlib import Path

import dagster as dg
import yaml

from embed_pipeline.lineage import Model
from embed_pipeline.orchestration.freshness import INPUT_DATA_VERSION, materializations
from embed_pipeline.settings import Settings
from embed_pipeline.storage import write_whole
from embed_pipeline.tracking import Tracker

_CONFIG = "dagster.yaml"


class MLflow(dg.ConfigurableResource):  # type: ignore[type-arg]  # dagster leaves the parameter to subclasses
    """The MLflow experiment in which trainings are tracked and models registered."""

    uri: str
    experiment: str
    pages: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "MLflow":
        """The resource that the settings name."""
        tracking = settings.tracking
        return cls(uri=settings.tracking_uri(), experiment=tracking.experiment, pages=tracking.mlflow_url)

    def tracker(self) -> Tracker:
        """Connect."""
        return Tracker(self.uri, self.experiment, pages=self.pages)


def newest_metadata(instance: dg.DagsterInstance, asset: str, name: str) -> str | None:
    """A text that the newest materialization of ``asset`` recorded; None: there is none."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    value = event.asset_materialization.metadata.get(name) if event and event.asset_materialization else None
    return str(value.value) if value is not None else None


def trained_models(instance: dg.DagsterInstance, registered_model: str) -> list[Model]:
    """Every registered version of the model, with the data versions that it was trained on, oldest first."""
    found: list[Model] = []
    for event in materializations(instance, dg.AssetKey("finetuned_model")):
        version = event.metadata.get("mlflow_version")
        if version is not None:
            tags = (event.tags or {}).items()
            inputs = {
                name.removeprefix(INPUT_DATA_VERSION): data_version
                for name, data_version in tags
                if name.startswith(INPUT_DATA_VERSION)
            }
            found.append(Model(registered_model, str(version.value), inputs))
    return found[::-1]


def open_instance(store: Path) -> dg.DagsterInstance:
    """The instance of :func:`prepare_home`."""
    return dg.DagsterInstance.from_config(str(prepare_home(store)))


def prepare_home(store: Path) -> Path:
    """Dagster's home: ``DAGSTER_HOME``, else ``<store>/dagster`` under the ``dagster.yaml`` of the working directory.

    That file's storage may be a relative path, which only fits the default store; here it is always this home.
    """
    named = os.environ.get("DAGSTER_HOME")
    if named:
        return Path(named)
    home = (store / "dagster").resolve()
    here = Path.cwd() / _CONFIG
    config = (yaml.safe_load(here.read_text(encoding="utf-8")) or {}) if here.is_file() else {}
    text = yaml.safe_dump({**config, **_storage(home)}, sort_keys=False)
    path = home / _CONFIG
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text.encode())
    return home


def _storage(home: Path) -> dict[str, object]:
    return {
        "storage": {"sqlite": {"base_dir": str(home)}},
        "local_artifact_storage": {
            "module": "dagster._core.storage.root",
            "class": "LocalArtifactStorage",
            "config": {"base_dir": str(home)},
        },
        "compute_logs": {
            "module": "dagster._core.storage.local_compute_log_manager",
            "class": "LocalComputeLogManager",
            "config": {"base_dir": str(home / "logs")},
        },
        "telemetry": {"enabled": False},
    }
