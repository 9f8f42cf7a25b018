"""A command that was killed leaves no run behind that others wait for, and one that is interrupted ends at once."""

from __future__ import annotations

import signal
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster_shared.error import SerializableErrorInfo

from embed_pipeline.orchestration import runs
from embed_pipeline.orchestration.partitions import chosen_batch
from embed_pipeline.orchestration.store_lock import close_abandoned, command_tags, pool_holders, unfinished_runs
from embed_pipeline_tests.project import small_project, well_behaved
from embed_pipeline_tests.stub_endpoint import Hang, stub_endpoint


@pytest.fixture
def instance():
    with dg.DagsterInstance.local_temp() as instance:
        yield instance


def start(instance, tags, status=dg.DagsterRunStatus.STARTED):
    @dg.job(name="sdg")
    def job():
        pass

    return instance.create_run_for_job(job, tags=tags, status=status).run_id


@pytest.mark.slow
def test_only_unfinished_runs_of_commands_on_this_store_are_closed(instance, tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    abandoned = start(instance, command_tags("sdg", here))
    others = [
        start(instance, command_tags("sdg", elsewhere)),
        start(instance, {}),
        start(instance, command_tags("sdg", here), dg.DagsterRunStatus.SUCCESS),
    ]
    assert close_abandoned(instance, here) == [abandoned]
    assert instance.get_run_by_id(abandoned).status == dg.DagsterRunStatus.FAILURE
    assert dg.DagsterRunStatus.FAILURE not in {instance.get_run_by_id(run).status for run in others}
    assert close_abandoned(instance, here) == []


@pytest.mark.slow
def test_what_killed_steps_held_of_a_pool_is_given_back(instance, tmp_path):
    storage = instance.event_log_storage
    storage.set_concurrency_slots("llm", 2)
    killed, working = start(instance, command_tags("sdg", tmp_path)), start(instance, {})
    for run in (killed, working):
        assert storage.claim_concurrency_slot("llm", run, "qa_pairs").is_claimed
    assert pool_holders(instance, ["llm", "gpu"]) == {"llm": sorted([killed, working])}
    close_abandoned(instance, tmp_path)
    assert pool_holders(instance, ["llm"]) == {"llm": [working]}


def test_an_asset_of_batches_says_that_one_must_be_chosen():
    with pytest.raises(dg.Failure, match="choose a partition of document_batch in Materialize"):
        chosen_batch(dg.build_asset_context())


@pytest.mark.parametrize(
    ("message", "class_name", "said"),
    [
        ("OSError: [Errno 28] No space left on device: '/store/a.parquet'\n", "OSError",
         "No space left on device: /store/a.parquet; free space there, and run the same command again"),
        ("PermissionError: [Errno 13] Permission denied: '/store'\n", "PermissionError",
         "Permission denied: /store; make it writable for this user, and run"),
        ("OSError: [Errno 30] Read-only file system\n", "OSError", "Read-only file system; make it writable"),
        ("dagster._core.errors.DagsterExecutionInterruptedError\n", "DagsterExecutionInterruptedError",
         "interrupted; finished work is kept"),
        ("embed_pipeline.storage.StorageError: a.parquet cannot be reached\n", "StorageError",
         "a.parquet cannot be reached"),
        ("KeyError: 'x'\n", "KeyError", "KeyError: 'x'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_step_that_failed_says_why_in_a_sentence(message, class_name, said, wrapped):
    error = SerializableErrorInfo(message, [], class_name)
    if wrapped:
        error = SerializableErrorInfo("DagsterExecutionStepExecutionError: ...\n", [], "DagsterError", error)
    shown = runs.in_words(error)
    assert shown.startswith(said)
    assert "dagster" not in shown
    assert "\n" not in shown


def test_every_unfinished_run_is_named_and_those_that_ended_since():
    with dg.DagsterInstance.ephemeral() as instance:
        began = datetime.now(UTC)
        going, over = start(instance, {}), start(instance, {}, dg.DagsterRunStatus.SUCCESS)
        assert unfinished_runs(instance) == [f"{going[:8]} of sdg (started)"]
        since = unfinished_runs(instance, since=began)
        assert sorted(since) == sorted([f"{going[:8]} of sdg (started)", f"{over[:8]} of sdg (success)"])
        later = datetime.now(UTC) + timedelta(seconds=2)
        assert unfinished_runs(instance, since=later) == [f"{going[:8]} of sdg (started)"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_ends_at_once_and_the_next_one_goes_on(tmp_path, tiny_model, number):
    hangs = [True]
    with stub_endpoint(lambda request: Hang(60) if hangs and len(stub.requests) > 4 else well_behaved(request)) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url)
        running = project.start("sdg")
        while len(stub.requests) < 8:
            assert running.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        running.send_signal(number)
        begun = time.monotonic()
        output, _ = running.communicate(timeout=120)
        seconds = time.monotonic() - begun
        assert running.returncode == 130, output
        assert "error: interrupted; what is done is stored" in output
        # Two seconds on a machine with nothing else to do.
        assert seconds < 6
        hangs.clear()
        first = [str(request["messages"][-1]) for request in stub.requests[:4]]
        status, output = project.command("sdg")
    assert status == 0, output
    assert not {str(request["messages"][-1]) for request in stub.requests[4 + 8 :]} & set(first), (
        "what was answered is kept"
    )
