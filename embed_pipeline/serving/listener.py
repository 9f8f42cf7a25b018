"""The address that an endpoint listens on."""

from __future__ import annotations

import socket

from embed_pipeline.serving.errors import ServingError
from embed_pipeline.settings import Serving

_BACKLOG = 2048


def bind(serving: Serving, port: int | None = None) -> socket.socket:
    """A listening socket on ``serving.host`` and ``port`` (None: ``serving.port``; 0: any free one).

    Raises:
        ServingError: naming host and port.
    """
    wanted = (0 if serving.port == "auto" else serving.port) if port is None else port
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    try:
        return socket.create_server((serving.host, wanted), family=family, backlog=_BACKLOG)
    except OSError as error:
        message = f"cannot listen on {serving.host} port {wanted}: {error.strerror}"
        raise ServingError(f"{message}; set serving.host and serving.port") from error


def free_port(host: str) -> int:
    """A port of ``host`` that is free now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        return int(listener.getsockname()[1])
