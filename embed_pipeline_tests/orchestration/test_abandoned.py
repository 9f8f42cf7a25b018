"""A command that was killed leaves no run behind that others wait for."""

from __future__ import annotations

import dagster as dg
import pytest

from embed_pipeline.orchestration.abandoned import close_abandoned, command_tags


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def start(instance, tags, status=dg.DagsterRunStatus.STARTED):
    @dg.job(name="sdg")
    def job():
        pass

    return instance.create_run_for_job(job, tags=tags, status=status).run_id


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
