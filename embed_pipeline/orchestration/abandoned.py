"""Runs of commands that were killed: they stay "started", and what waits for them or for their pool waits for ever."""

import logging
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

logger = logging.getLogger(__name__)

COMMAND_TAG = "embed_pipeline/command"
"""Tag of a run that a command executes in its own process: the stage."""
_STORE_TAG = "embed_pipeline/store"
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def command_tags(stage: str, store: Path) -> dict[str, str]:
    """Tags of a run of the command ``stage`` on a store."""
    return {COMMAND_TAG: stage, _STORE_TAG: str(store.resolve())}


def close_abandoned(instance: dg.DagsterInstance, store: Path) -> list[str]:
    """Record as failed the runs of commands on this store that have not ended, and return their ids.

    What ended runs still hold of the pools (one step at a time asks the LLM, one uses the GPU) is given back.

    Only for who holds the store's lock: then no command is at work on it, and such a run has no process any more.
    """
    wanted = dg.RunsFilter(statuses=_UNFINISHED, tags={_STORE_TAG: str(store.resolve())})
    closed = []
    for run in instance.get_runs(filters=wanted):
        if COMMAND_TAG in run.tags:
            instance.report_run_failed(run, "the command that executed it ended without a word; run it again")
            logger.warning("run %s of %s was abandoned; it is recorded as failed", run.run_id, run.job_name)
            closed.append(run.run_id)
    _free_slots_of_ended_runs(instance)
    return closed


def pool_holders(instance: dg.DagsterInstance, pools: Iterable[str]) -> dict[str, list[str]]:
    """Pool to the runs whose steps are in it now; a step of another run waits for them."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return {}
    held = {pool: storage.get_concurrency_info(pool).claimed_slots for pool in sorted(set(pools))}
    return {pool: sorted({slot.run_id for slot in slots}) for pool, slots in held.items() if slots}


def _free_slots_of_ended_runs(instance: dg.DagsterInstance) -> None:
    """Give back what ended runs still hold of the pools: a killed step never did, and the next would wait for it."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    for run_id in storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)
