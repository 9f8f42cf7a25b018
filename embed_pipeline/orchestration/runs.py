"""Runs a stage for the assets that are not current, as its command does."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource
from dagster_shared.error import SerializableErrorInfo

from embed_pipeline.corpus.batches import cut_batches, load_batches
from embed_pipeline.escaping import counted
from embed_pipeline.orchestration.absence import forget_answers
from embed_pipeline.orchestration.freshness import failed_check, failed_gates, is_current
from embed_pipeline.orchestration.jobs import STAGES
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.orchestration.reviewing import report_reviews
from embed_pipeline.orchestration.store_lock import command_tags, locked_store, pool_holders
from embed_pipeline.settings import Settings
from embed_pipeline.storage import explain_system_error

logger = logging.getLogger(__name__)
INTERRUPTED = "interrupted; finished work is kept, and the same command resumes from there"
# Of the text that Dagster keeps of an error.
_SYSTEM_ERROR = re.compile(r"\w*Error: \[Errno (?P<number>\d+)\] (?P<strerror>[^:]+)(?:: '(?P<place>.*)')?$")


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
        with locked_store(self._instance, self._settings.paths.store):
            forget_answers(self._settings.paths)
            report_reviews(self._instance, self._settings.paths.root)
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
        found = f"{counted(len(scan.files), 'file')}, {counted(len(new), 'new batch')}"
        logger.info("%s: %s; skipped %s", scan.folder, found, scan.describe_skipped())
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
        report_reviews(self._instance, self._settings.paths.root)
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


def _explain(result: dg.ExecuteInProcessResult) -> str:
    """Why a run failed, in the words of the steps that failed.

    Raises:
        StageInterrupted: no step failed of itself.
    """
    failed = [evaluation for evaluation in result.get_asset_check_evaluations() if not evaluation.passed]
    if any(evaluation.blocking for evaluation in failed):
        # An error that blocks nothing may be the cause of one that does: it comes first.
        error = dg.AssetCheckSeverity.ERROR
        told = [evaluation for evaluation in failed if evaluation.blocking or evaluation.severity is error]
        told.sort(key=lambda evaluation: bool(evaluation.blocking))
        return "; ".join(failed_check(evaluation) for evaluation in told)
    found = []
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.error_source is ErrorSource.INTERRUPT:
                raise StageInterrupted("interrupted; what is done is stored: run the same command again to go on")
            if data.user_failure_data and data.user_failure_data.description:
                found.append(f"{event.step_key}: {data.user_failure_data.description}")
            elif data.error:
                found.append(f"{event.step_key}: {in_words(data.error)}")
    return "; ".join(found) or f"run {result.run_id} failed; see it in the Dagster UI"


def in_words(error: SerializableErrorInfo) -> str:
    """What a step raised: our own errors and the machine's in a sentence, others under the name of their class."""
    root = error
    while root.cause is not None:
        root = root.cause
    said = root.message.strip()
    if root.cls_name in {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}:
        return INTERRUPTED
    failed = _SYSTEM_ERROR.match(said)
    if failed is not None:
        return explain_system_error(OSError(int(failed["number"]), failed["strerror"], failed["place"] or None))
    return said.partition(": ")[2] if said.startswith("embed_pipeline.") else said
