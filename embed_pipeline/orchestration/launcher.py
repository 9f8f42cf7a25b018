"""Each run as a container of its stack, for the webserver, the daemon and the runs of ``deploy/dagster.yaml``.

The webserver and the daemon have none of this package's dependencies: this module and :mod:`store_lock` need Dagster
alone.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._serdes.config_class import ConfigurableClassData
from dagster_docker import DockerRunLauncher

from embed_pipeline.orchestration.store_lock import COMMAND_TAG, close_if_abandoned

RUN_LABEL = "embed_pipeline.run"
"""Label of a step's container: its run."""
STEP_STOP_SECONDS = 15
"""A step that is told to end is killed after so long."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class StackRunLauncher(DockerRunLauncher):
    """Dagster's launcher of containers, with three differences.

    ``${NAME}`` in ``networks`` and ``container_kwargs`` is taken from the environment, so that volumes, networks and
    limits are those of the stack that started the process. A run that a command executes in its own process is not
    missed for having no container: it goes on while its command holds the store's lock. Ending a run ends its steps,
    which an executor leaves at work where another container could take its run up (``max_resume_run_attempts``).
    """

    def __init__(
        self,
        inst_data: ConfigurableClassData | None = None,
        networks: list[str] | None = None,
        container_kwargs: Mapping[str, Any] | None = None,
        **others: Any,  # noqa: ANN401 - as Dagster's launcher takes them
    ) -> None:
        super().__init__(
            inst_data, networks=_filled(networks or []), container_kwargs=_filled(container_kwargs or {}), **others
        )

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether what executes the run is still there."""
        if COMMAND_TAG not in run.tags:
            health: CheckRunHealthResult = super().check_run_worker_health(run)
            return health
        # Recorded here, because the monitor would have a container take the run up again.
        if close_if_abandoned(self._instance, run):
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, msg="Its command exited unexpectedly.")
        return CheckRunHealthResult(WorkerStatus.RUNNING)

    def terminate(self, run_id: str) -> bool:
        """End the run's container, then those of its steps; whether there was a run to end."""
        ended: bool = super().terminate(run_id)  # type: ignore[no-untyped-call]
        run = self._instance.get_run_by_id(run_id)
        if run is not None:
            client = self._get_client(self.get_container_context(run))
            for step in client.containers.list(filters={"label": f"{RUN_LABEL}={run_id}"}):
                step.stop(timeout=STEP_STOP_SECONDS)
        return ended


def _filled(value: Any) -> Any:  # noqa: ANN401 - any part of a configuration
    """``value`` with each ``${NAME}`` in its strings replaced by that variable.

    Raises:
        DagsterInvariantViolationError: the variable is not set.
    """
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _variable(found[1]), value)
    if isinstance(value, Mapping):
        return {key: _filled(part) for key, part in value.items()}
    return [_filled(part) for part in value] if isinstance(value, list) else value


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        message = f"dagster.yaml needs the variable {name}, which docker-compose.yml gives to every part of the stack"
        raise dg.DagsterInvariantViolationError(message) from None
