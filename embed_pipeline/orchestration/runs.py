"""Runs a stage for the assets that are not current, as its command does, and closes runs of killed commands."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource
from filelock import FileLock, Timeout

from embed_pipeline.corpus.batches import cut_batches, load_batches
from embed_pipeline.orchestration.freshness import failed_check, failed_gates, is_current
from embed_pipeline.orchestration.jobs import STAGES
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.settings import Settings

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


class StageFailed(RuntimeError):  # noqa: N818 - an outcome, named as the commands speak of it
    """A step or a blocking check of a stage failed; the message is the one that it gave."""


class StageInterrupted(StageFailed):
    """A person or the system ended the command."""


@dataclass
class StageOutcome:
    """Which assets a command made and which were current already, as ``asset`` or ``asset[batch]``."""

    made: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)


class StageRunner:
    """Runs stages against one Dagster instance; one at a time on a store."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance, settings: Settings) -> None:
        self._definitions = definitions
        self._instance = instance
        self._settings = settings
        # With the code versions that the settings give them.
        self._stages = {
            stage: [definitions.resolve_assets_def(min(assets.keys)) for assets in group]
            for stage, group in STAGES.items()
        }

    def run(self, stage: str, *, force: bool = False, config: Mapping[str, Any] | None = None) -> StageOutcome:
        """Materialize the assets of ``stage`` that are not current, in one run of its job.

        For sdg there is a run for each document batch before.

        Args:
            stage: a key of :data:`STAGES`.
            force: make everything again; train again even where the weights are still there.
            config: asset name to its run configuration.

        Raises:
            StageFailed: an input is missing or its blocking check failed, or a step or a blocking check fails.
            StageInterrupted: a signal ended the run.
            CorpusError: the documents folder holds nothing that can be read.
        """
        outcome = StageOutcome()
        config = {**({"finetuned_model": {"anew": True}} if force else {}), **(config or {})}
        with self._locked_store():
            if stage == "sdg":
                self._add_batches()
            self._check_inputs(stage)
            per_batch = [assets for assets in self._stages[stage] if assets.partitions_def is not None]
            overall = [assets for assets in self._stages[stage] if assets.partitions_def is None]
            if per_batch:
                for batch in load_batches(self._settings.paths.root):
                    self._make(stage, per_batch, batch.name, outcome, force=force, config={})
            self._make(stage, overall, None, outcome, force=force, config=config)
        return outcome

    def _add_batches(self) -> None:
        new, scan = cut_batches(self._settings)
        logger.info(
            "%s: %d files, %d new batches; skipped %s", scan.folder, len(scan.files), len(new), scan.describe_skipped()
        )
        known = set(self._instance.get_dynamic_partitions(str(document_batches.name)))
        names = [batch.name for batch in load_batches(self._settings.paths.root) if batch.name not in known]
        if names:
            self._instance.add_dynamic_partitions(str(document_batches.name), names)

    def _make(
        self,
        stage: str,
        assets: Sequence[dg.AssetsDefinition],
        batch: str | None,
        outcome: StageOutcome,
        *,
        force: bool,
        config: Mapping[str, Any],
    ) -> None:
        """Run the stage's job for the stale assets of ``assets``, and note in ``outcome`` which were made."""
        stale = {key for definition in assets for key in definition.keys} if force else self._stale(assets, batch)
        for key in (key for definition in assets for key in sorted(definition.keys, key=str)):
            named = outcome.made if key in stale else outcome.current
            named.append(key.to_user_string() + (f"[{batch}]" if batch else ""))
        if not stale:
            return
        names = {key.to_user_string() for key in stale}
        logger.info("%s%s: %s", stage, f" {batch}" if batch else "", ", ".join(sorted(names)))
        for pool, runs in pool_holders(self._instance, (d.op.pool for d in assets if d.op.pool)).items():
            logger.info("waiting for run %s, which is in pool %r: one step at a time", ", ".join(runs), pool)
        result = self._definitions.resolve_job_def(stage).execute_in_process(
            instance=self._instance,
            partition_key=batch,
            asset_selection=sorted(stale, key=str),
            raise_on_error=False,
            run_config={
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                "ops": {name: {"config": values} for name, values in config.items() if name in names},
            },
            tags=command_tags(stage, self._settings.paths.store),
        )
        if not result.success:
            raise StageFailed(_explain(result))

    def _stale(self, assets: Sequence[dg.AssetsDefinition], batch: str | None) -> set[dg.AssetKey]:
        """Assets that are not current or whose blocking check failed, and those of ``assets`` that read them."""
        stale: set[dg.AssetKey] = set()
        for definition in assets:
            reads_stale = any(stale & definition.asset_deps[key] for key in definition.keys)
            if reads_stale or not is_current(self._instance, definition, batch) or self._failed(definition):
                stale |= definition.keys
        return stale

    def _check_inputs(self, stage: str) -> None:
        """Refuse to start from an asset that is missing or whose blocking check failed."""
        group = self._stages[stage]
        own = {key for definition in group for key in definition.keys}
        for definition in self._before(stage):
            needed = definition.keys & {dep for a in group for key in a.keys for dep in a.asset_deps[key]} - own
            for key in sorted(needed, key=str):
                if self._instance.get_latest_materialization_event(key) is None:
                    maker = next(name for name, made in self._stages.items() if definition in made)
                    raise StageFailed(f"{key.to_user_string()} is not there yet; run: embed-pipeline {maker}")
            failed = self._failed(definition)
            if failed:
                raise StageFailed(f"{stage} does not go on: {failed}")

    def _before(self, stage: str) -> list[dg.AssetsDefinition]:
        names = list(self._stages)
        return [definition for name in names[: names.index(stage)] for definition in self._stages[name]]

    def _failed(self, definition: dg.AssetsDefinition) -> str:
        """The blocking checks that failed in their last run on the definition's assets, in words; empty: none."""
        graph = self._definitions.resolve_asset_graph()
        return "; ".join(failed_gates(self._instance, graph, definition.keys))

    def status(self) -> list[tuple[str, str, str, str]]:
        """Stage, asset, state (current, stale, failed or missing) and time made of every asset, in flow order."""
        batches = [batch.name for batch in load_batches(self._settings.paths.root)]
        rows = []
        for stage, group in self._stages.items():
            for definition in group:
                parts: list[str | None] = list(batches) if definition.partitions_def is not None else [None]
                current = sum(is_current(self._instance, definition, part) for part in parts)
                for key in sorted(definition.keys, key=str):
                    event = self._instance.get_latest_materialization_event(key)
                    made = f"{datetime.fromtimestamp(event.timestamp, tz=UTC):%Y-%m-%d %H:%M} UTC" if event else ""
                    state = "current" if parts and current == len(parts) else "stale" if event else "missing"
                    if definition.partitions_def is not None:
                        state += f" ({current} of {len(parts)} batches)"
                    rows.append((stage, key.to_user_string(), self._failed(definition) or state, made))
        return rows

    @contextmanager
    def _locked_store(self) -> Iterator[None]:
        store = self._settings.paths.store
        store.mkdir(parents=True, exist_ok=True)
        lock = FileLock(store / ".lock")
        try:
            with lock.acquire(timeout=0):
                close_abandoned(self._instance, store)
                yield
        except Timeout as error:
            message = f"another command is at work on {store}; wait for it to end, or set paths.store to another folder"
            raise StageFailed(message) from error


def _explain(result: dg.ExecuteInProcessResult) -> str:
    """Why a run failed, in the words of the steps that failed.

    Raises:
        StageInterrupted: no step failed of itself.
    """
    failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
    if any(e.blocking for e in failed):
        # An error that blocks nothing may be the cause of one that does: it comes first.
        told = [e for e in failed if e.blocking or e.severity is dg.AssetCheckSeverity.ERROR]
        told.sort(key=lambda e: bool(e.blocking))
        return "; ".join(failed_check(e.check_name, e.asset_key, e.description) for e in told)
    found = []
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.error_source is ErrorSource.INTERRUPT:
                raise StageInterrupted("interrupted; what is done is stored: run the same command again to go on")
            if data.user_failure_data and data.user_failure_data.description:
                found.append(f"{event.step_key}: {data.user_failure_data.description}")
            elif data.error:
                root = data.error.cause or data.error
                found.append(f"{event.step_key}: {root.message.strip()}")
    return "; ".join(found) or f"run {result.run_id} failed; see it in the Dagster UI"


def command_tags(stage: str, store: Path) -> dict[str, str]:
    """Tags of a run of the command ``stage`` on a store."""
    return {COMMAND_TAG: stage, _STORE_TAG: str(store.resolve())}


def close_abandoned(instance: dg.DagsterInstance, store: Path) -> list[str]:
    """Record as failed the unfinished runs of commands on this store, and return their ids.

    Slots of the pools (one step at a time asks the LLM, one uses the GPU) that ended runs still hold are freed.

    The caller holds the store's lock: no other command is running on it, so these runs have no process any more.
    """
    wanted = dg.RunsFilter(statuses=_UNFINISHED, tags={_STORE_TAG: str(store.resolve())})
    closed = []
    for run in instance.get_runs(filters=wanted):
        if COMMAND_TAG in run.tags:
            instance.report_run_failed(run, "the command running it exited unexpectedly; run it again")
            logger.warning("run %s of %s was abandoned; it is recorded as failed", run.run_id, run.job_name)
            closed.append(run.run_id)
    _free_slots_of_ended_runs(instance)
    return closed


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
