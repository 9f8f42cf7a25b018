"""Following the store: when another release becomes current, it is served, without a request lost."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from embed_pipeline.embedding.models import ModelError
from embed_pipeline.release.bundle import BundleError
from embed_pipeline.release.current import RELEASES, current_version, release_folder
from embed_pipeline.release.onnx_export import ReleaseError
from embed_pipeline.serving.errors import ServingError
from embed_pipeline.serving.service import Service
from embed_pipeline.settings import Paths

logger = logging.getLogger(__name__)

LOAD_ERRORS = (BundleError, ModelError, ReleaseError, ServingError)
"""What may be wrong with a release; anything else is a fault of this program."""


class Follower:
    """Looks now and then which release is current and has ``service`` load it when that changes.

    A release that cannot be served leaves the one before in place, and is not tried again until the pointer moves.
    """

    def __init__(self, service: Service, paths: Paths, seconds: float) -> None:
        """Take what is current now for known: only a later change is followed."""
        self._service, self._paths, self._seconds = service, paths, seconds
        self._seen: str | None = None
        self._seen = self._look()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    @classmethod
    def of(cls, service: Service, bundle: Path) -> Follower | None:
        """A follower of the store that ``bundle`` lies in; None where it lies in none, or nothing is to be followed."""
        paths, seconds = service.settings.paths, service.settings.serving.reload_seconds
        inside = bundle.resolve().parent == (paths.store / RELEASES).resolve()
        return cls(service, paths, seconds) if inside and seconds != "never" else None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a release that is being loaded is finished first."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            version = self._look()
            if version == self._seen:
                continue
            self._seen = version
            if version is not None and version != self._service.version:
                self._load(version)

    def _load(self, version: str) -> None:
        try:
            self._service.load(release_folder(self._paths, version))
        except LOAD_ERRORS as error:
            logger.error("release %s cannot be served, %s stays: %s", version, self._service.version, error)  # noqa: TRY400 - the message is the whole of it
            self._service.metrics.failed_reloads.inc()

    def _look(self) -> str | None:
        try:
            return current_version(self._paths)
        except BundleError as error:
            logger.warning("%s", error)
            return self._seen
