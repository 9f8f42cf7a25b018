"""The Dagster instance that the commands record their runs in: the same that the UI shows."""

import os
from pathlib import Path

import dagster as dg
from dagster._core.instance.ref import InstanceRef

_CONFIG = "dagster.yaml"


def open_instance(store: Path) -> dg.DagsterInstance:
    """The instance of ``DAGSTER_HOME``, else SQLite in ``<store>/dagster`` under this folder's ``dagster.yaml``."""
    if os.environ.get("DAGSTER_HOME"):
        return dg.DagsterInstance.get()
    home = (store / "dagster").resolve()
    home.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    config = here if (here / _CONFIG).is_file() else home
    return dg.DagsterInstance.from_ref(
        InstanceRef.from_dir(str(home), config_dir=str(config), overrides=_storage(home))
    )


def _storage(home: Path) -> dict[str, object]:
    """Storage in ``home``, whatever relative path the configuration names."""
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
