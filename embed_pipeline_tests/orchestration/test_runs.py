"""A command that was killed leaves no run behind that others wait for."""

from __future__ import annotations

import dagster as dg
import pytest

from embed_pipeline.orchestration.store_lock import close_abandoned, command_tags, pool_holders


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
