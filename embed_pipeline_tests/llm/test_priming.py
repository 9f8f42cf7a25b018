from __future__ import annotations

import asyncio
from typing import Any

import pytest

from embed_pipeline.llm.embedded import PrimedServers


async def _ask(servers: PrimedServers, parts: tuple[str, ...], sent: list[dict[str, Any]], server: int = 0) -> None:
    async def send(body: dict[str, Any]) -> object:
        sent.append(body)
        await asyncio.sleep(0)
        if body["prompt"].endswith("!"):
            raise ValueError("too long")
        return body["prompt"]

    body = {"prompt": "".join(parts), "max_tokens": 9}
    assert await servers.ask(server, body, parts, send) == body["prompt"]


def _sent(*prompts: tuple[str, ...]) -> list[tuple[str, int, bool]]:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        for parts in prompts:
            await _ask(servers, parts, sent)
        return sent

    return [(body["prompt"], body["max_tokens"], body.get("cache_prompt", True)) for body in asyncio.run(run())]


def test_each_part_is_worked_off_after_the_one_before_and_once() -> None:
    first = [("A", 0, False), ("A", 0, True), ("AB", 0, True), ("AB", 0, True), ("ABq", 9, True)]
    assert _sent(("A", "B", "q")) == first
    assert _sent(("A", "B", "q"), ("A", "B", "r"))[5:] == [("AB", 0, True), ("ABr", 9, True)]
    assert _sent(("A", "B", "q"), ("A", "B", "q"))[5:] == [("AB", 0, True), ("ABq", 9, True)]
    assert _sent(("A", "B", "q"), ("A", "C", "q"))[5:] == [
        ("A", 0, True), ("AC", 0, True), ("AC", 0, True), ("ACq", 9, True),
    ]  # fmt: skip
    assert _sent(("A", "B", "q"), ("AB", "C", "q"))[5:][0] == ("AB", 0, False), "another first part: from nothing"


def test_a_prompt_of_one_part_and_a_conversation_are_worked_off_from_nothing() -> None:
    assert _sent(("A",), ("AB",)) == [("A", 9, False), ("AB", 9, False)]


def test_after_a_failure_a_server_starts_from_nothing() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        await _ask(servers, ("A", "q"), sent)
        with pytest.raises(ValueError, match="too long"):
            await _ask(servers, ("A", "q!"), sent)
        sent.clear()
        await _ask(servers, ("A", "q"), sent)
        return sent

    assert asyncio.run(run())[0] == {"prompt": "A", "max_tokens": 0, "cache_prompt": False}


def test_requests_to_one_server_do_not_mix() -> None:
    async def run() -> list[dict[str, Any]]:
        servers, sent = PrimedServers(1), []
        await asyncio.gather(_ask(servers, ("A", "q"), sent), _ask(servers, ("B", "q"), sent))
        return sent

    assert [body["prompt"] for body in asyncio.run(run())] == ["A", "A", "Aq", "B", "B", "Bq"]


def test_an_idle_server_that_holds_the_prompt_is_chosen() -> None:
    async def run() -> tuple[int, int, int]:
        servers = PrimedServers(2)
        await _ask(servers, ("A", "B", "q"), [], server=1)
        known, other = ("A", "B"), ("C",)
        return servers.choose(known, [0, 0]), servers.choose(other, [0, 0]), servers.choose(known, [0, 1])

    assert asyncio.run(run()) == (1, 0, 0)
