"""Who is at work on a store: its lock, which every command holds, and runs that have not ended."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import MAX_RETRIES_TAG
from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)
COMMAND_TAG = "embed_pipeline/command"
"""Tag of a run that a command executes in its own process: the stage."""
_STORE_TAG = "embed_pipeline/store"
_LOCK = ".lock"
# Who only looks whether the lock is held holds it for an instant.
_LOCK_SECONDS = 0.5
_ABANDONED = "the command running it exited unexpectedly; run it again"
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""States of runs that wait or work."""


class StoreBusyError(RuntimeError):
    """Somebody else is at work on the store."""


@contextmanager
def locked_store(instance: dg.DagsterInstance, store: Path) -> Iterator[None]:
    """Keep other commands and the sensors off the store while the block runs; abandoned runs are closed first.

    Raises:
        StoreBusyError: another command is at work on it.
    """
    store.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(store / _LOCK).acquire(timeout=_LOCK_SECONDS):
            close_abandoned(instance, store)
            yield
    except Timeout as error:
        message = f"another command is at work on {store}; wait for it to end, or set paths.store to another folder"
        raise StoreBusyError(message) from error


def command_tags(stage: str, store: Path) -> dict[str, str]:
    """Tags of a run of the command ``stage`` on a store; nobody but the command runs it again."""
    return {COMMAND_TAG: stage, _STORE_TAG: str(store.resolve()), MAX_RETRIES_TAG: "0"}


def close_if_abandoned(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Record the run of a command as failed where nobody holds its store's lock any more; returns whether it was.

    For processes other than the command that see its store; where they do not, the run counts as running.
    """
    store = Path(run.tags[_STORE_TAG])
    if not store.is_dir():
        return False
    try:
        with FileLock(store / _LOCK).acquire(timeout=0):
            pass
    except Timeout:
        return False
    # A command records the end of its run before it lets the lock go.
    now = instance.get_run_by_id(run.run_id)
    if now is None or now.is_finished:
        return False
    instance.report_run_failed(now, _ABANDONED)
    return True


def close_abandoned(instance: dg.DagsterInstance, store: Path) -> list[str]:
    """Record as failed the unfinished runs of commands on this store, and return their ids.

    Slots of the pools (one step at a time asks the LLM, one uses the GPU) that ended runs still hold are freed.

    The caller holds the store's lock: no other command is running on it, so these runs have no process any more. An
    instance that lies in the store is this store's alone, whatever path the store had when the runs began.
    """
    here = str(store.resolve())
    own = instance.is_persistent and Path(instance.root_directory).resolve().is_relative_to(here)
    closed = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if COMMAND_TAG in run.tags and (own or run.tags.get(_STORE_TAG) == here):
            instance.report_run_failed(run, _ABANDONED)
            logger.warning("run %s of %s was abandoned; it is recorded as failed", run.run_id, run.job_name)
            closed.append(run.run_id)
    _free_slots_of_ended_runs(instance)
    return closed


def unfinished_runs(instance: dg.DagsterInstance, *, since: datetime | None = None) -> list[str]:
    """Runs that wait or work, each with its job and state; ``since``: those too that have ended since then."""
    found = instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED))
    if since is not None:
        # Databases keep the times of runs in whole seconds.
        found = [*found, *instance.get_runs(filters=dg.RunsFilter(updated_after=since - timedelta(seconds=1)))]
    runs = {run.run_id: f"{run.run_id[:8]} of {run.job_name} ({run.status.value.lower()})" for run in found}
    return sorted(runs.values())


def pool_holders(instance: dg.DagsterInstance, pools: Iterable[str]) -> dict[str, list[str]]:
    """Pool to the runs whose steps hold its slots; a step of another run waits for them."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return {}
    held = {pool: storage.get_concurrency_info(pool).claimed_slots for pool in sorted(set(pools))}
    return {pool: sorted({slot.run_id for slot in slots}) for pool, slots in held.items() if slots}


def _free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Free the pool slots of ended runs: a killed step never freed its own, and the next step would wait for it."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
