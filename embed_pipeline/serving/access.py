"""Who may ask what: the API key, and the metrics' openness on loopback."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.requests import Request

from embed_pipeline.serving.errors import RequestError

_SCHEME = b"bearer "


def require_key(request: Request, key: bytes | None) -> None:
    """Let the request pass when it brings ``key``, or when there is none to bring.

    Raises:
        RequestError: 401.
    """
    if key is not None and not _brings(request, key):
        raise _refused("a valid API key is required: Authorization: Bearer KEY")


def require_metrics_access(request: Request, key: bytes | None, *, open_metrics: bool) -> None:
    """Let the request see metrics: from this machine, where they are open, or with the key.

    Raises:
        RequestError: 401.
    """
    if open_metrics or _is_local(request) or (key is not None and _brings(request, key)):
        return
    raise _refused("metrics are open on the loopback address only, unless serving.open_metrics is set")


def _brings(request: Request, key: bytes) -> bool:
    # Header values are bytes on the wire and compared as such; a key need not be ASCII.
    header = next((value for name, value in request.scope["headers"] if name == b"authorization"), b"")
    given = header[len(_SCHEME) :].strip() if header[: len(_SCHEME)].lower() == _SCHEME else b""
    return hmac.compare_digest(given, key)


def _is_local(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _refused(message: str) -> RequestError:
    return RequestError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
