"""The endpoint at twice its capacity while releases change and a document is forgotten.

    python benchmarks/endurance.py
    python benchmarks/endurance.py --seconds 300

Twelve documents and a stub language model make two releases of the packaged base model. The second is served with its
search page, at twice the rate that 32 clients get from it, and meanwhile: after a quarter of the time the first
release is rolled back to, after half of it a document is forgotten, after three quarters the second release comes back.
All the while that document's own words are searched for. It ends with status 1 where a request was answered with
anything but 200 and the 429 that sheds load, where a forgotten passage was shown later than ``serving.reload_seconds``
and one look after the command ended, or where memory grew over its last two thirds by more than a tenth. Results go to
``benchmarks/results/endurance.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from finetuning import machine
from serving_load import Server, exchange, load, make_texts, request_bytes

from embed_pipeline.embedding.models import resolve_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.serving.connections import free_port
from embed_pipeline_tests.project import Project, made_up_name, small_project, well_behaved, write_document
from embed_pipeline_tests.stub_endpoint import stub_endpoint

RESULTS = Path(__file__).parent / "results" / "endurance.json"
DOCUMENT, NAME = "topic-05.md", made_up_name(5 * 3)
TEXTS = 16
RELOAD_SECONDS = 5.0
GROWTH = 1.1
SAMPLES = 60


@dataclass
class Watched:
    """What was seen.

    Attributes:
        statuses: of the embeddings.
        searches: of the searches for the forgotten document.
        seconds: how long each of these took.
        shown: seconds after the start at which its passages were shown.
        versions: seconds after the start at which another release was seen to be served.
        events: what was done, with the seconds at which it began and ended.
        megabytes: the server's memory, evenly over the time.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    searches: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    versions: list[tuple[float, str]] = field(default_factory=list)
    events: list[tuple[str, float, float]] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


def main() -> int:
    """Make the releases, serve, load, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--model", type=Path, help="a base model's folder; default the packaged one")
    arguments = parser.parse_args()
    model = arguments.model or Path(resolve_model("packaged"))
    with tempfile.TemporaryDirectory() as folder, stub_endpoint(well_behaved) as stub:
        project = small_project(
            Path(folder) / "project",
            model,
            stub.base_url,
            gates__min_champion_gain="-1",
            serving__search_page="true",
            serving__reload_seconds=str(RELOAD_SECONDS),
        )
        make_releases(project)
        with served(project) as server:
            texts = make_texts(OnnxBackend(current(project) / "onnx"), 200)
            rate = capacity(server, texts)
            print(f"capacity {rate:.0f} tokens/s; offering {2 * rate:.0f} for {arguments.seconds:.0f} s")
            watched = asyncio.run(Endurance(project, server, texts, 2 * rate, arguments.seconds).run())
    wrong = judge(watched)
    result = {
        "seconds": arguments.seconds,
        "offered_tokens_per_second": round(2 * rate),
        "statuses": dict(watched.statuses),
        "searches": dict(watched.searches),
        "median_search_seconds": round(statistics.median(watched.seconds), 1),
        "slowest_search_seconds": round(max(watched.seconds), 1),
        "events": [{"what": what, "began": round(a, 1), "ended": round(b, 1)} for what, a, b in watched.events],
        "versions": [{"second": round(at, 1), "served": version} for at, version in watched.versions],
        "last_shown": round(max(watched.shown), 1) if watched.shown else None,
        "megabytes": watched.megabytes,
        "wrong": wrong,
        "machine": machine(),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return int(bool(wrong))


def command(project: Project, *arguments: str) -> None:
    """Run ``embed-pipeline`` to its end."""
    status, output = project.command(*arguments)
    if status:
        raise SystemExit(f"embed-pipeline {' '.join(arguments)} ended with status {status}:\n{output[-3000:]}")


def make_releases(project: Project) -> None:
    """Two releases, the second of one document more."""
    for number in (12, 13):
        command(project, "run")
        write_document(project, number)
    (project.documents / "topic-13.md").unlink()


def current(project: Project) -> Path:
    """The bundle that is served."""
    releases = project.store / "release"
    return releases / (releases / "current").read_text(encoding="utf-8").strip()


@contextmanager
def served(project: Project) -> Iterator[Server]:
    """The endpoint of the project's store while the block runs."""
    port = free_port("127.0.0.1")
    process = project.start("serve", "--port", str(port))
    try:
        while httpx_status(port, "/v1/health/ready") != httpx.codes.OK:
            if process.poll() is not None:
                raise SystemExit(f"the endpoint ended: {process.communicate()[0][-2000:]}")
            time.sleep(0.2)
        yield Server("ours", port, "embed-pipeline", process.pid)
    finally:
        process.terminate()
        process.communicate(timeout=120)


def httpx_status(port: int, path: str) -> int:
    """A status; 0: no answer."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code
    except httpx.TransportError:
        return 0


def capacity(server: Server, texts: list[tuple[str, int]]) -> float:
    """Tokens a second that 32 clients get, one text a request, after warming up."""
    asyncio.run(load(server, texts, 4, 2.0))
    found = asyncio.run(load(server, texts, 32, 10.0))
    return found.tokens / found.seconds


class Endurance:
    """The load, the looks and the operations, all at once."""

    def __init__(
        self, project: Project, server: Server, texts: list[tuple[str, int]], rate: float, seconds: float
    ) -> None:
        self.project, self.server, self.texts, self.rate, self.seconds = project, server, texts, rate, seconds
        self.watched = Watched()
        self.started = time.perf_counter()

    async def run(self) -> Watched:
        """All of it; returns what was seen."""
        self.started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for work in (self.offer(), self.look(), self.operate()):
                group.create_task(work)
        return self.watched

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    async def offer(self) -> None:
        """Requests at ``rate`` tokens a second, whatever the answers."""
        rng, sent = random.Random(17), 0  # noqa: S311 - a workload to be repeated
        async with asyncio.TaskGroup() as group:
            while self.now() < self.seconds:
                while sent < self.now() * self.rate:
                    chosen = rng.sample(self.texts, TEXTS)
                    group.create_task(self.ask(request_bytes(self.server, [text for text, _ in chosen])))
                    sent += sum(tokens for _, tokens in chosen)
                await asyncio.sleep(0.01)

    async def ask(self, request: bytes) -> None:
        """One request, on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        self.watched.statuses[await exchange(reader, writer, request)] += 1
        writer.close()

    async def look(self) -> None:
        """Search for the document, and note the release and the server's memory."""
        process, watched = psutil.Process(self.server.pid), self.watched
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.server.port}", timeout=300) as client:
            while self.now() < self.seconds:
                began = self.now()
                answer = await client.get("/search", params={"q": f"order of {NAME} statements"})
                watched.seconds.append(self.now() - began)
                watched.searches[answer.status_code] += 1
                if answer.is_success and f"The {NAME} is a value" in answer.text:
                    watched.shown.append(self.now())
                said = await client.get("/v1/metadata")
                version = said.json()["data"][0]["version"] if said.is_success else ""
                if version and (not watched.versions or watched.versions[-1][1] != version):
                    watched.versions.append((self.now(), version))
                if self.now() >= len(watched.megabytes) * self.seconds / SAMPLES:
                    watched.megabytes.append(round(process.memory_info().rss / 1e6))
                await asyncio.sleep(0.5)

    async def operate(self) -> None:
        """Roll back, forget, and go forward again."""
        second = current(self.project).name
        for at, what in ((0.25, ["rollback"]), (0.5, ["forget", DOCUMENT]), (0.75, ["rollback", second])):
            await asyncio.sleep(max(0.0, at * self.seconds - self.now()))
            if what[0] == "forget":
                (self.project.documents / DOCUMENT).unlink()
            began = self.now()
            await asyncio.to_thread(command, self.project, *what)
            self.watched.events.append((" ".join(what), began, self.now()))


def judge(watched: Watched) -> list[str]:
    """What is not as it should be."""
    wrong = []
    bad = {status: count for status, count in watched.statuses.items() if status not in {200, 429}}
    if bad:
        wrong.append(f"embeddings were answered with {bad}")
    if not watched.statuses[200]:
        wrong.append("no embeddings were answered")
    [forgotten] = [ended for what, _, ended in watched.events if what.startswith("forget")]
    if not watched.shown:
        wrong.append("the document's passages were never shown, not even before")
    elif max(watched.shown) > forgotten + RELOAD_SECONDS + 2:
        wrong.append(f"a forgotten passage was shown {max(watched.shown) - forgotten:.0f} s after the command")
    third = len(watched.megabytes) // 3
    middle, last = (statistics.median(watched.megabytes[a : a + third]) for a in (third, 2 * third))
    if last > middle * GROWTH:
        wrong.append(f"memory grew from {middle:.0f} to {last:.0f} MB")
    if len(watched.versions) < 3:  # noqa: PLR2004 - second, first, second
        wrong.append(f"releases served: {watched.versions}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
