"""The OpenAPI document of the endpoint, written by hand so that it says exactly what is answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from embed_pipeline.serving.request import ENCODING_FORMATS, KINDS, MAX_INPUTS, TRUNCATE
from embed_pipeline.serving.search_page import MAX_QUERY_CHARACTERS
from embed_pipeline.serving.served_model import ServedModel
from embed_pipeline.settings import Serving

_ERRORS = {
    "400": "The request is wrong; the message names the field, the value and the bound.",
    "401": "The API key is wrong or missing.",
    "404": "There is no such path or model.",
    "405": "The path takes another method.",
    "408": "The body took too long.",
    "413": "The body is too large.",
    "415": "The body is not JSON, or packed other than with gzip.",
    "429": "The queue is full; Retry-After says when to come back.",
    "500": "The server failed.",
    "503": "The endpoint is loading or shutting down.",
}


def openapi_document(serving: Serving, models: Iterable[ServedModel]) -> dict[str, Any]:
    """The document for the models served now."""
    served = list(models)
    names = [f"{model.name}{suffix}" for model in served for suffix in ("", "-query", "-passage")]
    sizes = sorted({size for model in served for size in (model.dimensions, *model.matryoshka)})
    embed = _embed_operation()
    metrics = _get("Prometheus metrics.", _content("text/plain", {"type": "string"}), "401")
    paths = {
        "/v1/embeddings": {"post": {**embed, "operationId": "createEmbedding"}},
        "/embeddings": {"post": {**embed, "operationId": "createEmbeddingAlias"}},
        "/v1/models": {"get": _get("The models served.", _json("#/components/schemas/Models"), "401")},
        "/v1/models/{name}": {
            "get": {
                **_get("One model.", _json("#/components/schemas/Model"), "401", "404", "503"),
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
            }
        },
        "/v1/health/live": {"get": _open(_get("The process runs.", _json("#/components/schemas/Health")))},
        "/v1/health/ready": {"get": _open(_get("Requests are answered.", _json("#/components/schemas/Health"), "503"))},
        "/v1/metrics": {"get": metrics},
        "/metrics": {"get": metrics},
        "/v1/metadata": {"get": _get("Where each model comes from.", _json("#/components/schemas/Metadata"), "401")},
    }
    if serving.search_page:
        paths["/search"] = {"get": _search_operation()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "embed-pipeline", "version": "1", "description": "OpenAI-compatible text embeddings."},
        "paths": paths,
        "components": {
            "schemas": _schemas(serving, names, sizes),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _embed_operation() -> dict[str, Any]:
    return {
        "summary": "Embed texts.",
        "requestBody": {"required": True, **_json("#/components/schemas/EmbeddingRequest")},
        "responses": _responses("Vectors in input order.", _json("#/components/schemas/Embeddings"), *_ERRORS),
    }


def _search_operation() -> dict[str, Any]:
    query = {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS}
    return {
        **_get("The corpus under every model served.", _json("#/components/schemas/Hits"), "400", "401", "404", "503"),
        "parameters": [{"name": "q", "in": "query", "required": True, "schema": query}],
    }


def _get(summary: str, content: dict[str, Any], *errors: str) -> dict[str, Any]:
    return {"summary": summary, "responses": _responses(summary, content, "405", "500", *errors)}


def _open(operation: dict[str, Any]) -> dict[str, Any]:
    return {**operation, "security": []}


def _responses(summary: str, content: dict[str, Any], *errors: str) -> dict[str, Any]:
    request_id = {"x-request-id": {"required": True, "schema": {"type": "string"}}}
    retry = {"Retry-After": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}}
    answers: dict[str, Any] = {"200": {"description": summary, "headers": request_id, **content}}
    for status in sorted(errors):
        headers = {**request_id, **retry} if status in {"429", "503"} else request_id
        error = _json("#/components/schemas/Error")
        answers[status] = {"description": _ERRORS[status], "headers": headers, **error}
    return answers


def _json(reference: str) -> dict[str, Any]:
    return _content("application/json", {"$ref": reference})


def _content(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {media_type: {"schema": schema}}}


def _object(properties: dict[str, Any], *optional: str, closed: bool = True) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        **({"additionalProperties": False} if closed else {}),
    }


def _list_of(name: str) -> dict[str, Any]:
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}}
    return _object({"object": {"const": "list"}, "data": items})


def _hits_schema() -> dict[str, Any]:
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    texts = dict.fromkeys(("segment_id", "path", "heading_path", "text"), text)
    hit = _object({"rank": count, "score": {"type": "number"}, **texts})
    system = _object({"name": text, "version": text, "results": {"type": "array", "items": hit}})
    counts = dict.fromkeys(("segments", "indexed", "done", "total"), count)
    state = {"enum": ["indexing", "ready"]}
    return {"Hits": _object({"query": text, "state": state, **counts, "systems": {"type": "array", "items": system}})}


def _schemas(serving: Serving, names: list[str], sizes: list[int]) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    count = {"type": "integer", "minimum": 0}
    vector = {"oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string", "format": "byte"}]}
    nullable_text = {"type": ["string", "null"]}
    request = {
        "input": {"oneOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": MAX_INPUTS}]},
        "model": {"type": "string", "enum": names},
        "input_type": {"enum": [*KINDS, None]},
        "encoding_format": {"enum": [*ENCODING_FORMATS, None], "default": "float"},
        "truncate": {"enum": [*TRUNCATE, None], "default": serving.truncate},
        "dimensions": {"enum": [*sizes, None]},
        "user": nullable_text,
    }
    if serving.strict_input_type:
        request["input_type"] = {"enum": list(KINDS)}
    optional = [name for name in request if name not in {"input", "model"}]
    if serving.strict_input_type:
        optional.remove("input_type")
    embedding = _object({"object": {"const": "embedding"}, "index": count, "embedding": vector})
    usage = _object({"prompt_tokens": count, "total_tokens": count})
    data = {"type": "array", "items": embedding, "minItems": 1}
    error = {"message": {"type": "string"}, "type": {"type": "string"}, "param": nullable_text, "code": nullable_text}
    model = {"id": {"type": "string"}, "object": {"const": "model"}, "created": count, "owned_by": {"type": "string"}}
    release = {
        "id": {"type": "string"},
        "precision": {"type": "string"},
        "runtime": {"type": "string"},
        "version": {"type": "string"},
        "model": {"type": "object"},
    }
    return {
        **_hits_schema(),
        "EmbeddingRequest": _object(request, *optional, closed=False),
        "Embeddings": _object(
            {"object": {"const": "list"}, "data": data, "model": {"type": "string"}, "usage": usage},
        ),
        "Error": _object({"error": _object(error), "detail": {"type": "string"}}),
        "Health": _object({"object": {"const": "health.response"}, "message": {"type": "string"}}),
        "Metadata": _list_of("Release"),
        "Model": _object(model),
        "Models": _list_of("Model"),
        "Release": _object(release, closed=False),
    }
