"""Where runs are executed: as containers of their stack (``deploy/dagster.yaml``), or by workers on several machines.

The webserver and the daemon have none of this package's dependencies: this module and :mod:`store_lock` need Dagster
alone.
"""

import os
import re
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
import sqlalchemy
from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClass
from dagster._serdes.config_class import ConfigurableClassData
from dagster_docker import DockerRunLauncher

from embed_pipeline.orchestration.store_lock import COMMAND_TAG, close_if_abandoned

if TYPE_CHECKING:
    from dagster_postgres import PostgresRunStorage

RUN_LABEL = "embed_pipeline.run"
"""Label of a step's container: its run."""
STEP_STOP_SECONDS = 15
"""A step that is told to end is killed after so long."""
WORKER_TAG = "embed_pipeline/worker"
"""Tag of a run: the machine whose worker executes it, or did. A run that is run again inherits it."""
# A worker's connection that stays silent for so long is lost: first to the worker, later to the database.
_WORKER_WAITS, _DATABASE_WAITS = 10, 25
_LOCK = "hashtextextended(:run_id, 0)"
_HELD = f"""
SELECT EXISTS (
    SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (classid::bigint << 32) | objid::bigint = {_LOCK}
)
"""  # noqa: S608 - a constant
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
        if COMMAND_TAG in run.tags:
            return _command_health(self._instance, run)
        health: CheckRunHealthResult = super().check_run_worker_health(run)
        return health

    def terminate(self, run_id: str) -> bool:
        """End the run's container, then those of its steps; whether there was a run to end."""
        ended: bool = super().terminate(run_id)  # type: ignore[no-untyped-call]
        run = self._instance.get_run_by_id(run_id)
        if run is not None:
            client = self._get_client(self.get_container_context(run))
            for step in client.containers.list(filters={"label": f"{RUN_LABEL}={run_id}"}):
                step.stop(timeout=STEP_STOP_SECONDS)
        return ended


def _command_health(instance: dg.DagsterInstance, run: dg.DagsterRun) -> CheckRunHealthResult:
    """Whether the command that executes a run in its own process is still there."""
    # Recorded here, because the monitor would have a container take the run up again.
    if close_if_abandoned(instance, run):
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, msg="Its command exited unexpectedly.")
    return CheckRunHealthResult(WorkerStatus.RUNNING)


class WorkerError(RuntimeError):
    """Dagster is not configured for workers."""


class RunLocks:
    """Locks in Dagster's Postgres that say which runs this process executes.

    They belong to a connection and are lost with it, when the process ends or its machine is cut off. The process
    notices before the database does, so that it can end its runs before another machine executes them.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        """Connect; raises :class:`WorkerError` where Dagster's history is not in Postgres."""
        probes = f"-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=5 -c tcp_keepalives_count={_DATABASE_WAITS // 5}"
        self._mutex = threading.Lock()
        self._connection = sqlalchemy.create_engine(
            _postgres(instance).postgres_url,
            isolation_level="AUTOCOMMIT",
            poolclass=sqlalchemy.NullPool,
            connect_args={
                "application_name": "embed-pipeline worker",
                "connect_timeout": _WORKER_WAITS,
                "tcp_user_timeout": _WORKER_WAITS * 1000,
                "options": f"{probes} -c tcp_user_timeout={_DATABASE_WAITS}s",
            },
        ).connect()

    def take(self, run_id: str) -> bool:
        """Lock a run; False: another process has."""
        return self._ask(f"SELECT pg_try_advisory_lock({_LOCK})", run_id)

    def release(self, run_id: str) -> None:
        """Unlock a run."""
        self._ask(f"SELECT pg_advisory_unlock({_LOCK})", run_id)

    def hold(self) -> bool:
        """Whether the connection is there, and with it the locks."""
        try:
            return self._ask("SELECT true")
        except sqlalchemy.exc.SQLAlchemyError:
            return False

    def close(self) -> None:
        """Unlock every run."""
        with self._mutex:
            self._connection.invalidate()
            self._connection.close()

    def _ask(self, statement: str, run_id: str = "") -> bool:
        with self._mutex:
            return bool(self._connection.execute(sqlalchemy.text(statement), {"run_id": run_id}).scalar())


class WorkerRunLauncher(RunLauncher[dg.DagsterInstance], ConfigurableClass):
    """Leaves runs to the workers of several machines that share Dagster's Postgres (``embed-pipeline worker``).

    A run waits in the state STARTING until a worker locks it. One that goes on without a lock has lost its worker:
    Dagster's monitor records it as failed, and it is run again (``run_retries``).
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None, return_seconds: int = 300) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inst_data = inst_data
        self.return_seconds = return_seconds

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """What ``dagster.yaml`` says of it."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """What ``dagster.yaml`` may say of it."""
        told = "Seconds for which a run that is run again is left to the machine that it was on."
        return {"return_seconds": dg.Field(int, default_value=300, description=told)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """The launcher that ``dagster.yaml`` names."""
        return cls(inst_data, **config_value)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Leave the run to the workers."""
        _postgres(self._instance)
        if context.job_code_origin is None:
            raise WorkerError(f"run {context.dagster_run.run_id} does not say where its code is; start it from the UI")
        self._instance.report_engine_event("Waits for a worker.", context.dagster_run, cls=type(self))

    def terminate(self, run_id: str) -> bool:
        """Have the run's worker, which looks every few seconds, end it; whether there was a run to end."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if not self._has_worker(run_id):
            self._instance.report_run_canceled(run, "No worker executed it.")
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """For Dagster's monitor: True."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the run's worker is still there."""
        if COMMAND_TAG in run.tags:
            return _command_health(self._instance, run)
        if self._has_worker(run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        said = f"Its worker, on machine {run.tags.get(WORKER_TAG)}, ended or was cut off."
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, msg=said)

    def _has_worker(self, run_id: str) -> bool:
        with _postgres(self._instance).connect() as connection:
            return bool(connection.execute(sqlalchemy.text(_HELD), {"run_id": run_id}).scalar())


def _postgres(instance: dg.DagsterInstance) -> "PostgresRunStorage":
    from dagster_postgres import PostgresRunStorage

    if isinstance(instance.run_storage, PostgresRunStorage):
        return instance.run_storage
    raise WorkerError("workers find their runs in Postgres; set storage.postgres in dagster.yaml (docs/scaling.md)")


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
