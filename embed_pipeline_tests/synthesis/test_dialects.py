"""Twenty providers' dialects, each at a real socket through the structured generation of six small documents.

A dialect is what the provider refuses, and the shape that it gives an answer. Whatever it is, the pairs are the same.
"""

# ruff: noqa: E501 - bodies as the providers send them
from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import polars as pl
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import PLANTED, score_pairs
from embed_pipeline_tests.stub_endpoint import Status, Step, stub_endpoint
from embed_pipeline_tests.synthesis import material

Request = dict[str, Any]
Refuse = Callable[[Request], Step | None]
Shape = Callable[[str], dict[str, Any]]
SUBJECTS = ("pump", "invoice", "lamp", "boiler", "router", "garden")
TITLES = {f"d{number}": subject.title() for number, subject in enumerate(SUBJECTS)}


def _documents() -> pl.DataFrame:
    texts = {
        f"s{number}": f"The {subject} model {number} is checked every {number + 2} weeks by the {subject} service."
        for number, subject in enumerate(SUBJECTS)
    }
    return material.segments(texts).with_columns(document_id="d" + pl.col("segment_id").str.slice(1))


def _json(status: int, body: object, **headers: str) -> Status:
    return Status(status, headers, body=json.dumps(body).encode())


def _said(content: object, **fields: object) -> dict[str, Any]:
    return {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": content, **fields}, "finish_reason": "stop"}
        ]
    }


def _refusing(*names: str, say: Callable[[str], Step]) -> Refuse:
    """Refuse the first of these parameters that a request has."""
    return lambda request: next((say(name) for name in names if _holds(request, name)), None)


def _holds(request: Request, name: str) -> bool:
    if name == "schema keywords":
        return "additionalProperties" in json.dumps(request.get("response_format", ""))
    if name == "system":
        return request["messages"][0]["role"] == "system"
    if name == "two of one role":
        roles = [message["role"] for message in request["messages"] if message["role"] != "system"]
        return any(a == b for a, b in itertools.pairwise(roles))
    return name in request and not (name == "temperature" and request[name] == 1)


def _pydantic(name: str) -> Step:
    return _json(
        422, {"detail": [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]}
    )


def _openai(name: str) -> Step:
    words = {"max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
    message = words.get(name, f"Unsupported value: '{name}' does not support this value with this model.")
    return _json(
        400,
        {"error": {"message": message, "type": "invalid_request_error", "param": name, "code": "unsupported_value"}},
    )


def _google(name: str) -> Step:
    unknown = {"schema keywords": "\"additionalProperties\" at 'generation_config.response_schema'"}.get(
        name, f'"{name}"'
    )
    message = f"Invalid JSON payload received. Unknown name {unknown}: Cannot find field."
    return _json(400, [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}])


def _plainly(text: str, status: int = 400) -> Callable[[str], Step]:
    return lambda name: _json(status, {"error": {"message": text.format(name)}})


@dataclass(frozen=True)
class Provider:
    """What a provider refuses, how it shapes an answer, and how often it is ill."""

    refuse: Refuse = lambda _: None
    shape: Shape = _said
    ill: tuple[Step, ...] = ()


def _stream(text: str) -> Step:
    pieces = [text[start : start + 40] for start in range(0, len(text), 40)]
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Status(200, {"content-type": "text/event-stream"}, body=f"{lines}data: [DONE]\n\n".encode())


PROVIDERS = {
    "openai": Provider(ill=(_json(429, {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}, **{"retry-after-ms": "20"}),)),
    "openai reasoning": Provider(_refusing("max_tokens", "temperature", say=_openai)),
    "azure": Provider(_refusing("seed", say=lambda _: _json(400, {"error": {"code": "BadRequest", "message": "Unrecognized request argument supplied: seed"}}))),
    "mistral": Provider(_refusing("seed", "two of one role", say=_pydantic), lambda text: _said([{"type": "text", "text": text}])),
    "moonshot": Provider(_refusing("temperature", say=_plainly("invalid temperature: only 1 is allowed for this model"))),
    "gemini": Provider(_refusing("seed", "schema keywords", say=_google), ill=(_json(503, [{"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}]),)),
    "deepseek": Provider(_refusing("response_format", say=_plainly("This response_format type is unavailable now")), lambda text: _said(text, reasoning_content="Let me {think}.")),
    "groq": Provider(_refusing("response_format", say=_plainly("This model does not support response format `json_schema`"))),
    "xai": Provider(lambda _: None, lambda text: _said(text, reasoning_content="Hm.")),
    "openrouter": Provider(ill=(_json(200, {"error": {"code": 429, "message": "Provider returned error"}}), _json(200, {"choices": [{"finish_reason": "error", "message": {"content": ""}}]}))),
    "together": Provider(shape=lambda text: {**_said(text), "usage": None}),
    "fireworks": Provider(shape=lambda text: _said(f"<think>\nFirst {{a}} draft.\n</think>\n{text}")),
    "tgi": Provider(_refusing("temperature", "response_format", say=_plainly("Input validation error: `{}` must be strictly positive", 422)), lambda text: {**_said(text), "choices": [{**_said(text)["choices"][0], "finish_reason": "eos_token"}]}),
    "vllm with gemma": Provider(_refusing("system", "two of one role", say=_plainly("System role not supported"))),
    "vllm with gpt-oss": Provider(shape=lambda text: _said(f"<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>{text}")),
    "ollama": Provider(shape=lambda text: _said(f"```json\n{text}\n```"), ill=(_json(500, {"error": "model runner has unexpectedly stopped"}),)),
    "llama.cpp": Provider(ill=(_json(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),) * 2),
    "anthropic gateway": Provider(shape=lambda text: _said(None, tool_calls=[{"function": {"name": "json", "arguments": text}}]), ill=(_json(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),)),
    "cloudflare": Provider(_refusing("seed", "temperature", say=lambda name: _json(400, {"success": False, "errors": [{"code": 5006, "message": f"oneOf at '/' not met: {name}"}]})), lambda text: {"success": True, "result": _said(text)}),
    "streaming proxy": Provider(shape=lambda text: {"stream": text}),
    "chatty local model": Provider(_refusing("response_format", say=_plainly("Bad Request")), lambda text: _said(f"Sure! Here is the JSON:\n```json\n{text[:-1]},}}\n```\nI hope this helps.")),
    "bedrock gateway": Provider(_refusing("seed", say=_plainly("extraneous key [seed] is not permitted")), ill=(_json(400, {"__type": "ThrottlingException", "message": "Too many requests"}),)),
}  # fmt: skip


def _serve(provider: Provider) -> Callable[[Request], str | Step]:
    ill = list(provider.ill)

    def respond(request: Request) -> str | Step:
        refused = provider.refuse(request)
        if refused is not None:
            return refused
        if ill:
            return ill.pop()
        plain = {**request, "messages": _separated(request["messages"])}
        shaped = provider.shape(material.respond(plain))
        return _stream(shaped["stream"]) if "stream" in shaped else _json(200, shaped)

    return respond


def _separated(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the system prompt on its own, where it was put before the user's message."""
    if messages[0]["role"] == "system":
        return messages
    before, mark, after = messages[0]["content"].rpartition("<segments>\n")
    return [{"role": "system", "content": before}, {"role": "user", "content": mark + after}, *messages[1:]]


def _generate(settings: Settings, encoder: Encoder) -> tuple[list[tuple[Any, ...]], int]:
    segments = _documents()
    artifacts = extract_artifacts("b1", segments, settings)
    assert not artifacts.dropped
    made = generate_pairs("b1", segments, artifacts.artifacts, TITLES, settings, lambda: encoder)
    assert made.rejects.is_empty(), made.rejects["reason", "detail"].rows()
    scoring = score_pairs("b1", made.pairs, segments, settings, encoder)
    assert set(scoring.rejects["reason"]) == {PLANTED}
    assert scoring.scores.height == made.pairs.height
    rows = made.pairs.drop("generator", "prompt_version").rows()
    return rows, artifacts.usage.calls + made.usage.calls + scoring.usage.calls


@pytest.fixture(scope="module")
def expected(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[Any, ...]], int]:
    with stub_endpoint(material.respond) as stub:
        endpoint = {"base_url": stub.base_url, "model": "stub", "structured_outputs": "json_schema"}
        paths = {"store": tmp_path_factory.mktemp("expected")}
        return _generate(Settings.model_validate({"paths": paths, "llm": endpoint}), encoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_ends_in_the_same_pairs(
    make_settings: Callable[..., Settings], encoder: Encoder, expected: tuple[list[tuple[Any, ...]], int], name: str
) -> None:
    pairs, calls = expected
    assert len(pairs) >= len(SUBJECTS)
    with stub_endpoint(_serve(PROVIDERS[name])) as stub:
        settings = make_settings(stub.base_url, llm={"structured_outputs": "auto"})
        found, paid = _generate(settings, encoder)
        asked = len(stub.requests)
        assert _generate(settings, encoder)[0] == found
    assert found == pairs
    assert paid == calls, "nothing is paid twice"
    assert len(stub.requests) == asked, "a second run asks nothing"
