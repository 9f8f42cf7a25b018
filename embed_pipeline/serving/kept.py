"""The endpoint that a deployment left running: which process, where, and what it serves now."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from embed_pipeline.serving.errors import ServingError
from embed_pipeline.settings import Settings, serving_api_key
from embed_pipeline.storage import write_whole

logger = logging.getLogger(__name__)

KEPT_FILE = "deployment.json"

_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Kept:
    """A process that serves.

    Attributes:
        pid: its process id.
        url: its base URL.
        release_version: what it served when it was left running.
    """

    pid: int
    url: str
    release_version: str


def keep_endpoint(store: Path, kept: Kept) -> None:
    """Note in ``<store>/deployment.json`` what was left running."""
    write_whole(store / KEPT_FILE, (json.dumps(asdict(kept), indent=2) + "\n").encode())
    logger.info("release %s stays served at %s by process %d", kept.release_version, kept.url, kept.pid)


def kept_endpoint(store: Path) -> Kept | None:
    """The endpoint that was left running and still answers; None: there is none."""
    try:
        kept = Kept(**json.loads((store / KEPT_FILE).read_text(encoding="utf-8")))
        os.kill(kept.pid, 0)
        served_release(kept.url)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, ServingError) as error:
        logger.info("the endpoint of %s is gone: %s", store / KEPT_FILE, error)
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
        message = f"{url}/v1/metadata does not say what is served: {error}"
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
        time.sleep(_POLL_SECONDS)
    keep_endpoint(settings.paths.store, Kept(kept.pid, kept.url, version))
