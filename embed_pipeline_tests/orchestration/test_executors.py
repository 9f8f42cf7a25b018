"""Only the steps that are tagged for the GPU get one: Dagster's step handler with a fake Docker client."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster_docker.container_context import DockerContainerContext
from filelock import FileLock

from embed_pipeline.orchestration.executors import GPU_STEP, GPU_TAG, GpuStepHandler, stage_executor
from embed_pipeline.orchestration.jobs import all_assets
from embed_pipeline.orchestration.launcher import RUN_LABEL, STEP_STOP_SECONDS, StackRunLauncher
from embed_pipeline.orchestration.store_lock import command_tags
from embed_pipeline.settings import Orchestration

ROOT = Path(__file__).parent.parent.parent


class FakeClient:
    """Records what containers are created from."""

    def __init__(self):
        self.created = []
        self.containers = self

    def create(self, image, **kwargs):
        self.created.append((image, kwargs))
        return SimpleNamespace(id="c1", start=lambda: None)


class Launch(SimpleNamespace):
    """What the executor knows when it launches a step."""


def launch(monkeypatch, tags, gpus=1):
    client = FakeClient()
    common = DockerContainerContext(env_vars=["A=1"], networks=["net"], container_kwargs={"volumes": ["store:/store"]})
    handler = GpuStepHandler("image:1", common, gpus=gpus, tag=GPU_TAG)
    monkeypatch.setattr(handler, "_get_client", lambda _: client)
    context = Launch(
        instance=SimpleNamespace(run_launcher=None),
        dagster_run=SimpleNamespace(
            job_name="finetune",
            run_id="r",
            job_code_origin=SimpleNamespace(
                repository_origin=SimpleNamespace(container_image=None, container_context={}),
            ),
        ),
        execute_step_args=SimpleNamespace(
            run_id="r", step_keys_to_execute=["step"], known_state=None, get_command_args=lambda: ["dagster", "api"]
        ),
        step_tags={"step": tags},
        get_step_context=lambda _: None,
    )
    monkeypatch.setattr(dg.DagsterEvent, "step_worker_starting", lambda *args, **kwargs: None, raising=False)
    list(handler.launch_step(context))
    return client.created[0]


def test_a_tagged_step_gets_the_gpu_and_keeps_the_rest(monkeypatch):
    image, kwargs = launch(monkeypatch, GPU_STEP)
    assert image == "image:1"
    [request] = kwargs["device_requests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 1, [["gpu"]])
    assert kwargs["volumes"] == ["store:/store"]
    assert kwargs["network"] == "net"
    assert kwargs["labels"] == {RUN_LABEL: "r"}
    assert kwargs["environment"]["A"] == "1"


@pytest.mark.parametrize(("tags", "gpus"), [({}, 1), (GPU_STEP, 0)])
def test_an_untagged_step_gets_none_and_without_gpus_in_the_settings_nor_does_a_gpu_step(monkeypatch, tags, gpus):
    _, kwargs = launch(monkeypatch, tags, gpus)
    assert "device_requests" not in kwargs
    assert kwargs["volumes"] == ["store:/store"]


@pytest.mark.parametrize(
    ("value", "filled"),
    [
        ({"networks": ["${STACK}-engine"]}, {"networks": ["trial-engine"]}),
        ({"mem_limit": "${RUN_MEMORY}", "pids_limit": 9}, {"mem_limit": "6g", "pids_limit": 9}),
        ({"labels": {"a.b": "${STACK}", "c": ""}, "init": True}, {"labels": {"a.b": "trial", "c": ""}, "init": True}),
        ({"volumes": ["${STACK}-store:/data/$x"]}, {"volumes": ["trial-store:/data/$x"]}),
    ],
)
def test_a_launcher_takes_names_and_limits_from_the_stack(monkeypatch, value, filled):
    monkeypatch.setenv("STACK", "trial")
    monkeypatch.setenv("RUN_MEMORY", "6g")
    networks = value.pop("networks", [])
    launcher = StackRunLauncher(None, networks=networks, container_kwargs=value)
    assert launcher.networks == filled.pop("networks", [])
    assert launcher.container_kwargs == filled


def test_a_launcher_that_belongs_to_no_stack_says_what_is_missing(monkeypatch):
    monkeypatch.delenv("STACK", raising=False)
    with pytest.raises(dg.DagsterInvariantViolationError, match="needs the variable STACK"):
        StackRunLauncher(None, networks=["${STACK}-engine"])


@pytest.mark.parametrize(("held", "status"), [(True, "RUNNING"), (False, "NOT_FOUND")])
def test_a_launcher_misses_no_container_of_a_command(tmp_path, held, status):
    with dg.DagsterInstance.local_temp() as instance:

        @dg.job(name="sdg")
        def job():
            pass

        run = instance.create_run_for_job(job, tags=command_tags("sdg", tmp_path), status=dg.DagsterRunStatus.STARTED)
        launcher = StackRunLauncher(None)
        launcher.register_instance(instance)
        with FileLock(tmp_path / ".lock") if held else nullcontext():
            assert launcher.check_run_worker_health(run).status.name == status
        assert instance.get_run_by_id(run.run_id).is_finished is not held


class EndedClient(FakeClient):
    """Has one container of each step, and notes which are stopped."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.stopped = steps, []

    def get(self, name):
        return SimpleNamespace(stop=lambda timeout: self.stopped.append((name, timeout)))

    def list(self, filters):
        return [self.get(name) for run, name in self.steps if filters == {"label": f"{RUN_LABEL}={run}"}]


@pytest.mark.slow
def test_ending_a_run_ends_its_steps_though_its_executor_leaves_them(monkeypatch):
    with dg.DagsterInstance.local_temp() as instance:

        @dg.job(name="sdg")
        def job():
            pass

        run = instance.create_run_for_job(job, tags={"docker/container_id": "run"}, status=dg.DagsterRunStatus.STARTED)
        client = EndedClient([(run.run_id, "step"), ("other", "another run's")])
        launcher = StackRunLauncher(None, container_kwargs={"stop_timeout": 120})
        launcher.register_instance(instance)
        monkeypatch.setattr(launcher, "_get_client", lambda _: client)
        assert launcher.terminate(run.run_id)
    assert client.stopped == [("run", 120), ("step", STEP_STOP_SECONDS)]


@pytest.mark.slow
def test_the_launcher_needs_nothing_that_the_webserver_lacks():
    found = "import sys, embed_pipeline.orchestration.launcher; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout.split()
    own = {name for name in shown if name.startswith("embed_pipeline")}
    copied = (ROOT / "deploy" / "control.Dockerfile").read_text(encoding="utf-8")
    paths = {name: name.replace(".", "/") for name in own}
    assert all(f"{path}.py" in copied or f"{path}/__init__.py" in copied for path in paths.values()), own
    assert not {"torch", "polars", "mlflow"} & set(shown)


def per_step(orchestration):
    """What the Kubernetes executor is configured with, by step."""
    executor = stage_executor(orchestration, all_assets)
    return executor.config_schema.resolve_config({}).value["config"]["per_step_k8s_config"]


@pytest.mark.slow
def test_kubernetes_is_asked_for_the_same():
    pytest.importorskip("dagster_k8s")
    asked = per_step(Orchestration(executor="kubernetes", gpus=2))
    assert asked["finetuned_model"]["container_config"] == {"resources": {"limits": {"nvidia.com/gpu": "2"}}}
    assert "documents" not in asked
    assert per_step(Orchestration(executor="kubernetes")) == {}


@pytest.mark.slow
def test_the_settings_name_the_executor():
    assert stage_executor(Orchestration(), all_assets).name == "multiprocess"
    assert stage_executor(Orchestration(executor="docker"), all_assets).name == "gpu_docker"
    pytest.importorskip("dagster_k8s")
    assert stage_executor(Orchestration(executor="kubernetes"), all_assets).name == "k8s"


def test_the_training_step_carries_the_tag_into_its_op():
    from embed_pipeline.orchestration.assets.finetune import finetuned_model

    assert finetuned_model.op.tags[GPU_TAG] == "true"
    assert finetuned_model.op.pool == "gpu"


def pids_job():
    """Three assets after each other, each with the process that made it."""
    batches = dg.StaticPartitionsDefinition(["one"])

    @dg.asset(partitions_def=batches)
    def first():
        return dg.MaterializeResult(metadata={"pid": os.getpid()})

    @dg.asset(partitions_def=batches, deps=[first])
    def second():
        return dg.MaterializeResult(metadata={"pid": os.getpid()})

    @dg.asset
    def overall():
        return dg.MaterializeResult(metadata={"pid": os.getpid()})

    assets = [first, second, overall]
    executor = stage_executor(Orchestration(), assets)
    jobs = [dg.define_asset_job("batch", [first, second]), dg.define_asset_job("overall_job", [overall])]
    return dg.Definitions(assets=assets, jobs=jobs, executor=executor)


def batch_job():
    return pids_job().resolve_job_def("batch")


def overall_job():
    return pids_job().resolve_job_def("overall_job")


@pytest.mark.slow
def test_the_steps_of_a_batch_share_a_process_and_others_have_their_own(tmp_path):
    def pids(job, tags):
        with dg.execute_job(dg.reconstructable(job), instance, tags=tags) as done:
            assert done.success
            return [
                made.materialization.metadata["pid"].value
                for made in (event.event_specific_data for event in done.all_events if event.is_step_materialization)
            ]

    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        assert pids(batch_job, {"dagster/partition": "one"}) == [os.getpid()] * 2
        (alone,) = pids(overall_job, {})
        assert alone != os.getpid()
