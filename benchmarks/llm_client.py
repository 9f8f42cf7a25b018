"""Our LLM client at a stub endpoint, side by side with Data Designer, against the least time that is possible.

    python benchmarks/llm_client.py
    python benchmarks/llm_client.py --peer-python VENV/bin/python     (a venv with data-designer installed)

The stub runs in a process of its own and takes 200 ms for an answer; answers differ in length. Without a limit the
ideal is calls / concurrency x latency; with a limit of 20 requests a second, answered by 429 and ``Retry-After: 1``, it
is calls / 20. Rounds of both clients are interleaved and medians compared; the limited setting takes one round, as it
takes minutes. ``cold`` is the start of structured requests: 64 at once, nothing known of the endpoint, 2 s for an
answer. A second pass over the same requests shows what the response store answers. Figures go to
``benchmarks/results/llm_client.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from embed_pipeline.llm.client import LLMClient
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.settings import LLM

RESULTS = Path(__file__).parent / "results" / "llm_client.json"
LATENCY, CONCURRENCY = 0.2, 64
CALLS, LIMIT = 2000, 20
COLD_CALLS, COLD_LATENCY = 64, 2.0


def main() -> None:
    """Run the rounds, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment with data-designer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, type=float, metavar=("LATENCY", "RATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(*options.serve)
        return
    figures: dict[str, Any] = {"machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    for name, rate, rounds in (("unlimited", 0.0, options.rounds), ("limited", float(LIMIT), 1)):
        ideal = CALLS / rate if rate else CALLS / CONCURRENCY * LATENCY
        taken: dict[str, list[dict[str, float]]] = {"ours": []} | ({"data-designer": []} if options.peer_python else {})
        for _ in range(rounds):
            taken["ours"].append(_ours(CALLS, rate))
            if options.peer_python:
                taken["data-designer"].append(_peer(options.peer_python, CALLS, rate))
        figures[name] = {"calls": CALLS, "ideal_seconds": ideal, "rounds": rounds}
        for who, measured in taken.items():
            figures[name][who] = {key: statistics.median(r[key] for r in measured) for key in measured[0]}
            figures[name][who]["of_ideal"] = round(figures[name][who]["seconds"] / ideal, 3)
    taken_cold = [_cold() for _ in range(options.rounds)]
    cold = {key: statistics.median(r[key] for r in taken_cold) for key in taken_cold[0]}
    cold["of_ideal"] = round(cold["seconds"] / COLD_LATENCY, 3)
    figures["cold"] = {"calls": COLD_CALLS, "ideal_seconds": COLD_LATENCY, "rounds": options.rounds, "ours": cold}
    _print(figures)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def _ours(calls: int, rate: float) -> dict[str, float]:
    computed = time.process_time()
    with tempfile.TemporaryDirectory() as folder, _stub(rate) as (base_url, finish):
        llm = LLM(base_url=base_url, model="stub", max_concurrency=CONCURRENCY)

        async def run(store: ResponseStore) -> tuple[float, int]:
            async with LLMClient(llm, store) as client:
                begun = time.monotonic()

                async def ask(number: int) -> str:
                    messages = f"Question {number}"
                    got = await client.complete(messages, stop=["\n"], max_tokens=64, temperature=0.3, seed=1)
                    return got.text

                answers = await client.gather(range(calls), ask, label="Asking", unit="calls")
                if len(answers) != calls:
                    raise RuntimeError(f"{len(answers)} answers to {calls} calls")
                return time.monotonic() - begun, client.usage.calls

        with ResponseStore(Path(folder) / "responses.sqlite") as store:
            seconds, answered = asyncio.run(run(store))
            again, repeated = asyncio.run(run(store))
        counted = finish()
    shares = {
        "processor_seconds": time.process_time() - computed,
        "refused_share": counted["refused"] / counted["requests"],
        "peak": counted["peak"],
    }
    return {"seconds": seconds, "answered": answered, **shares, "again_seconds": again, "again_calls": repeated}


class Said(BaseModel):
    """An answer by schema."""

    words: list[str]


def _cold() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, _stub(0.0, COLD_LATENCY) as (base_url, finish):
        llm = LLM(base_url=base_url, model="stub", max_concurrency=CONCURRENCY)

        async def run(store: ResponseStore) -> tuple[float, int]:
            async with LLMClient(llm, store) as client:
                begun = time.monotonic()

                async def ask(number: int) -> Said:
                    messages = [{"role": "user", "content": f"Question {number}"}]
                    return (await client.structured(messages, Said, temperature=0.3, seed=1)).value

                await client.gather(range(COLD_CALLS), ask, label="Asking", unit="calls")
                return time.monotonic() - begun, client.usage.calls

        with ResponseStore(Path(folder) / "responses.sqlite") as store:
            seconds, answered = asyncio.run(run(store))
            _, repeated = asyncio.run(run(store))
        counted = finish()
    shares = {"refused_share": counted["refused"] / counted["requests"], "peak": counted["peak"]}
    return {"seconds": seconds, "answered": answered, **shares, "again_calls": repeated}


def _peer(python: Path, calls: int, rate: float) -> dict[str, float]:
    with _stub(rate) as (base_url, finish):
        command = [str(python), str(Path(__file__).with_name("llm_client_peer.py")), base_url, str(calls)]
        done = subprocess.run(  # noqa: S603 - the interpreter that the user names
            [*command, str(CONCURRENCY)], capture_output=True, text=True, check=True
        )
        counted = finish()
    said: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**said, "refused_share": counted["refused"] / counted["requests"], "peak": counted["peak"]}


@contextmanager
def _stub(rate: float, latency: float = LATENCY) -> Iterator[tuple[str, Any]]:
    """A stub in a process of its own: its base URL, and what ends it and gives its counts."""
    command = [sys.executable, __file__, "--serve", str(latency), str(rate)]
    process = subprocess.Popen(  # noqa: S603 - itself
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    out = process.stdout
    if out is None:
        raise RuntimeError("the stub has no output")

    def finish() -> dict[str, int]:
        said, _ = process.communicate()
        counts: dict[str, int] = json.loads(said)
        return counts

    try:
        yield out.readline().strip(), finish
    finally:
        process.kill()


def _serve(latency: float, rate: float) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from embed_pipeline_tests.stub_endpoint import stub_endpoint

    def respond(request: dict[str, Any]) -> str:
        words = [f"word{number}" for number in range(1 + len(str(request)) % 97)]
        return json.dumps({"words": words}) if "messages" in request else " ".join(words)

    with stub_endpoint(respond, latency=latency, rate_limit=rate or None) as stub:
        print(stub.base_url, flush=True)
        sys.stdin.read()
        print(json.dumps({"requests": len(stub.requests), "refused": stub.refused, "peak": stub.peak}))


def _print(figures: dict[str, Any]) -> None:
    print("| setting | client | seconds | of the ideal | 429s | calls when run again |\n|---|---|---|---|---|---|")
    for name in ("unlimited", "limited", "cold"):
        for who in ("ours", "data-designer"):
            if who in figures[name]:
                row = figures[name][who]
                cells = (f"{row['seconds']:.2f}", f"{row['of_ideal']:.2f}", f"{row['refused_share']:.2%}")
                print(f"| {name} | {who} | {' | '.join(cells)} | {row.get('again_calls', 'all')} |")


if __name__ == "__main__":
    main()
