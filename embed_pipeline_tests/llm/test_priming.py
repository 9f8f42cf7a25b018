from __future__ import annotations

import asyncio
from typing import Any

import pytest

from embed_pipeline.llm.priming import PrimedServers

SHARED = "few shots"


async def _ask(servers: PrimedServers, prompt: str, sent: list[dict[str, Any]], server: int = 0) -> None:
    async def send(body: dict[str, Any]) -> object:
        sent.append(body)
        await asyncio.sleep(0)
        if body["prompt"] == "too long":
            raise ValueError(body["prompt"])
        return body

    body = {"prompt": prompt, "max_tokens": 9}
    assert await servers.ask(server, body, SHARED, send) == body


def _steps(sent: list[dict[str, Any]]) -> list[tuple[str, int, bool]]:
    return [(body["prompt"], body["max_tokens"], body.get("cache_prompt", True)) for body in sent]


def test_every_prompt_is_worked_off_from_the_shared_beginning() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        for prompt in ("few shots A", "few shots A", "few shots AB"):
            await _ask(servers, prompt, sent)
        return sent

    cold = [(SHARED, 0, False)]
    assert _steps(asyncio.run(run())) == [
        *cold, (SHARED, 0, True), ("few shots A", 0, True), ("few shots A", 9, True),
        ("few shots A", 9, True),
        (SHARED, 0, True), ("few shots AB", 0, True), ("few shots AB", 9, True),
    ]  # fmt: skip


def test_after_a_failure_a_server_starts_from_nothing() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        with pytest.raises(ValueError, match="too long"):
            await _ask(servers, "too long", sent)
        sent.clear()
        await _ask(servers, "few shots A", sent)
        return sent

    assert _steps(asyncio.run(run()))[0] == (SHARED, 0, False)


def test_requests_to_one_server_do_not_mix() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(2), []
        await asyncio.gather(_ask(servers, "few shots A", sent), _ask(servers, "few shots B", sent))
        return sent

    prompts = [body["prompt"] for body in asyncio.run(run())]
    assert prompts == [SHARED, SHARED, "few shots A", "few shots A", SHARED, "few shots B", "few shots B"]


def test_an_idle_server_that_holds_the_prompt_is_chosen() -> None:
    async def run() -> tuple[int, int, int]:
        servers = PrimedServers(2)
        await _ask(servers, "few shots A", [], server=1)
        return servers.choose("few shots A", [0, 0]), servers.choose("B", [0, 0]), servers.choose("few shots A", [0, 1])

    assert asyncio.run(run()) == (1, 0, 0)


def test_a_conversation_is_worked_off_from_nothing() -> None:
    async def send(body: dict[str, Any]) -> object:
        return body

    asked = asyncio.run(PrimedServers(1).ask(0, {"messages": []}, "", send))
    assert asked == {"messages": [], "cache_prompt": False}
