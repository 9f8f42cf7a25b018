"""Where steps run, and which of them get the GPU."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import dagster as dg

from embed_pipeline.settings import Orchestration

GPU_TAG = "embed_pipeline/gpu"
"""Steps with this tag are the ones that a GPU is given to."""
GPU_STEP: Mapping[str, str] = MappingProxyType({GPU_TAG: "true"})
"""Tags of a step that uses a GPU where there is one: ``orchestration.gpus`` of them in a container or a pod."""


def stage_executor(orchestration: Orchestration, assets: Iterable[dg.AssetsDefinition]) -> dg.ExecutorDefinition:
    """The executor that the settings name: steps as processes of this machine, as containers, or as Kubernetes jobs."""
    limits = {
        "max_concurrent": orchestration.max_parallel_steps,
        "tag_concurrency_limits": [{"key": GPU_TAG, "value": "true", "limit": 1}],
    }
    if orchestration.executor == "docker":
        from embed_pipeline.orchestration.docker_executor import gpu_docker_executor

        return gpu_docker_executor(gpus=orchestration.gpus, tag=GPU_TAG).configured(limits)
    if orchestration.executor == "kubernetes":
        from dagster_k8s import k8s_job_executor

        wanted = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": str(orchestration.gpus)}}}}
        steps = [made.op.name for made in assets if made.is_executable and GPU_TAG in made.op.tags]
        per_step = dict.fromkeys(steps, wanted) if orchestration.gpus else {}
        return k8s_job_executor.configured({**limits, "per_step_k8s_config": per_step})
    return dg.multiprocess_executor.configured(limits)
