"""Only the steps that are tagged for the GPU get one: Dagster's step handler with a fake Docker client."""

from __future__ import annotations

from types import SimpleNamespace

import dagster as dg
import pytest
from dagster_docker.container_context import DockerContainerContext

from embed_pipeline.orchestration.docker_executor import TaggedStepHandler, container_kwargs, gpu_docker_executor
from embed_pipeline.orchestration.executors import GPU_TAG, gpu_step, stage_executor
from embed_pipeline.settings import Orchestration


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


def launch(monkeypatch, tags):
    client = FakeClient()
    common = DockerContainerContext(env_vars=["A=1"], networks=["net"], container_kwargs={"volumes": ["store:/store"]})
    handler = TaggedStepHandler("image:1", common)
    monkeypatch.setattr(handler, "_get_client", lambda _: client)
    context = Launch(
        instance=SimpleNamespace(run_launcher=None),
        dagster_run=SimpleNamespace(
            job_name="finetune",
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


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setenv("EMBED_PIPELINE_ORCHESTRATION__GPUS", "1")


def as_stored(tags):
    """Tags as Dagster stores them: texts, whatever they were."""
    import json

    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in tags.items()}


def test_a_tagged_step_gets_the_gpu_and_keeps_the_rest(monkeypatch, with_gpu):
    image, kwargs = launch(monkeypatch, as_stored(gpu_step()))
    assert image == "image:1"
    [request] = kwargs["device_requests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 1, [["gpu"]])
    assert kwargs["volumes"] == ["store:/store"]
    assert kwargs["network"] == "net"
    assert kwargs["environment"]["A"] == "1"


def test_an_untagged_step_gets_none(monkeypatch, with_gpu):
    _, kwargs = launch(monkeypatch, {})
    assert "device_requests" not in kwargs
    assert kwargs["volumes"] == ["store:/store"]


def test_without_gpus_in_the_settings_a_gpu_step_runs_on_the_cpu():
    assert gpu_step() == {GPU_TAG: "true"}
    assert container_kwargs(as_stored(gpu_step())) == {}


def test_kubernetes_is_asked_for_the_same(with_gpu):
    assert gpu_step()["dagster-k8s/config"]["container_config"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_the_settings_name_the_executor():
    assert stage_executor(Orchestration()).name == "multiprocess"
    assert stage_executor(Orchestration(executor="docker")).name == gpu_docker_executor.name
    pytest.importorskip("dagster_k8s")
    assert stage_executor(Orchestration(executor="kubernetes")).name == "k8s"


def test_the_training_step_carries_the_tag_into_its_op():
    from embed_pipeline.orchestration.assets.finetune import finetuned_model

    assert finetuned_model.op.tags[GPU_TAG] == "true"
    assert finetuned_model.op.pool == "gpu"
