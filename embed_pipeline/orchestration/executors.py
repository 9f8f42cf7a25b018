"""Where steps run, and which of them get the GPU."""

from typing import Any

import dagster as dg

from embed_pipeline.settings import Orchestration, load_settings

GPU_TAG = "embed_pipeline/gpu"
"""Steps with this tag are the ones that a GPU is given to."""


def gpu_step() -> dict[str, Any]:
    """Tags of a step that uses a GPU where there is one: for the Docker and the Kubernetes executor alike.

    Both give the step ``orchestration.gpus`` devices; with 0 it runs on the CPU like any other.
    """
    gpus = load_settings().orchestration.gpus
    if not gpus:
        return {GPU_TAG: "true"}
    return {
        GPU_TAG: "true",
        "docker/container_kwargs": {
            "device_requests": [{"driver": "nvidia", "count": gpus, "capabilities": [["gpu"]]}]
        },
        "dagster-k8s/config": {"container_config": {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}},
    }


def stage_executor(orchestration: Orchestration) -> dg.ExecutorDefinition:
    """The executor that the settings name: steps as processes of this machine, as containers, or as Kubernetes jobs."""
    limits = {
        "max_concurrent": orchestration.max_parallel_steps,
        "tag_concurrency_limits": [{"key": GPU_TAG, "value": "true", "limit": 1}],
    }
    if orchestration.executor == "docker":
        from embed_pipeline.orchestration.docker_executor import gpu_docker_executor

        return gpu_docker_executor.configured(limits)
    if orchestration.executor == "kubernetes":
        from dagster_k8s import k8s_job_executor

        return k8s_job_executor.configured(limits)
    return dg.multiprocess_executor.configured(limits)
