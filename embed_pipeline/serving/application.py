"""The HTTP application: OpenAI's embeddings endpoint, what operators ask of it, and the middleware around both."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_pipeline.serving.connections import HostMiddleware
from embed_pipeline.serving.metrics import CONTENT_TYPE
from embed_pipeline.serving.openapi import openapi_document
from embed_pipeline.serving.request import (
    FREE_BODY_BYTES,
    EmbeddingRequest,
    check_dimensions,
    check_kind,
    parse_request,
    read_body,
    require_key,
    require_metrics_access,
)
from embed_pipeline.serving.search_page import Search, search_page
from embed_pipeline.serving.served_model import Embedded, ServedModel, cut
from embed_pipeline.serving.service import Service
from embed_pipeline.serving.serving_errors import RequestError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# Nobody reads this answer; the number is the one that proxies log for a client that left.
_CLIENT_LEFT = 499
# Answers with more texts than this are written in a thread, a text at a time.
_INLINE_ROWS = 8
# After an early answer the rest of the body is read and thrown away for so long: a client that is still sending
# would otherwise see its connection reset instead of the answer.
_LINGER_SECONDS = 2.0


class Endpoint:
    """The handlers, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._search = Search(service)

    def routes(self) -> list[Route]:
        """Every route, aliases included."""
        page = [Route("/", self.page), Route("/search", self.search)]
        return [
            *(page if self._service.settings.serving.search_page else []),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/embeddings", self.embeddings, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/health/live", self.live),
            Route("/v1/health/ready", self.ready),
            Route("/v1/metrics", self.metrics),
            Route("/metrics", self.metrics),
            Route("/v1/metadata", self.metadata),
            Route("/openapi.json", self.openapi),
        ]

    async def embeddings(self, request: Request) -> Response:
        """Embed texts."""
        require_key(request, self._service.api_key)
        self._service.require_ready()
        try:
            body = await read_body(request, self._service.settings.serving.max_body_bytes)
            return await _while_connected(request, self._answer(body))
        except ClientDisconnect:
            self._service.metrics.disconnected.inc()
            return Response(status_code=_CLIENT_LEFT)

    async def _answer(self, body: bytes) -> Response:
        loop, executor = asyncio.get_running_loop(), self._service.executor
        if len(body) > FREE_BODY_BYTES:
            asked = await loop.run_in_executor(executor, parse_request, body)
        else:
            asked = parse_request(body)
        self._service.metrics.unknown_fields.inc(asked.unknown_fields)
        found = self._service.find(asked.model)
        kind = check_kind(asked.kind, found.kind, strict=self._service.settings.serving.strict_input_type)
        size = check_dimensions(asked.dimensions, found.model.dimensions, found.model.matryoshka)
        truncate = asked.truncate or self._service.settings.serving.truncate
        embedded = await found.model.embed(asked.texts, kind, truncate)
        if len(asked.texts) <= _INLINE_ROWS:
            content = write_answer(asked, embedded, size)
        else:
            content = await loop.run_in_executor(executor, write_answer, asked, embedded, size)
        return Response(content, media_type="application/json")

    async def models(self, request: Request) -> Response:
        """List the models served."""
        require_key(request, self._service.api_key)
        return JSONResponse({"object": "list", "data": [_model_object(model) for model in self._service.models]})

    async def model(self, request: Request) -> Response:
        """One model, by any of its names."""
        require_key(request, self._service.api_key)
        return JSONResponse(_model_object(self._service.find(request.path_params["name"]).model))

    async def live(self, request: Request) -> Response:  # noqa: ARG002 - a handler takes the request
        """Answer as long as the process runs."""
        return JSONResponse({"object": "health.response", "message": "live"})

    async def ready(self, request: Request) -> Response:  # noqa: ARG002 - a handler takes the request
        """Answer 200 while requests are answered."""
        self._service.require_ready()
        return JSONResponse({"object": "health.response", "message": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Prometheus metrics."""
        open_metrics = self._service.settings.serving.open_metrics
        require_metrics_access(request, self._service.api_key, open_metrics=open_metrics)
        return Response(self._service.metrics.exposition(), media_type=CONTENT_TYPE)

    async def metadata(self, request: Request) -> Response:
        """Where each model comes from and how it did."""
        require_key(request, self._service.api_key)
        return JSONResponse({"object": "list", "data": [_metadata(model) for model in self._service.models]})

    async def openapi(self, request: Request) -> Response:  # noqa: ARG002 - a handler takes the request
        """The OpenAPI document."""
        return JSONResponse(openapi_document(self._service.settings.serving, self._service.models))

    async def page(self, request: Request) -> Response:  # noqa: ARG002 - a handler takes the request
        """The search page."""
        return search_page()

    async def search(self, request: Request) -> Response:
        """The corpus under every model served, for the search page."""
        require_key(request, self._service.api_key)
        return JSONResponse(await self._search.find(request.query_params.get("q", "")))


def create_application(service: Service, *, loopback: bool = False) -> ASGIApp:
    """The ASGI application over ``service``; ``loopback``: it listens where this machine alone reaches it."""
    routes, serving = Endpoint(service).routes(), service.settings.serving
    middleware = [Middleware(HostMiddleware, frozenset(serving.allowed_hosts))] if loopback else []
    if serving.allowed_origins:
        allowed = Middleware(
            CORSMiddleware,
            allow_origins=serving.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("x-request-id", "retry-after"),
        )
        middleware.append(allowed)
    application = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={RequestError: _refuse, HTTPException: _refuse_route, Exception: _fail},
    )
    application.router.redirect_slashes = False
    return ExchangeMiddleware(application, service, frozenset(route.path for route in routes))


def write_answer(asked: EmbeddingRequest, embedded: Embedded, dimensions: int) -> bytes:
    """The JSON of a 200; text by text, so that other threads run in between."""
    vectors = cut(embedded.vectors, dimensions).astype("<f4")
    parts = []
    for index, vector in enumerate(vectors):
        shown = b'"%b"' % base64.b64encode(vector.tobytes()) if asked.base64 else to_json(vector.tolist())
        parts.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, shown))
    usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (embedded.tokens, embedded.tokens)
    data = b",".join(parts)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (data, to_json(asked.model), usage)


async def _while_connected(request: Request, answer: Coroutine[Any, Any, Result]) -> Result:
    """Await ``answer``, and drop it when the client leaves before it is there.

    Raises:
        ClientDisconnect: the client left.
    """
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model_object(model: ServedModel) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "embed-pipeline"}


def _metadata(model: ServedModel) -> dict[str, Any]:
    manifest = model.manifest.model_dump(exclude={"files"})
    return {"id": model.name, "precision": model.precision, "runtime": model.runtime, **manifest}


async def _refuse(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler takes the request
    if not isinstance(error, RequestError):
        raise error
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


async def _refuse_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    path = request.url.path[:80]
    message = f"{request.method} {path}: {error.detail}"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return await _refuse(request, RequestError(error.status_code, message, code=code, headers=error.headers))


async def _fail(request: Request, error: Exception) -> Response:  # noqa: ARG001 - uvicorn logs the error
    request_id = request.scope["state"]["request_id"]
    logger.error("request %s failed", request_id)
    message = f"the server failed; the request's id is {request_id}"
    # uvicorn closes the connection after an error that reaches it.
    return await _refuse(request, RequestError(500, message, code="internal_error", headers={"Connection": "close"}))


class ExchangeMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        """Wrap ``app``; ``paths`` are those counted under their own name."""
        self._app, self._service, self._paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        started = time.monotonic()
        self._service.open_requests += 1
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._service.open_requests -= 1
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.requests.labels(path, str(exchange.status)).inc()
            self._service.metrics.request_seconds.observe(time.monotonic() - started)


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status = 0
        self.request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        names = {name for name, value in scope["headers"] if value != b"0"}
        self._body_left = bool(names & {b"content-length", b"transfer-encoding"})

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._body_left = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.request_id.encode()))
            if self._body_left:
                message["headers"].append((b"connection", b"close"))
            await self._send(message)
        elif self._body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._body_left:
                    await self.receive()
        except TimeoutError:
            return
