"""The MLflow resource of the assets, the Dagster instance that records the runs of commands, and the store of both."""

import errno
import os
import shutil
from pathlib import Path

import dagster as dg
import yaml

from embed_pipeline.lineage import Model
from embed_pipeline.orchestration.freshness import INPUT_DATA_VERSION, materializations
from embed_pipeline.orchestration.store_lock import StoreBusyError, locked_store, unfinished_runs
from embed_pipeline.serving.process import kept_endpoint
from embed_pipeline.settings import Settings
from embed_pipeline.storage import StorageError, file_hashes, write_whole
from embed_pipeline.tracking import Tracker, upgrade_database

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


def move_store(settings: Settings, target: Path) -> None:
    """Move the store to another folder, which must not exist or be empty; all of it, or nothing.

    Raises:
        StorageError: there is no store, something is in the way, or its endpoint is running.
        StoreBusyError: a command or a run is at work on it.
    """
    store = settings.paths.store
    if not store.is_dir():
        raise StorageError(f"there is no store in {store}; set paths.store")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"{target} is not an empty folder; name one that is not there yet")
    if target.resolve().is_relative_to(store.resolve()):
        raise StorageError(f"{target} lies in the store {store} itself; name a folder outside it")
    running = kept_endpoint(store)
    if running is not None:
        raise StorageError(f"the endpoint at {running.url} serves from {store}; end process {running.pid} first")
    with open_instance(store) as instance, locked_store(instance, store):
        unfinished = unfinished_runs(instance)
        if unfinished:
            message = f"runs wait or are in progress: {', '.join(unfinished)}; wait for them to end, or terminate them"
            raise StoreBusyError(message)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy_and_remove(store, target)
    moved = settings.model_copy(update={"paths": settings.paths.model_copy(update={"store": target})})
    prepare_home(target)
    # Connecting has MLflow name the artifacts where they are now.
    MLflow.of(moved).tracker()


def _copy_and_remove(store: Path, target: Path) -> None:
    """Move to another disk: copied, compared, put in place, and only then removed."""
    staged = target.with_name(f".{target.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(store, staged, symlinks=True)
    if file_hashes(staged) != file_hashes(store):
        shutil.rmtree(staged)
        raise StorageError(f"{store} changed while it was copied to {target}; nothing was moved, try again")
    staged.replace(target)
    shutil.rmtree(store)


def upgrade_store(settings: Settings) -> list[str]:
    """Bring Dagster's and MLflow's databases to the form of the installed versions; return what was done, in words."""
    done = []
    with open_instance(settings.paths.store) as instance:
        instance.upgrade()
        done.append(f"Dagster's database is that of Dagster {dg.__version__}")
    uri = settings.tracking_uri()
    known = upgrade_database(uri)
    done.append("MLflow's database is up to date" if known else f"MLflow's database is upgraded by its server at {uri}")
    return done


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
