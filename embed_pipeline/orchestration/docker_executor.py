"""Steps as containers, the GPU only for those that are tagged for it.

Dagster's Docker executor gives every container the same settings. This one merges a step's own
``docker/container_kwargs`` tag into them, which is where :func:`.executors.gpu_step` asks for the device.
"""

import json
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster._core.executor.step_delegating.step_handler.base import StepHandlerContext
from dagster_docker.container_context import DockerContainerContext
from dagster_docker.docker_executor import DockerStepHandler, docker_executor

CONTAINER_TAG = "docker/container_kwargs"


class TaggedStepHandler(DockerStepHandler):
    """Dagster's step handler, with the step's own container settings on top of the common ones."""

    def _get_docker_container_context(self, step_handler_context: StepHandlerContext) -> DockerContainerContext:
        common: DockerContainerContext = super()._get_docker_container_context(step_handler_context)
        own = container_kwargs(step_handler_context.step_tags[self._get_step_key(step_handler_context)])
        merged: DockerContainerContext = common.merge(DockerContainerContext(container_kwargs=own))
        return merged


def container_kwargs(tags: Mapping[str, str]) -> dict[str, Any]:
    """A step's container settings: the JSON of its tag, device requests as the Docker client wants them."""
    import docker

    kwargs: dict[str, Any] = json.loads(tags.get(CONTAINER_TAG, "{}"))
    if "device_requests" in kwargs:
        kwargs["device_requests"] = [docker.types.DeviceRequest(**request) for request in kwargs["device_requests"]]
    return kwargs


@dg.executor(
    name="gpu_docker",
    config_schema=docker_executor.config_schema.config_type,
    requirements=dg.multiple_process_executor_requirements(),
)
def gpu_docker_executor(init_context: dg.InitExecutorContext) -> dg.Executor:
    """Dagster's Docker executor with :class:`TaggedStepHandler`; its configuration is the same."""
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
        TaggedStepHandler(config.get("image"), common),
        retries=retries,
        max_concurrent=config.get("max_concurrent"),
        tag_concurrency_limits=config.get("tag_concurrency_limits") or [],
        step_dependency_config=StepDependencyConfig.from_config(config.get("step_dependency_config")),
    )
