"""The Dagster instance that the commands record their runs in: the same that the UI shows."""

import os
from pathlib import Path

import dagster as dg
import yaml

from embed_pipeline.storage import write_whole

_CONFIG = "dagster.yaml"


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
