"""A worker: executes, on its machine, some of the runs that :class:`WorkerRunLauncher` leaves to all workers."""

import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

import dagster as dg
import psutil
from dagster import _check as check
from dagster._grpc.types import ExecuteRunArgs
from dagster_postgres.utils import DagsterPostgresException
from dagster_shared.serdes import serialize_value
from sqlalchemy.exc import SQLAlchemyError

from embed_pipeline.orchestration.absence import forget_answers
from embed_pipeline.orchestration.launcher import WORKER_TAG, RunLocks, WorkerError, WorkerRunLauncher
from embed_pipeline.orchestration.resources import open_instance
from embed_pipeline.orchestration.store_lock import COMMAND_TAG
from embed_pipeline.settings import Settings
from embed_pipeline.storage import StorageError

logger = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
_OUTAGES = (SQLAlchemyError, DagsterPostgresException, StorageError, OSError)


class Worker:
    """Executes runs, each in a process of its own, while it holds their locks."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        machine: str,
        runs: int,
        *,
        connect: Callable[[], RunLocks],
        start: Callable[[dg.DagsterRun], subprocess.Popen[bytes]],
        return_seconds: float,
    ) -> None:
        """Connect to nothing yet.

        Args:
            instance: Dagster's, shared by all machines.
            machine: this machine's name.
            runs: how many at a time.
            connect: makes the locks.
            start: starts the process that executes a run.
            return_seconds: how long a run that was on another machine is left to it.
        """
        self._instance, self._machine, self._places = instance, machine, runs
        self._connect, self._start, self._return_seconds = connect, start, return_seconds
        self._at_work: dict[str, subprocess.Popen[bytes]] = {}
        self._first_seen: dict[str, float] = {}
        self._ending: set[str] = set()
        self._told = False

    def tell(self) -> None:
        """Take no more runs, and return when those at work have ended; told again: kill them."""
        if self._told:
            self._kill()
        self._told = True

    def work(self) -> None:
        """Execute runs until told to end."""
        while not self._told:
            try:
                with closing(self._connect()) as locks:
                    self._work_under(locks)
            except _OUTAGES as error:
                logger.warning("Dagster's database cannot be reached; trying again: %s", error)
                time.sleep(LOOK_SECONDS)

    def _work_under(self, locks: RunLocks) -> None:
        """Look for runs until told to end or until the locks are lost; afterwards nothing is at work."""
        ended, lost = threading.Event(), threading.Event()

        def watch() -> None:
            # In a thread of its own, because a look may hang where the network does.
            while not ended.wait(LOOK_SECONDS):
                if not locks.hold():
                    logger.warning("the connection to Dagster's database is lost; its runs are killed and run again")
                    lost.set()
                    self._kill()
                    return

        watching = threading.Thread(target=watch, name="locks", daemon=True)
        watching.start()
        try:
            while not lost.is_set() and (self._at_work or not self._told):
                try:
                    self._look(locks)
                except _OUTAGES as error:
                    logger.warning("a look for runs failed: %s", error)
                time.sleep(LOOK_SECONDS)
        finally:
            ended.set()
            watching.join()
            self._kill()
            self._at_work.clear()

    def _look(self, locks: RunLocks) -> None:
        """See after the runs at work, then take one that waits; one at a time, so that idle machines share."""
        for run_id, process in list(self._at_work.items()):
            # In this order: what a process recorded before it ended is seen.
            status, run = process.poll(), self._instance.get_run_by_id(run_id)
            if status is not None:
                said = f"Its process on {self._machine} ended with status {status}."
                if run is not None and run.status is dg.DagsterRunStatus.CANCELING:
                    self._instance.report_run_canceled(run, said)
                elif run is not None and not run.is_finished:
                    self._instance.report_run_failed(run, said)
                locks.release(run_id)
                del self._at_work[run_id]
            elif run is None or run.status in {dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE}:
                kill_tree(process)
            elif run.status is dg.DagsterRunStatus.CANCELING and run_id not in self._ending:
                self._ending.add(run_id)
                process.terminate()
        if len(self._at_work) < self._places and not self._told:
            self._take(locks)

    def _take(self, locks: RunLocks) -> None:
        """Start the oldest run that waits and is neither another's nor left to another."""
        starting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING])
        waiting = [run for run in self._instance.get_runs(starting, ascending=True) if COMMAND_TAG not in run.tags]
        now = time.monotonic()
        self._first_seen = {run.run_id: self._first_seen.get(run.run_id, now) for run in waiting}
        for run in waiting:
            elsewhere = run.tags.get(WORKER_TAG, self._machine) != self._machine
            left = elsewhere and now - self._first_seen[run.run_id] < self._return_seconds
            if run.run_id in self._at_work or left or not locks.take(run.run_id):
                continue
            try:
                if self._begin(run.run_id):
                    return
            finally:
                if run.run_id not in self._at_work:
                    locks.release(run.run_id)

    def _begin(self, run_id: str) -> bool:
        """Start a run whose lock is held; False: another worker had it in between."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.status is not dg.DagsterRunStatus.STARTING:
            return False
        self._instance.add_run_tags(run_id, {WORKER_TAG: self._machine})
        self._at_work[run_id] = self._start(run)
        logger.info("run %s of %s %s", run_id, run.job_name, run.tags.get("dagster/partition", ""))
        return True

    def _kill(self) -> None:
        for process in list(self._at_work.values()):
            kill_tree(process)
            process.wait()


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and everything that it started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for started in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                started.kill()


def start_run(run: dg.DagsterRun) -> subprocess.Popen[bytes]:
    """Dagster's process that executes a run."""
    told = ExecuteRunArgs(job_origin=check.not_none(run.job_code_origin), run_id=run.run_id, instance_ref=None)
    # In the environment, which no list of processes shows.
    environment = {**os.environ, "DAGSTER_EXECUTE_RUN_ARGS": serialize_value(told)}
    line = [sys.executable, "-m", "dagster", "api", "execute_run"]
    return subprocess.Popen(line, env=environment, start_new_session=True)  # noqa: S603 - ours


def work(settings: Settings, runs: int) -> None:
    """Be the worker of this machine, named as its host, until SIGTERM or Ctrl-C; then finish the runs at work.

    Raises:
        WorkerError: Dagster is configured to execute runs in another way.
    """

    def start(run: dg.DagsterRun) -> subprocess.Popen[bytes]:
        forget_answers(settings.paths)
        return start_run(run)

    with open_instance(settings.paths.store) as instance:
        launcher, machine = instance.run_launcher, platform.node()
        if not isinstance(launcher, WorkerRunLauncher):
            raise WorkerError(
                f"runs are executed by {type(launcher).__name__}; in the dagster.yaml of DAGSTER_HOME, set "
                "run_launcher to WorkerRunLauncher (docs/scaling.md)"
            )
        worker = Worker(
            instance,
            machine,
            runs,
            connect=lambda: RunLocks(instance),
            start=start,
            return_seconds=launcher.return_seconds,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: worker.tell())
        logger.info("worker %s takes %d runs at a time", machine, runs)
        worker.work()
