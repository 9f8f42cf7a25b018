"""Where steps run: processes, containers or Kubernetes jobs, and the GPU for those tagged for it."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import dagster as dg
import docker
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor.base import Executor
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster._core.executor.step_delegating.step_handler.base import StepHandlerContext
from dagster._core.storage.tags import PARTITION_NAME_TAG
from dagster_docker.container_context import DockerContainerContext
from dagster_docker.docker_executor import DockerStepHandler, docker_executor

from embed_pipeline.orchestration.launcher import RUN_LABEL, STEP_STOP_SECONDS
from embed_pipeline.settings import Orchestration

GPU_TAG = "embed_pipeline/gpu"
"""Steps with this tag are the ones that a GPU is given to."""
GPU_STEP: Mapping[str, str] = MappingProxyType({GPU_TAG: "true"})
"""Tags of a step that uses a GPU where there is one: ``orchestration.gpus`` of them in a container or a pod."""


def stage_executor(orchestration: Orchestration, assets: Iterable[dg.AssetsDefinition]) -> dg.ExecutorDefinition:
    """The executor that the settings name: steps as processes of this machine, as containers, or as Kubernetes jobs.

    Where they are processes, the steps of a batch, which come one after another, share that of their run.
    """
    limits = {
        "max_concurrent": orchestration.max_parallel_steps,
        "tag_concurrency_limits": [{"key": GPU_TAG, "value": "true", "limit": 1}],
    }
    if orchestration.executor == "docker":
        stopping = {"container_kwargs": {"stop_timeout": STEP_STOP_SECONDS}}
        return gpu_docker_executor(gpus=orchestration.gpus, tag=GPU_TAG).configured({**limits, **stopping})
    if orchestration.executor == "kubernetes":
        from dagster_k8s import k8s_job_executor

        wanted = {"container_config": {"resources": {"limits": {"nvidia.com/gpu": str(orchestration.gpus)}}}}
        steps = [made.op.name for made in assets if made.is_executable and GPU_TAG in made.op.tags]
        per_step = dict.fromkeys(steps, wanted) if orchestration.gpus else {}
        return k8s_job_executor.configured({**limits, "per_step_k8s_config": per_step})
    return batch_in_process.configured(limits)


class BatchInProcess(Executor):
    """Steps of a run over one batch in the run's process, which loads the code once; all others by ``several``."""

    def __init__(self, several: Executor) -> None:
        self._several = several

    @property
    def retries(self) -> RetryMode:  # noqa: D102 - Dagster's
        return self._several.retries

    def execute(  # noqa: D102 - Dagster's
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[dg.DagsterEvent]:
        alone = PARTITION_NAME_TAG in plan_context.dagster_run.tags
        executor = InProcessExecutor(self.retries) if alone else self._several
        return executor.execute(plan_context, execution_plan)


@dg.executor(
    name="multiprocess",
    config_schema=dg.multiprocess_executor.config_schema.config_type,
    requirements=dg.multiple_process_executor_requirements(),
)
def batch_in_process(init_context: dg.InitExecutorContext) -> Executor:
    """Dagster's multiprocess executor with :class:`BatchInProcess`; its configuration is the same."""
    create = dg.multiprocess_executor.executor_creation_fn
    if create is None:
        raise dg.DagsterInvariantViolationError("Dagster's multiprocess executor cannot be made")
    return BatchInProcess(create(init_context))


class GpuStepHandler(DockerStepHandler):
    """Dagster's step handler: names the run on its containers, and gives ``gpus`` devices to steps with the ``tag``."""

    def __init__(self, image: str | None, common: DockerContainerContext, *, gpus: int, tag: str) -> None:
        super().__init__(image, common)
        self._gpus, self._tag = gpus, tag

    def _get_docker_container_context(self, step_handler_context: StepHandlerContext) -> DockerContainerContext:
        common: DockerContainerContext = super()._get_docker_container_context(step_handler_context)
        labels = {**common.container_kwargs.get("labels", {}), RUN_LABEL: step_handler_context.dagster_run.run_id}
        common = common.merge(DockerContainerContext(container_kwargs={"labels": labels}))
        tags = step_handler_context.step_tags[self._get_step_key(step_handler_context)]
        if not self._gpus or self._tag not in tags:
            return common
        device = docker.types.DeviceRequest(driver="nvidia", count=self._gpus, capabilities=[["gpu"]])
        merged: DockerContainerContext = common.merge(
            DockerContainerContext(container_kwargs={"device_requests": [device]})
        )
        return merged


def gpu_docker_executor(*, gpus: int, tag: str) -> dg.ExecutorDefinition:
    """Dagster's Docker executor with :class:`GpuStepHandler`; its configuration is the same."""

    @dg.executor(
        name="gpu_docker",
        config_schema=docker_executor.config_schema.config_type,
        requirements=dg.multiple_process_executor_requirements(),
    )
    def executor(init_context: dg.InitExecutorContext) -> dg.Executor:
        config: Mapping[str, Any] = init_context.executor_config
        retries = RetryMode.from_config(config["retries"])
        if retries is None:
            raise dg.DagsterInvariantViolationError(f"executor retries {config['retries']!r} name no mode")
        networks = config.get("networks") or ([config["network"]] if config.get("network") else [])
        common = DockerContainerContext(
            registry=config.get("registry"),
            env_vars=config.get("env_vars") or [],
            networks=networks,
            container_kwargs=config.get("container_kwargs"),
        )
        return StepDelegatingExecutor(
            GpuStepHandler(config.get("image"), common, gpus=gpus, tag=tag),
            retries=retries,
            max_concurrent=config.get("max_concurrent"),
            tag_concurrency_limits=config.get("tag_concurrency_limits") or [],
            step_dependency_config=StepDependencyConfig.from_config(config.get("step_dependency_config")),
        )

    return executor
