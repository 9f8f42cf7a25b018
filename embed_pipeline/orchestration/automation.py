"""What happens by itself: new documents become batches and runs, cheap stages follow, a training starts when it pays.

Nothing of it runs until ``orchestration.automatic`` is set or it is switched on in the UI.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._utils.schedules import is_valid_cron_schedule
from filelock import FileLock, Timeout

from embed_pipeline.corpus.batches import NewBatches, ScanLimits, batch_names, batch_number, find_new_batches
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.escaping import counted
from embed_pipeline.orchestration.absence import forget_answers
from embed_pipeline.orchestration.assets.sdg import PAIRS_BY_BATCH
from embed_pipeline.orchestration.freshness import failed_gates, is_current
from embed_pipeline.orchestration.jobs import OVERALL_TAGS, RETRAIN, STAGES
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.orchestration.store_lock import close_abandoned
from embed_pipeline.settings import Orchestration, Settings, SettingsError

# What the sensor reads in one look, and asks for: the rest waits for the next. The daemon gives a tick a minute.
_LOOK_SECONDS = 30
LOOK_FILES = 5000
LOOK_BYTES = 500_000_000
RUNS_PER_LOOK = 50
STACK_LABEL = "embed_pipeline.stack"
"""Label of the containers of runs and steps: the stack that they belong to."""
_PARTITIONS = str(document_batches.name)
_PER_BATCH = [assets for assets in STAGES["sdg"] if assets.partitions_def is not None]
_OVERALL = [assets for name in ("sdg", "prep") for assets in STAGES[name] if assets.partitions_def is None]


def document_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor that looks at the documents folder."""
    options = settings.orchestration

    @dg.sensor(
        job_name="sdg",
        minimum_interval_seconds=options.poll_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING if options.automatic else dg.DefaultSensorStatus.STOPPED,
        description="New, changed and deleted documents: cuts them into batches and starts a run of sdg for each.",
    )
    def new_documents(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        """Look at the documents folder and ask for a run of every batch that has had none.

        The manifests in the store say what has been seen; the cursor is the number of the last batch that a run was
        asked for. A tick that is cut off is made good by the next, and one that is made twice asks for the same run
        keys.
        """
        settings.paths.store.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(settings.paths.store / ".lock").acquire(timeout=0):
                close_abandoned(context.instance, settings.paths.store)
                forget_answers(settings.paths)
                look = find_new_batches(settings, _pace(options))
        except Timeout:
            return dg.SkipReason(f"an embed-pipeline command is at work on {settings.paths.store}")
        except CorpusError as error:
            if batch_names(settings.paths.root):
                raise  # what was there is not: an alarm
            return dg.SkipReason(str(error))
        if look.held_back:
            context.log.warning(_held_back(look, settings))
        return _asked_for(context, look, settings)

    return new_documents


def _pace(options: Orchestration) -> ScanLimits:
    return ScanLimits(
        settle_seconds=options.settle_seconds,
        files=LOOK_FILES,
        bytes=LOOK_BYTES,
        seconds=_LOOK_SECONDS,
        max_deleted_share=options.max_deleted_share,
    )


def _asked_for(
    context: dg.SensorEvaluationContext, look: NewBatches, settings: Settings
) -> dg.SensorResult | dg.SkipReason:
    """Partitions and run requests of the batches that have had none, oldest first."""
    known = set(context.instance.get_dynamic_partitions(_PARTITIONS))
    last = int(context.cursor or 0)
    names = batch_names(settings.paths.root)
    due = [name for name in names if batch_number(name) > last or name not in known][:RUNS_PER_LOOK]
    if not due:
        return dg.SkipReason(_nothing_due(look, settings))
    scored = context.instance.get_materialized_partitions(dg.AssetKey("qa_scores"))
    added = [name for name in names if name not in known]
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=name,
                partition_key=name,
                asset_selection=[key for assets in _PER_BATCH for key in sorted(assets.keys, key=str)],
            )
            for name in due
            if name not in scored
        ],
        dynamic_partitions_requests=[document_batches.build_add_request(added)] if added else [],
        cursor=str(max(last, batch_number(due[-1]))),
    )


def _held_back(look: NewBatches, settings: Settings) -> str:
    return (
        f"{counted(look.held_back, 'known file')} no longer in {settings.paths.documents}, not treated as deleted: a "
        "folder cannot be read, or more than orchestration.max_deleted_share disappeared at once. Restore the files, "
        "or accept the deletion with: embed-pipeline sdg"
    )


def _nothing_due(look: NewBatches, settings: Settings) -> str:
    found = [f"{counted(len(look.scan.files), 'file')}, nothing new"]
    if look.unsettled:
        found.append(f"{look.unsettled} changed within orchestration.settle_seconds")
    if look.waiting:
        found.append(f"{look.waiting} wait for the next look")
    if look.held_back:
        found.append(_held_back(look, settings))
    return "; ".join(found)


def cheap_stages(options: Orchestration) -> dg.AutomationConditionSensorDefinition:
    """The automation of what is cheap to make: it follows what it is made from."""
    return dg.AutomationConditionSensorDefinition(
        "cheap_stages",
        target=dg.AssetSelection.assets(*_OVERALL),
        description="Corpus, questions, split, negatives and examples follow what they are made from, gates respected.",
        default_status=dg.DefaultSensorStatus.RUNNING if options.automatic else dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=options.poll_seconds,
        run_tags=dict(OVERALL_TAGS),
    )


def training_schedule(options: Orchestration) -> dg.ScheduleDefinition:
    """The schedule that considers a training.

    Raises:
        SettingsError: ``training_cron`` is no schedule.
    """
    if not is_valid_cron_schedule(options.training_cron):
        raise SettingsError(
            f"setting orchestration.training_cron = {options.training_cron!r}: expected minute, hour, day, month and "
            "weekday, such as '0 3 * * mon'"
        )

    @dg.schedule(
        cron_schedule=options.training_cron,
        job_name=RETRAIN,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING if options.automatic else dg.DefaultScheduleStatus.STOPPED,
        description="Trains when enough pairs are new, then compares, exports, and deploys what passes the gates.",
    )
    def training(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        """Ask for a training when ``orchestration.min_new_pairs`` came since the last one and no gate is shut."""
        new, least = new_pairs(context.instance), options.min_new_pairs
        if new is None:
            return dg.SkipReason("there are no accepted pairs yet")
        if new < least:
            return dg.SkipReason(
                f"{new} accepted pairs are new since the last training, orchestration.min_new_pairs {least}"
            )
        repository = context.repository_def
        if repository is None:
            raise dg.DagsterInvariantViolationError("the schedule is evaluated without its repository")
        keys = {key for assets in _OVERALL for key in assets.keys}
        failed = failed_gates(context.instance, repository.asset_graph, keys)
        if failed:
            return dg.SkipReason(f"{new} accepted pairs are new, but {'; '.join(failed)}")
        stale = [
            key.to_user_string()
            for assets in STAGES["prep"]
            for key in sorted(assets.keys, key=str)
            if not is_current(context.instance, repository.assets_defs_by_key[key], None)
        ]
        if stale:
            return dg.SkipReason(f"{new} accepted pairs are new, but {', '.join(stale)} do not hold them yet")
        return dg.RunRequest(tags={"embed_pipeline/new_pairs": str(new)})

    return training


def new_pairs(instance: dg.DagsterInstance) -> int | None:
    """Accepted pairs that the last training did not have: the growth of every batch, summed; None: there are none."""
    dataset = dg.AssetKey("qa_dataset")
    now = instance.get_latest_materialization_event(dataset)
    if now is None or now.asset_materialization is None:
        return None
    before: Mapping[str, int] = {}
    trained = instance.get_latest_materialization_event(dg.AssetKey("finetuned_model"))
    if trained is not None and trained.asset_materialization is not None:
        pointer = (trained.asset_materialization.tags or {}).get(
            f"dagster/input_event_pointer/{dataset.to_user_string()}"
        )
        if pointer is not None and pointer.isdecimal():
            wanted = dg.AssetRecordsFilter(asset_key=dataset, storage_ids=[int(pointer)])
            records = instance.fetch_materializations(wanted, limit=1).records
            if records and records[0].asset_materialization is not None:
                before = _by_batch(records[0].asset_materialization)
    after = _by_batch(now.asset_materialization)
    return sum(max(0, count - before.get(batch, 0)) for batch, count in after.items())


def _by_batch(materialization: dg.AssetMaterialization) -> Mapping[str, int]:
    entry = materialization.metadata.get(PAIRS_BY_BATCH)
    value: Any = entry.value if entry is not None else {}
    return dict(json.loads(value) if isinstance(value, str) else value)


def all_sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """The sensors, as the settings want them."""
    return [document_sensor(settings), cheap_stages(settings.orchestration)]


def all_schedules(settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules, as the settings want them."""
    options = settings.orchestration
    return [training_schedule(options), *([container_schedule(options)] if options.executor == "docker" else [])]


def container_schedule(options: Orchestration) -> dg.ScheduleDefinition:
    """The schedule that removes the containers of ended runs and steps, once a day."""

    @dg.op
    def ended_containers(context: dg.OpExecutionContext) -> None:
        """Remove those that have ended and were made over ``orchestration.container_hours`` ago, with their logs."""
        import docker

        stack = os.environ["STACK"]
        filters = {"label": f"{STACK_LABEL}={stack}", "until": f"{math.ceil(options.container_hours * 60)}m"}
        pruned = docker.from_env().containers.prune(filters=filters)
        removed = pruned.get("ContainersDeleted") or []
        context.log.info("%s removed", counted(len(removed), "container"))

    @dg.job(executor_def=dg.in_process_executor, description="Removes the containers of ended runs and steps.")
    def remove_containers() -> None:
        ended_containers()

    return dg.ScheduleDefinition(
        name="containers",
        job=remove_containers,
        cron_schedule="17 4 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Removes the containers of ended runs and steps after orchestration.container_hours.",
    )
