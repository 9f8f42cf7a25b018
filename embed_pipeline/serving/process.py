"""The endpoint as a process of its own: started, watched until ready, stopped, or left running by a deployment."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from embed_pipeline.serving.connections import bind
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import CONFIG_VARIABLE, ENVIRONMENT_PREFIX, SERVING_KEY_VARIABLE, Settings, serving_api_key
from embed_pipeline.storage import write_whole

logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_STOP_SECONDS = 10.0
_SHOWN_LOG_LINES = 20
KEPT_FILE = "deployment.json"
_ANSWER_SECONDS = 10.0
_RELEASE_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class EndpointProcess:
    """A running endpoint.

    Attributes:
        url: base URL, without ``/v1``.
        process: the process that answers there.
        log: file that it logs to.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self, seconds: float) -> None:
        """Ask the process to stop, and kill it if it is still running after ``seconds``."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds + _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning("the endpoint did not stop within %g s; killing it", seconds + _STOP_SECONDS)
            self.process.kill()
            self.process.wait()


def start_endpoint(bundle: Path, settings: Settings, *, port: int, log: Path) -> EndpointProcess:
    """Start ``python -m embed_pipeline.serving`` on ``bundle`` and wait until it is ready.

    The process gets these settings, whatever the environment says, and a session of its own, so that it outlives
    this one where it is to be left running.

    Args:
        bundle: the release bundle.
        settings: its address, limits and the longest wait.
        port: where to listen.
        log: file for its log.

    Raises:
        ServingError: the port is taken, or the process ended or was not ready in time; with its last log lines.
    """
    # Another server there might answer in place of the one started.
    bind(settings.serving, port).close()
    command = [sys.executable, "-m", "embed_pipeline.serving", str(bundle.resolve()), "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and a path that is an argument
            command,
            env=_environment(settings, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    host = settings.serving.host
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    endpoint = EndpointProcess(f"http://{reachable}:{port}", process, log)
    try:
        _await_ready(endpoint, settings.serving.start_seconds)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return endpoint


def _environment(settings: Settings, environment: Mapping[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(ENVIRONMENT_PREFIX) or name == SERVING_KEY_VARIABLE
    }
    values = settings.as_environment(("serving", "release", "gates"))
    store = {
        f"{ENVIRONMENT_PREFIX}PATHS__STORE": str(settings.paths.store.resolve()),
        f"{ENVIRONMENT_PREFIX}PATHS__ASSETS": settings.paths.assets or "none",
    }
    # Everything the endpoint reads is above; the settings file of this folder might be another's.
    return {**kept, **values, **store, CONFIG_VARIABLE: os.devnull}


def _await_ready(endpoint: EndpointProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        code = endpoint.process.poll()
        if code is not None:
            message = f"the endpoint ended with exit code {code} before it was ready{_last_lines(endpoint.log)}"
            raise ServingError(message)
        try:
            if httpx.get(f"{endpoint.url}/v1/health/ready", timeout=_STOP_SECONDS).status_code == httpx.codes.OK:
                return
        except httpx.TransportError as error:
            logger.debug("%s: %s", endpoint.url, error)
        time.sleep(_POLL_SECONDS)
    message = f"the endpoint was not ready after serving.start_seconds = {seconds:g}{_last_lines(endpoint.log)}"
    raise ServingError(message)


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LOG_LINES:]
    return "; its log ends:\n" + "\n".join(lines) if lines else "; it logged nothing"


@dataclass(frozen=True)
class RunningEndpoint:
    """A process that serves.

    Attributes:
        pid: its process id.
        url: its base URL.
        release_version: what it served when it was left running.
    """

    pid: int
    url: str
    release_version: str


def keep_endpoint(store: Path, kept: RunningEndpoint) -> None:
    """Note in ``<store>/deployment.json`` what was left running."""
    write_whole(store / KEPT_FILE, (json.dumps(asdict(kept), indent=2) + "\n").encode())
    logger.info("release %s is served at %s; process %d keeps running", kept.release_version, kept.url, kept.pid)


def kept_endpoint(store: Path) -> RunningEndpoint | None:
    """The endpoint that was left running and still answers; None: there is none."""
    try:
        kept = RunningEndpoint(**json.loads((store / KEPT_FILE).read_text(encoding="utf-8")))
        os.kill(kept.pid, 0)
        served_release(kept.url)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ServingError) as error:
        logger.info("the endpoint recorded in %s does not answer: %s", store / KEPT_FILE, error)
        return None
    return kept


def served_release(url: str) -> dict[str, Any]:
    """What the endpoint at ``url`` says of the release it serves: ``version``, ``precision`` and more.

    Raises:
        ServingError: it does not answer, or says nothing of the kind.
    """
    key = serving_api_key()
    headers = {b"Authorization": b"Bearer " + key.encode()} if key else {}
    try:
        answer = httpx.get(f"{url}/v1/metadata", headers=headers, timeout=_ANSWER_SECONDS)
        return dict(answer.raise_for_status().json()["data"][0])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        message = f"{url}/v1/metadata does not name a release: {error}"
        raise ServingError(message) from error


def confirm_release(version: str, settings: Settings) -> None:
    """Wait until the endpoint that is kept running serves ``version``; where none is, there is nothing to confirm.

    To be called once ``version`` is current. Raising, it leaves the endpoint as it is: with the release before.

    Raises:
        ServingError: it has not taken the release up in time.
    """
    kept = kept_endpoint(settings.paths.store)
    if kept is None:
        return
    deadline = time.monotonic() + settings.serving.start_seconds
    while (served := served_release(kept.url)["version"]) != version:
        if time.monotonic() > deadline:
            message = (
                f"the endpoint at {kept.url} still serves {served} after serving.start_seconds = "
                f"{settings.serving.start_seconds:g}, not {version}; its log says why"
            )
            raise ServingError(message)
        time.sleep(_RELEASE_POLL_SECONDS)
    keep_endpoint(settings.paths.store, RunningEndpoint(kept.pid, kept.url, version))
