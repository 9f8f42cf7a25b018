"""The state behind the HTTP application: which models are served, and whether the endpoint is ready."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from embed_pipeline.embedding.encoder import Kind
from embed_pipeline.serving.errors import RequestError, unavailable
from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.model import ServedModel, load_bundle
from embed_pipeline.serving.request import KINDS
from embed_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_WORKERS = 2


@dataclass(frozen=True)
class Found:
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
    """

    def __init__(self, settings: Settings, api_key: str | None = None) -> None:
        self.settings = settings
        self.api_key = api_key.encode() if api_key else None
        self.metrics = Metrics()
        self.executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix="texts")
        self.draining = False
        self.open_requests = 0
        self._models: dict[str, ServedModel] = {}
        self._turn = threading.Lock()

    @property
    def ready(self) -> bool:
        """True while requests are answered."""
        return bool(self._models) and not self.draining

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """The models served, the released one first."""
        return tuple(self._models.values())

    def load(self, bundle: Path) -> None:
        """Check ``bundle`` and serve it in place of what was served before.

        Raises:
            BundleError: the bundle is not what was released.
            ModelError: its export cannot be read.
            ServingError: its export does not fit the settings.
        """
        manifest = load_bundle(bundle)
        model = ServedModel(
            self.settings.serving.model_name,
            bundle / "onnx",
            manifest,
            serving=self.settings.serving,
            metrics=self.metrics,
            executor=self.executor,
            turn=self._turn,
        )
        before = self.models
        self._models = {model.name: model}
        logger.info("serving release %s as %s", manifest.version, model.name)
        for old in before:
            old.close()

    def require_ready(self) -> None:
        """Pass while requests are answered.

        Raises:
            RequestError: 503 while loading or draining.
        """
        if not self.ready:
            raise unavailable("the endpoint is shutting down" if self.draining else "the model is loading")

    def find(self, name: str) -> Found:
        """The model called ``name``, with or without ``-query`` or ``-passage``.

        Raises:
            RequestError: 503 while loading, 404 when there is no such model.
        """
        models = self._models
        if not models:
            raise unavailable("the model is loading")
        if name in models:
            return Found(models[name], None)
        for kind in KINDS:
            stem = name.removesuffix(f"-{kind}")
            if stem != name and stem in models:
                return Found(models[stem], kind)
        message = f"model {name[:80]!r} is not served; there is {', '.join(models)}"
        raise RequestError(404, message, param="model", code="model_not_found")

    def close(self) -> None:
        """Finish what waits and stop every thread."""
        self.draining = True
        for model in self.models:
            model.close()
        self.executor.shutdown()
