"""The process that serves a release: listen, load, answer, follow new releases, and finish its work on SIGTERM."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from embed_pipeline.embedding.families import ModelError
from embed_pipeline.release.manifest import BundleError, ReleaseError
from embed_pipeline.release.releases import RELEASES, current_bundle, current_version, release_folder
from embed_pipeline.serving.application import create_application
from embed_pipeline.serving.connections import GuardedProtocol, bind
from embed_pipeline.serving.request import is_loopback
from embed_pipeline.serving.service import Service
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import SERVING_KEY_VARIABLE, Paths, Settings, serving_api_key

logger = logging.getLogger(__name__)
_KEEP_ALIVE_SECONDS = 75
# A thread that computes may hold the interpreter, as torch does while it starts a GPU's kernels, and each step of each
# request then waits for its turn. Against Python's own 5 ms, 64 clients of such a thread get 1.5 times as many answers.
_TURN_SECONDS = 0.0005
# Ready answers 503 for at least so long before the listener closes, so that a load balancer can see it.
_NOTICE_SECONDS = 0.5
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_REPEAT_SECONDS = 60.0
_FIRST_RELEASE_SECONDS = 1.0
LOAD_ERRORS = (BundleError, ModelError, ReleaseError, ServingError)
"""What may be wrong with a release; anything else is a fault of this program."""


def serve(bundle: Path | None, settings: Settings, *, port: int | None = None) -> None:
    """Serve the release in ``bundle`` until SIGTERM or SIGINT, then finish what is in flight and return.

    Args:
        bundle: the release bundle; its files are checked against its hashes first. One of the store is followed:
            when another becomes current (:func:`embed_pipeline.release.releases.promote`), that one is served. None:
            the store has no release yet; until there is one, requests are answered with 503.
        settings: address, limits and the model's name.
        port: instead of ``serving.port``.

    Raises:
        ServingError: the address is taken or not this machine's, or the release cannot be served.
    """
    sys.setswitchinterval(_TURN_SECONDS)
    _raise_limit_on_connections()
    listener = bind(settings.serving, port)
    EmbeddingServer(bundle, Service(settings, serving_api_key()), listener).run_until_stopped()


def _raise_limit_on_connections() -> None:
    """Raise the limit on open files, and so on connections, to the hard limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class EmbeddingServer(uvicorn.Server):
    """uvicorn around the application, with a start that loads in the background and a stop that drains.

    Attributes:
        url: base URL of the endpoint.
    """

    def __init__(self, bundle: Path | None, service: Service, listener: socket.socket) -> None:
        """Prepare to serve ``bundle``, or the store's first release, on ``listener``."""
        host, port = listener.getsockname()[:2]
        loopback = is_loopback(host)
        if not loopback and service.api_key is None:
            shown = ", and its search page shows the corpus" if service.settings.serving.search_page else ""
            logger.warning(
                "%s needs no key and is open to every machine that reaches it%s; set %s, or serving.host = 127.0.0.1",
                host, shown, SERVING_KEY_VARIABLE,
            )  # fmt: skip
        super().__init__(
            uvicorn.Config(
                create_application(service, loopback=loopback),
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._bundle, self._service, self._listener = bundle, service, listener
        self._follower: Follower | None = None
        self._failure: ServingError | None = None
        self._loop_errors = LoopErrors()
        self._drain_since: float | None = None

    def run_until_stopped(self) -> None:
        """Serve until told to stop.

        Raises:
            ServingError: the release cannot be served.
        """
        loading = threading.Thread(target=self._load, name="loading", daemon=True)
        loading.start()
        logger.info("listening on %s", self.url)
        try:
            self.run(sockets=[self._listener])
        finally:
            loading.join()
            if self._follower is not None:
                self._follower.stop()
            self._service.close()
        if self._failure is not None:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the service which event loop answers its requests, and log the errors of that loop."""
        self._service.loop = asyncio.get_running_loop()
        self._service.loop.set_exception_handler(self._loop_errors)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining at the first signal; at the second, stop at once."""
        if self._drain_since is None:
            self.drain()
        else:
            self.force_exit = True
            super().handle_exit(sig, frame)

    def drain(self) -> None:
        """Take no new work; stop once what is in flight is answered."""
        self._service.draining = True
        self._drain_since = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now; asked ten times a second."""
        self._loop_errors.look_for_shortage()
        if self._drain_since is not None:
            waited = time.monotonic() - self._drain_since
            idle = not self._service.open_requests and waited >= _NOTICE_SECONDS
            if idle or waited >= self._service.settings.serving.drain_seconds:
                self.should_exit = True
        return await super().on_tick(counter)

    def _load(self) -> None:
        try:
            bundle = self._bundle or self._first_release()
            if bundle is None:
                return
            follower = Follower.of(self._service, bundle)
            self._service.load(bundle)
        except LOAD_ERRORS as error:
            self._failure = ServingError(f"{self._bundle or 'the first release'} cannot be served: {error}")
            self.should_exit = True
            return
        except BaseException:
            # A fault of this program: better no endpoint than one that never becomes ready.
            self.should_exit = True
            raise
        if follower is not None:
            self._follower = follower
            follower.start()

    def _first_release(self) -> Path | None:
        """The store's first release, once there is one; None: told to stop before.

        Raises:
            BundleError: what names the current release is damaged.
        """
        paths = self._service.settings.paths
        logger.info("there is no release in %s yet; waiting for the first", paths.root / RELEASES)
        while current_version(paths) is None:
            if self._service.draining:
                return None
            time.sleep(_FIRST_RELEASE_SECONDS)
        return current_bundle(paths)


class LoopErrors:
    """Logs what goes wrong outside of any request, above all that this process can hold no more connections."""

    def __init__(self) -> None:
        self._said = -_REPEAT_SECONDS

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error as asyncio describes it."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _SHORTAGES:
            self._say(error)
        else:
            logger.error("%s", context.get("message", "an error in the event loop"), exc_info=error)

    def look_for_shortage(self) -> None:
        """Log when no file can be opened: uvloop then closes new connections without a word."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        """Log the shortage, at most once a minute."""
        now = time.monotonic()
        if now - self._said >= _REPEAT_SECONDS:
            self._said = now
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            logger.error(
                "new connections are refused: %s; this process may hold %d files and connections, which "
                "'ulimit -n' or the service's LimitNOFILE raises",
                error.strerror, most,
            )  # fmt: skip


class Follower:
    """Checks regularly which release is current, and has ``service`` load a new one.

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
        """Start checking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop checking; a release that is being loaded is finished first."""
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
            before = self._service.version
            logger.error("release %s cannot be served, so %s stays in service: %s", version, before, error)  # noqa: TRY400 - the message is the whole of it
            self._service.metrics.failed_reloads.inc()

    def _look(self) -> str | None:
        try:
            return current_version(self._paths)
        except BundleError as error:
            logger.warning("%s", error)
            return self._seen
