"""What happens by itself: batches and runs for new documents, cheap stages that follow, trainings that pay."""

from __future__ import annotations

import re

import dagster as dg
import fsspec
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)
from filelock import FileLock

from embed_pipeline.corpus import batches
from embed_pipeline.corpus.batches import batch_names
from embed_pipeline.definitions import defs
from embed_pipeline.orchestration import automation
from embed_pipeline.orchestration.automation import (
    all_schedules,
    all_sensors,
    document_sensor,
    new_pairs,
    training_schedule,
)
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.settings import Orchestration, Settings, SettingsError, load_settings

REPOSITORY = defs.get_repository_def()
GRAPH = defs.resolve_asset_graph()
PER_BATCH = {"documents", "rejected_documents", "boilerplate", "segments", "document_artifacts", "qa_pairs",
             "rejected_pairs", "qa_scores", "rejected_judgements"}  # fmt: skip


@pytest.fixture
def instance():
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A documents folder that the settings name; files settle at once."""
    path = tmp_path / "documents"
    path.mkdir()
    monkeypatch.setenv("EMBED_PIPELINE_PATHS__DOCUMENTS", str(path))
    monkeypatch.setenv("EMBED_PIPELINE_PATHS__STORE", str(tmp_path / "store"))
    monkeypatch.setenv("EMBED_PIPELINE_ORCHESTRATION__SETTLE_SECONDS", "0")
    monkeypatch.setenv("EMBED_PIPELINE_CORPUS__DOCUMENTS_PER_BATCH", "2")
    return path


def write(folder, *names, text="text"):
    for name in names:
        (folder / name).write_text(f"{text} of {name}")


def tick(instance, cursor=None):
    """One evaluation; what the daemon would do with the partitions is done."""
    sensor = document_sensor(load_settings())
    result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor, repository_def=REPOSITORY))
    if isinstance(result, dg.SensorResult):
        for request in result.dynamic_partitions_requests:
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    return result


@pytest.mark.slow
def test_new_files_become_batches_partitions_and_one_run_each(instance, folder, tmp_path):
    write(folder, "a.md", "b.md", "c.md")
    result = tick(instance)
    names = batch_names(tmp_path / "store")
    assert len(names) == 2
    assert instance.get_dynamic_partitions(document_batches.name) == names
    assert [(request.run_key, request.partition_key) for request in result.run_requests] == [(n, n) for n in names]
    assert {key.to_user_string() for key in result.run_requests[0].asset_selection} == PER_BATCH
    assert result.cursor == "2"
    assert tick(instance, result.cursor).skip_message == "3 files, nothing new"


@pytest.mark.slow
def test_dagster_accepts_what_the_sensor_asks_for(instance, folder):
    write(folder, "a.md")
    context = dg.SensorEvaluationContext(
        instance_ref=instance.get_ref(),
        last_tick_completion_time=None,
        last_run_key=None,
        cursor=None,
        repository_name=REPOSITORY.name,
        repository_def=REPOSITORY,
    )
    with context:
        data = document_sensor(load_settings()).evaluate_tick(context)
    [request] = data.run_requests
    assert request.tags["dagster/partition"] == request.partition_key


def test_a_tick_that_was_lost_after_its_batches_were_cut_is_made_good(instance, folder):
    write(folder, "a.md")
    sensor = document_sensor(load_settings())
    sensor(dg.build_sensor_context(instance=instance, repository_def=REPOSITORY))  # died before it was recorded
    result = tick(instance)
    assert len(result.run_requests) == 1
    again = tick(instance)  # partitions were added, the cursor was not
    assert [request.run_key for request in again.run_requests] == [request.run_key for request in result.run_requests]


def test_a_batch_that_got_a_number_again_is_run(instance, folder):
    # A person removed the newest manifests, to have their files read again.
    write(folder, "a.md")
    result = tick(instance, cursor="5")
    assert [request.partition_key for request in result.run_requests] == instance.get_dynamic_partitions(
        document_batches.name
    )
    assert result.cursor == "5"


@pytest.mark.slow
def test_a_file_still_being_written_is_not_taken(instance, folder, monkeypatch):
    monkeypatch.setenv("EMBED_PIPELINE_ORCHESTRATION__SETTLE_SECONDS", "3600")
    write(folder, "a.md")
    assert tick(instance).skip_message == "1 file, nothing new; 1 changed within orchestration.settle_seconds"


def test_a_batch_that_was_scored_already_is_not_run_again(instance, folder, tmp_path):
    write(folder, "a.md", "b.md", "c.md")
    tick(instance)
    first, second = batch_names(tmp_path / "store")
    instance.report_runless_asset_event(dg.AssetMaterialization("qa_scores", partition=first))
    assert [request.partition_key for request in tick(instance).run_requests] == [second]


@pytest.mark.slow
def test_a_command_at_work_on_the_store_has_its_way(instance, folder, tmp_path):
    write(folder, "a.md")
    (tmp_path / "store").mkdir()
    with FileLock(tmp_path / "store" / ".lock"):
        assert "command is at work" in tick(instance).skip_message
    assert len(tick(instance).run_requests) == 1


@pytest.mark.slow
def test_an_empty_folder_waits_but_one_that_was_emptied_is_an_alarm(instance, folder):
    assert "no usable document" in tick(instance).skip_message
    write(folder, "a.md", "b.md")
    tick(instance)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no usable document"):
        tick(instance)


@pytest.mark.slow
def test_a_mass_deletion_is_held_back_and_said(instance, folder):
    write(folder, "a.md", "b.md", "c.md", "d.md")
    cursor = tick(instance).cursor
    for name in ("a.md", "b.md", "c.md"):
        (folder / name).unlink()
    assert "3 known files no longer in" in tick(instance, cursor).skip_message


@pytest.mark.slow
def test_documents_on_object_storage_are_seen_like_those_of_a_folder(instance, folder, monkeypatch):
    system = fsspec.filesystem("memory")
    monkeypatch.setenv("EMBED_PIPELINE_PATHS__DOCUMENTS", "memory://feed/docs")
    assert "documents at memory://feed/docs do not exist" in tick(instance).skip_message
    system.pipe_file("/feed/docs/a.md", b"text of a")
    result = tick(instance)
    assert len(result.run_requests) == 1
    assert tick(instance, result.cursor).skip_message == "1 file, nothing new"
    system.pipe_file("/feed/docs/b.md", b"text of b")
    monkeypatch.setenv("EMBED_PIPELINE_ORCHESTRATION__SETTLE_SECONDS", "3600")
    assert "1 changed within" in tick(instance, result.cursor).skip_message
    system.rm("/feed", recursive=True)
    with pytest.raises(ValueError, match="documents at memory://feed/docs do not exist"):
        tick(instance, result.cursor)


def test_runs_asked_for_in_one_tick_are_bounded(instance, folder, monkeypatch):
    monkeypatch.setattr(automation, "RUNS_PER_LOOK", 3)
    write(folder, *(f"{number}.md" for number in range(9)))
    first = tick(instance)
    second = tick(instance, first.cursor)
    assert [len(first.run_requests), len(second.run_requests)] == [3, 2]
    keys = [request.run_key for request in [*first.run_requests, *second.run_requests]]
    assert len(set(keys)) == 5


@pytest.mark.slow
def test_a_tick_reads_none_of_the_files_that_it_knows(instance, folder, monkeypatch):
    write(folder, *(f"{number}.md" for number in range(50)))
    cursor = tick(instance).cursor
    with monkeypatch.context() as patched:
        patched.setattr(batches, "read_document", lambda *_: pytest.fail("a known file was read"))
        assert tick(instance, cursor).skip_message == "50 files, nothing new"
    write(folder, "new.md")
    assert len(tick(instance, cursor).run_requests) == 1
    assert len(cursor) < 10


def materialized(instance, name, **metadata):
    instance.report_runless_asset_event(dg.AssetMaterialization(name, metadata=metadata))
    return instance.get_latest_materialization_event(dg.AssetKey(name))


def newest_id(instance, name):
    return instance.fetch_materializations(dg.AssetKey(name), limit=1).records[0].storage_id


def trained_on(instance, storage_id):
    tags = {"dagster/input_event_pointer/qa_dataset": str(storage_id)}
    instance.report_runless_asset_event(dg.AssetMaterialization("finetuned_model", tags=tags))


@pytest.mark.slow
def test_new_pairs_are_the_growth_of_every_batch_since_the_last_training(instance):
    assert new_pairs(instance) is None
    materialized(instance, "qa_dataset", pairs_by_batch={"1": 30, "2": 20})
    assert new_pairs(instance) == 50
    trained_on(instance, newest_id(instance, "qa_dataset"))
    assert new_pairs(instance) == 0
    # Batch 1 lost pairs to a deletion: what batch 3 brings counts all the same.
    materialized(instance, "qa_dataset", pairs_by_batch={"1": 10, "2": 22, "3": 5})
    assert new_pairs(instance) == 7


def schedule_tick(instance):
    context = dg.build_schedule_context(instance=instance, repository_def=REPOSITORY)
    return training_schedule(Orchestration())(context)


def test_a_training_waits_for_enough_new_pairs(instance):
    assert "no accepted pairs yet" in schedule_tick(instance).skip_message
    materialized(instance, "qa_dataset", pairs_by_batch={"1": 49})
    assert "49 accepted pairs are new" in schedule_tick(instance).skip_message


@pytest.mark.slow
def test_a_training_waits_for_the_examples_that_hold_the_new_pairs(instance):
    materialized(instance, "qa_dataset", pairs_by_batch={"1": 80})
    waiting = "dataset_split, base_comparison, base_model, hard_negatives, training_examples do not hold them yet"
    assert waiting in schedule_tick(instance).skip_message


@pytest.mark.slow
def test_a_training_does_not_start_behind_a_shut_gate(instance):
    materialized(instance, "qa_dataset", pairs_by_batch={"1": 80})
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("qa_dataset"), check_name="acceptance_rate", passed=False, description="too low"
        )
    )
    assert "check acceptance_rate of qa_dataset failed: too low" in schedule_tick(instance).skip_message


def test_the_training_run_goes_from_training_to_deployment():
    job = defs.resolve_job_def("retrain")
    assert {"finetuned_model", "retrieval_evaluation", "onnx_model", "release", "deployment"} <= {
        key.to_user_string() for key in job.asset_layer.executable_asset_keys
    }


def test_nothing_runs_by_itself_unless_the_settings_say_so():
    settings = Settings()
    assert {sensor.default_status for sensor in all_sensors(settings)} == {dg.DefaultSensorStatus.STOPPED}
    assert {schedule.default_status for schedule in all_schedules(settings)} == {dg.DefaultScheduleStatus.STOPPED}
    automatic = Settings(orchestration=Orchestration(automatic=True))
    assert {sensor.default_status for sensor in all_sensors(automatic)} == {dg.DefaultSensorStatus.RUNNING}


@pytest.mark.parametrize("cron", ["0 3 * *", "61 3 * * *", "@reboot"])
def test_a_wrong_cron_is_refused_by_name(cron):
    with pytest.raises(SettingsError, match=f"orchestration.training_cron = {re.escape(repr(cron))}: expected minute"):
        training_schedule(Orchestration(training_cron=cron))


@pytest.mark.parametrize("cron", ["*/15 2-4 1,15 * 1-5", "0 3 * * mon"])
def test_a_cron_may_hold_lists_ranges_steps_and_names(cron):
    assert training_schedule(Orchestration(training_cron=cron)).cron_schedule == cron


class Following:
    """Automation ticks over one instance."""

    def __init__(self, instance):
        self.instance, self.cursor, self.selection = instance, None, dg.AssetSelection.all()

    def tick(self):
        """Names of the assets that a tick asks for."""
        result = dg.evaluate_automation_conditions(
            defs, self.instance, asset_selection=self.selection, cursor=self.cursor
        )
        self.cursor = result.cursor
        return {
            subset.key.to_user_string() for subset in result._requested_subsets if isinstance(subset.key, dg.AssetKey)
        }

    def batch(self, name):
        """A batch whose assets were made."""
        self.instance.add_dynamic_partitions(document_batches.name, [name])
        for asset in sorted(PER_BATCH):
            self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=name))

    def made(self, *assets):
        for asset in assets:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(asset))

    def checked(self, asset, *, passed):
        """Every blocking check of the asset ran."""
        newest = self.instance.fetch_materializations(dg.AssetKey(asset), limit=1).records[0]
        for check in GRAPH.asset_check_keys:
            if check.asset_key == dg.AssetKey(asset) and GRAPH.get_check_spec(check).blocking:
                self.instance.report_runless_asset_event(
                    dg.AssetCheckEvaluation(
                        asset_key=check.asset_key,
                        check_name=check.name,
                        passed=passed,
                        target_materialization_data=AssetCheckEvaluationTargetMaterializationData(
                            storage_id=newest.storage_id, run_id=newest.run_id, timestamp=newest.timestamp
                        ),
                    )
                )


@pytest.fixture
def following(instance):
    return Following(instance)


@pytest.mark.slow
def test_the_cheap_stages_follow_a_batch(following):
    following.tick()
    following.batch("00001-a")
    assert {"corpus", "qa_dataset"} <= following.tick()
    assert following.tick() == set(), "asked for once"


@pytest.mark.slow
def test_a_sensor_that_is_switched_on_late_makes_what_is_missing(instance):
    assert Following(instance).tick() == set(), "there is nothing to make anything of"
    Following(instance).batch("00001-a")
    late = Following(instance)
    assert {"corpus", "qa_dataset"} <= late.tick()
    assert late.tick() == set(), "asked for once"
    late.made("corpus", "left_out_documents", "qa_dataset", "qa_decisions")
    assert not {"corpus", "qa_dataset"} & Following(instance).tick(), "it is there"


def test_a_batch_that_came_while_the_corpus_was_being_made_is_not_forgotten(following):
    corpus = {"corpus", "left_out_documents"}
    following.selection = dg.AssetSelection.assets(*corpus)
    following.tick()
    following.batch("00001-a")
    assert following.tick() == corpus
    following.batch("00002-b")
    following.made(*corpus)
    assert following.tick() == corpus
    following.made(*corpus)
    assert following.tick() == set()


@pytest.mark.slow
def test_a_batch_that_failed_does_not_hold_up_the_others(following):
    following.tick()
    following.instance.add_dynamic_partitions(document_batches.name, ["00001-failed"])
    following.batch("00002-b")
    assert "corpus" in following.tick()


@pytest.mark.slow
@pytest.mark.parametrize(("passed", "follows"), [(True, {"dataset_split"}), (False, set())])
def test_nothing_follows_a_gate_that_is_shut(following, passed, follows):
    following.tick()
    following.batch("00001-a")
    following.tick()
    following.made("corpus", "qa_dataset", "qa_decisions")
    following.checked("qa_dataset", passed=passed)
    assert following.tick() & {"dataset_split", "hard_negatives", "training_examples"} == follows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("new", "follows"), [(["corpus"], set()), (["corpus", "qa_dataset", "qa_decisions"], {"dataset_split"})]
)
def test_a_corpus_is_split_with_its_own_questions_and_not_with_those_before(following, new, follows):
    # As when the questions wait for a batch that is still being generated.
    following.selection = dg.AssetSelection.assets("dataset_split")
    following.batch("00001-a")
    following.made("corpus", "qa_dataset", "qa_decisions", "dataset_split")
    following.checked("qa_dataset", passed=True)
    following.tick()
    following.made(*new)
    if "qa_dataset" in new:
        following.checked("qa_dataset", passed=True)
    assert following.tick() == follows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("assets", "last"),
    [
        ({"base_comparison", "base_model"}, "dataset_split"),
        ({"hard_negatives"}, "base_model"),
        ({"training_examples"}, "hard_negatives"),
    ],
)
def test_what_follows_the_split_waits_for_what_is_made_before_it(following, assets, last):
    following.selection = dg.AssetSelection.assets(*assets)
    following.batch("00001-a")
    following.made("corpus", "left_out_documents", "qa_dataset", "qa_decisions", "dataset_split")
    following.made("base_comparison", "base_model", "hard_negatives", "training_examples")
    for gate in ("qa_dataset", "dataset_split", "hard_negatives"):
        following.checked(gate, passed=True)
    following.tick()
    following.made("corpus")
    assert following.tick() == set()
    following.made(last)
    following.checked(last, passed=True)
    assert following.tick() == assets


@pytest.mark.slow
def test_corrections_wait_for_the_next_run(following):
    following.selection = dg.AssetSelection.assets("qa_dataset", "qa_decisions", "hard_negatives")
    following.batch("00001-a")
    following.made("corpus", "left_out_documents", "qa_dataset", "qa_decisions", "dataset_split")
    following.made("base_comparison", "base_model", "hard_negatives")
    for gate in ("qa_dataset", "dataset_split", "hard_negatives"):
        following.checked(gate, passed=True)
    following.tick()
    following.made("qa_reviews")
    assert following.tick() == set()
    following.made("corpus")
    assert following.tick() == {"qa_dataset", "qa_decisions"}
