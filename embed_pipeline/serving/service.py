"""The state behind the HTTP application: which models are served, and whether the endpoint is ready."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from embed_pipeline.embedding.families import Kind
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.machine import return_freed_memory, usable_cores
from embed_pipeline.release.bundle import BASE_FOLDER
from embed_pipeline.release.manifest import Manifest, verify_bundle
from embed_pipeline.serving.batcher import Cores
from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.request import KINDS
from embed_pipeline.serving.runtimes import ServedExport, has_export, open_export, threads_of
from embed_pipeline.serving.served_model import EndpointResources, ServedModel
from embed_pipeline.serving.serving_errors import RequestError, unavailable
from embed_pipeline.settings import Settings

logger = logging.getLogger(__name__)
_WORKERS = 2
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class ModelChoice:
    """The model that a request names, and the input type where the name ends in one."""

    model: ServedModel
    kind: Kind | None


class Service:
    """Models by name, and the way from loading over ready to draining.

    Attributes:
        settings: all settings.
        api_key: what clients must send; None: anyone may ask.
        metrics: what is counted.
        executor: threads for tokenising and for writing large answers.
        draining: True once the endpoint takes no new work.
        open_requests: requests not yet answered.
        loop: event loop that answers requests, once it runs.
    """

    def __init__(self, settings: Settings, api_key: str | None = None) -> None:
        self.settings = settings
        self.api_key = api_key.encode() if api_key else None
        self.metrics = Metrics()
        self.executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="texts")
        self.draining = False
        self.open_requests = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self._models: dict[str, ServedModel] = {}
        self._shared = EndpointResources(settings.serving, self.metrics, self.executor, Cores(usable_cores()))

    @property
    def ready(self) -> bool:
        """True while requests are answered."""
        return bool(self._models) and not self.draining

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models served, the released one first."""
        return tuple(self._models.values())

    @property
    def version(self) -> str | None:
        """The release served; None before the first is loaded."""
        return next((model.manifest.version for model in self.models), None)

    def load(self, bundle: Path) -> None:
        """Check ``bundle`` and serve it in place of what was served before, which finishes what it has begun.

        Raises:
            BundleError: the bundle is not what was released.
            ModelError: an export cannot be read.
            ReleaseError: the parity figures of an export are missing or damaged.
            ServingError: the release does not fit the settings.
        """
        manifest = verify_bundle(bundle)
        models = self._open(bundle, manifest)
        before = list(self._exchange({model.name: model for model in models}))
        form = f"{models[0].precision} with {models[0].runtime}"
        logger.info("serving release %s as %s (%s)", manifest.version, self.settings.serving.model_name, form)
        # Nothing refers to a model that was replaced when its memory is returned.
        while before:
            before.pop(0).close()
        return_freed_memory()

    def _open(self, bundle: Path, manifest: Manifest) -> list[ServedModel]:
        serving = self.settings.serving
        sizes = manifest.model.matryoshka_dimensions
        models: list[ServedModel] = []
        try:
            export = open_export(bundle, manifest, self.settings)
            models.append(ServedModel(serving.model_name, export, manifest, self._shared, matryoshka=sizes))
            if has_export(manifest, BASE_FOLDER):
                # A release holds the base model as an export alone: it is there to be compared, not to be fast.
                base = ServedExport(OnnxBackend(bundle / BASE_FOLDER, threads=threads_of(serving)), "fp32")
                models.append(ServedModel(f"{serving.model_name}-base", base, manifest, self._shared))
        except Exception:
            for model in models:
                model.close()
            raise
        return models

    def _exchange(self, models: dict[str, ServedModel]) -> tuple[ServedModel, ...]:
        """Put ``models`` in place and return those before.

        Where requests are answered meanwhile, it happens between two steps of their event loop: no request has
        found an old model and not yet begun with it when the old ones are told to finish.
        """
        before = self.models
        done = threading.Event()

        def put() -> None:
            self._models = models
            done.set()

        asked = False
        while not done.is_set():
            if self.loop is None or not self.loop.is_running():
                put()
            elif not asked:
                # The loop may have begun only now.
                self.loop.call_soon_threadsafe(put)
                asked = True
            done.wait(_LOOK_SECONDS)
        return before

    def require_ready(self) -> None:
        """Pass while requests are answered.

        Raises:
            RequestError: 503 while loading or draining.
        """
        if not self.ready:
            raise unavailable("the endpoint is shutting down" if self.draining else "the model is loading")

    def find(self, name: str) -> ModelChoice:
        """The model called ``name``, with or without ``-query`` or ``-passage``.

        Raises:
            RequestError: 503 while loading, 404 when there is no such model.
        """
        models = self._models
        if not models:
            raise unavailable("the model is loading")
        if name in models:
            return ModelChoice(models[name], None)
        for kind in KINDS:
            stem = name.removesuffix(f"-{kind}")
            if stem != name and stem in models:
                return ModelChoice(models[stem], kind)
        message = f"model {name[:80]!r} is not served; there is {', '.join(models)}"
        raise RequestError(404, message, param="model", code="model_not_found")

    def close(self) -> None:
        """Finish what waits and stop every thread."""
        self.draining = True
        for model in self.models:
            model.close()
        self.executor.shutdown()
