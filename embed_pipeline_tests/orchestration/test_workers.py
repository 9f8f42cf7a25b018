"""Workers of several machines share runs by locks in a real Postgres; what executes a run is a stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._serdes.config_class import ConfigurableClassData

from embed_pipeline.orchestration import workers
from embed_pipeline.orchestration.launcher import WORKER_TAG, RunLocks, WorkerError, WorkerRunLauncher
from embed_pipeline.orchestration.store_lock import COMMAND_TAG
from embed_pipeline.orchestration.workers import Worker
from embed_pipeline.serving.connections import free_port
from embed_pipeline.storage import StorageError
from embed_pipeline_tests.serving.endpoint import eventually

ROOT = Path(__file__).parent.parent.parent
# The database alone takes seconds to be made.
pytestmark = pytest.mark.slow
CANCELED, FAILURE = dg.DagsterRunStatus.CANCELED, dg.DagsterRunStatus.FAILURE
RUNNING, NOT_FOUND = "RUNNING", "NOT_FOUND"


@dg.job(name="sdg")
def job():
    pass


@pytest.fixture(scope="module")
def database():
    """The address of a Postgres server of these tests."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no Postgres server; on Debian: apt-get install postgresql")
    # It refuses to run as root, and its user may not enter pytest's folders.
    owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder, port, server = Path(tempfile.mkdtemp()), str(free_port("127.0.0.1")), None
    if owner:
        shutil.chown(folder, "postgres")
    try:
        made = [programs[-1] / "initdb", "--no-sync", "--auth=trust", "--username=u", f"--pgdata={folder}"]
        subprocess.run([*owner, *made], check=True, stdout=subprocess.DEVNULL)
        options = [f"-D{folder}", f"-k{folder}", "-h127.0.0.1", f"-p{port}", "-F"]
        server = subprocess.Popen([*owner, programs[-1] / "postgres", *options], stderr=subprocess.DEVNULL)
        ready = [programs[-1] / "pg_isready", "-q", "-h127.0.0.1", f"-p{port}"]
        eventually(lambda: subprocess.run(ready, check=False).returncode == 0)
        yield f"postgresql+psycopg2://u@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            subprocess.run([*owner, programs[-1] / "pg_ctl", f"-D{folder}", "-mimmediate", "stop"], check=True)
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def instance(database, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    launcher = {"module": "embed_pipeline.orchestration.launcher", "class": "WorkerRunLauncher"}
    config = {
        "storage": {"postgres": {"postgres_url": database}},
        "run_launcher": {**launcher, "config": {"return_seconds": 7}},
        "run_monitoring": {"enabled": True},
    }
    (home / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert isinstance(instance.run_launcher, WorkerRunLauncher)
        assert instance.run_launcher.return_seconds == 7
        yield instance


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.05)


def waiting(instance, **tags):
    """A run that the daemon left to the workers."""
    return instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTING).run_id


@contextmanager
def working(instance, machine="one", runs=1, program="import time; time.sleep(60)", return_seconds=0.0):
    """A worker while the block lasts: the runs that it started, and their processes."""
    started = {}

    def start(run):
        if callable(program):
            program()
        started[run.run_id] = subprocess.Popen([sys.executable, "-S", "-c", program], start_new_session=True)
        return started[run.run_id]

    worker = Worker(
        instance, machine, runs, connect=lambda: RunLocks(instance), start=start, return_seconds=return_seconds
    )
    thread = threading.Thread(target=worker.work)
    thread.start()
    try:
        yield started
    finally:
        while thread.is_alive():
            worker.tell()
            thread.join(0.1)
        assert all(process.poll() is not None for process in started.values()), "nothing is left at work"


def status(instance, run_id):
    return instance.get_run_by_id(run_id).status


def health(instance, run_id):
    return instance.run_launcher.check_run_worker_health(instance.get_run_by_id(run_id)).status.name


def test_each_run_is_executed_once_and_a_machine_takes_no_more_than_it_may(instance):
    runs = {waiting(instance) for _ in range(5)}
    with working(instance, "one", 2) as one, working(instance, "two", 2) as two:
        eventually(lambda: len(one) + len(two) == 4)
        assert len(one) == len(two) == 2
        assert not one.keys() & two.keys()
        assert {*one, *two} < runs
        machines = {run_id: instance.get_run_by_id(run_id).tags.get(WORKER_TAG) for run_id in runs}
        assert machines == {run_id: "one" if run_id in one else "two" if run_id in two else None for run_id in runs}
        assert [health(instance, run_id) for run_id in (*one, *two)] == [RUNNING] * 4
        next(iter(one.values())).kill()
        eventually(lambda: {*one, *two} == runs)
    # Told more than once to end, a worker kills its runs and records it.
    assert all(status(instance, run_id) is FAILURE for run_id in runs)


@pytest.mark.parametrize(
    ("program", "said"), [("raise SystemExit(3)", "status 3"), ("import os; os.kill(os.getpid(), 9)", "status -9")]
)
def test_a_run_whose_process_ends_without_a_word_has_failed(instance, program, said):
    run_id = waiting(instance)
    with working(instance, program=program):
        eventually(lambda: status(instance, run_id) is FAILURE)
    [failed] = [event for event in instance.all_logs(run_id) if event.dagster_event and event.dagster_event.is_failure]
    assert said in failed.dagster_event.message
    assert "on one" in failed.dagster_event.message


def test_a_run_is_ended_from_the_ui_whether_it_has_a_worker_or_waits_for_one(instance):
    run_id = waiting(instance)
    assert health(instance, run_id) == NOT_FOUND
    assert instance.run_launcher.terminate(run_id)
    assert status(instance, run_id) is CANCELED
    assert not instance.run_launcher.terminate(run_id)
    run_id = waiting(instance)
    with working(instance) as started:
        eventually(lambda: run_id in started)
        assert instance.run_launcher.terminate(run_id)
        eventually(lambda: status(instance, run_id) is CANCELED)
        assert started[run_id].returncode == -15, "it was asked to end, so that it could put its things in order"


def test_a_worker_that_loses_its_connection_kills_its_runs_and_goes_on_with_others(instance, database):
    run_id = waiting(instance)
    with working(instance) as started:
        eventually(lambda: run_id in started)
        instance.handle_new_event(started_event(instance, run_id))
        with sqlalchemy.create_engine(database).connect() as connection:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%worker'"
            connection.execute(sqlalchemy.text(cut))
        eventually(lambda: started[run_id].returncode == -9)
        assert health(instance, run_id) == NOT_FOUND
        after = waiting(instance)
        eventually(lambda: after in started)


def started_event(instance, run_id):
    """What a run's process records first."""
    event = dg.DagsterEvent("PIPELINE_START", job_name="sdg")
    return dg.EventLogEntry(
        error_info=None, level=20, user_message="", run_id=run_id, timestamp=0.0, dagster_event=event, job_name="sdg"
    )


def test_a_run_that_is_run_again_is_left_to_its_machine_for_a_while(instance):
    own, others, command = (
        waiting(instance, **tags) for tags in ({WORKER_TAG: "one"}, {WORKER_TAG: "two"}, {COMMAND_TAG: "sdg"})
    )
    with working(instance, runs=3, return_seconds=1.0) as started:
        eventually(lambda: own in started)
        assert others not in started
        eventually(lambda: others in started)
        assert command not in started, "its own process executes it"
    instance.delete_run(command)


def test_a_machine_that_is_not_fit_leaves_a_run_to_others(instance):
    run_id, tried = waiting(instance), threading.Event()

    def unfit():
        tried.set()
        raise StorageError("the storage cannot be reached")

    with working(instance, program=unfit):
        assert tried.wait(20)
        with working(instance, "two") as two:
            eventually(lambda: run_id in two)


def test_locks_are_one_connection_s(instance):
    with closing(RunLocks(instance)) as mine, closing(RunLocks(instance)) as other:
        assert mine.hold()
        assert mine.take("r")
        assert not other.take("r")
        mine.release("r")
        assert other.take("r")
    assert not other.hold()
    with closing(RunLocks(instance)) as third:
        assert third.take("r")


def test_workers_need_postgres_and_runs_that_say_where_their_code_is(instance):
    run = instance.create_run_for_job(job)
    with pytest.raises(WorkerError, match="does not say where its code is"):
        instance.run_launcher.launch_run(LaunchRunContext(run, None))
    instance.delete_run(run.run_id)
    with dg.DagsterInstance.ephemeral() as other, pytest.raises(WorkerError, match="set storage.postgres"):
        RunLocks(other)


def test_the_documented_configuration_is_dagster_s():
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    written = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    told = written["run_launcher"]
    launcher = ConfigurableClassData(told["module"], told["class"], yaml.safe_dump(told["config"])).rehydrate(
        RunLauncher
    )
    assert isinstance(launcher, WorkerRunLauncher)
    checked = process_config(dagster_instance_config_schema(), written)
    assert checked.success, checked.errors
    assert written["run_monitoring"]["start_timeout_seconds"] > launcher.return_seconds, "it may wait for its machine"
