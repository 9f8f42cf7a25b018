"""The endpoint under load, as a share of what the model does offline, side by side with infinity-emb.

    python benchmarks/serving_load.py
    python benchmarks/serving_load.py --infinity VENV/bin/infinity_emb --infinity-model FOLDER
    python benchmarks/serving_load.py --soak 600
    python benchmarks/serving_load.py --gpu

Clients in a closed loop send one text a request, queries of 8 to 20 tokens and passages of 100 to 250 in turn, to
servers that are all up and take turns: round by round, each number of clients asks each server once. Ours is served
by onnxruntime in fp32, as it comes, and by OpenVINO in fp32 and int8. Offline is the same model on the same runtime
encoding the same texts in one call, measured in every round too; for the peer it is onnxruntime. Tokens a second are
compared, medians over the rounds. infinity-emb runs in an environment of its own, on the same model, with both of its
CPU engines; its ONNX engine wants ``model.onnx`` in the model's folder. ``--soak`` offers twice the measured capacity
of ours in fp32 for so many seconds, in place of the comparison, and watches errors and memory. With ``--gpu`` ours is
served by torch in fp32 and bf16 and by onnxruntime in fp32 and fp16, and the peer by torch. Results go to
``benchmarks/results/serving_load.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil
from finetuning import machine

from embed_pipeline import tables
from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import resolve_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.embedding.openvino_backend import OpenVinoBackend
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.release.bundle import EXPORT_FOLDERS, Lineage, write_bundle
from embed_pipeline.release.precision import write_precision
from embed_pipeline.serving.connections import free_port
from embed_pipeline.serving.process import start_endpoint
from embed_pipeline.serving.runtimes import OPENVINO_PRECISIONS, TORCH_PRECISIONS
from embed_pipeline.settings import Auto, Embedding, Paths, Release, Serving, Settings

RESULTS = Path(__file__).parent / "results" / "serving_load.json"
QUERY_TOKENS, PASSAGE_TOKENS = (8, 20), (100, 250)
SOAK_TEXTS = 16


@dataclass(frozen=True)
class Form:
    """What an endpoint of ours computes with."""

    name: str
    backend: Literal["onnx", "openvino", "torch"]
    precision: Literal["fp32", "int8", "fp16", "bf16"]


@dataclass(frozen=True)
class Measured:
    """What is measured on a kind of machine.

    Attributes:
        device: the peer's name of it.
        forms: of ours, the first compared with the peer offline.
        engines: of the peer.
        clients: that ask at once, in one load after the other.
        texts: different ones that they send.
        offline_tokens: in a batch offline; auto: as many as suit the hardware.
        rounds: of all loads.
    """

    device: str
    forms: tuple[Form, ...]
    engines: tuple[str, ...]
    clients: tuple[int, ...]
    texts: int
    offline_tokens: int | Auto
    rounds: int = 5


CPU = Measured(
    "cpu",
    (
        Form("ours", "onnx", "fp32"),
        Form("ours, openvino", "openvino", "fp32"),
        Form("ours, openvino int8", "openvino", "int8"),
    ),
    ("torch", "optimum"),
    (1, 4, 16, 64),
    400,
    768,
)
GPU = Measured(
    "cuda",
    (
        Form("ours", "torch", "bf16"),
        Form("ours, fp32", "torch", "fp32"),
        Form("ours, onnxruntime fp16", "onnx", "fp16"),
        Form("ours, onnxruntime", "onnx", "fp32"),
    ),
    ("torch",),
    (1, 16, 64, 256),
    4_000,
    "auto",
)


@dataclass(frozen=True)
class Server:
    """An endpoint to ask, and what it calls the model."""

    name: str
    port: int
    model: str
    pid: int


@dataclass
class Load:
    """What one server answered in one round."""

    tokens: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=CPU.rounds)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load in each round")
    parser.add_argument("--infinity", type=Path, help="the infinity_emb command")
    parser.add_argument("--infinity-model", type=Path, help="the packaged model's folder, with model.onnx in it")
    parser.add_argument("--gpu", action="store_true", help="on a GPU, with texts and clients enough for one")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds at twice the capacity, and nothing else")
    arguments = parser.parse_args()
    # Whoever ends this ends the servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    what = replace(GPU if arguments.gpu else CPU, rounds=arguments.rounds)
    if arguments.soak:
        what = replace(what, forms=what.forms[:1], rounds=1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = make_bundle(folder, fp16=any(form.precision == "fp16" for form in what.forms))
        reader = OnnxBackend(bundle / "onnx")
        if arguments.gpu and not reader.on_gpu:
            raise SystemExit("onnxruntime does not run on the GPU here")
        texts = make_texts(reader, what.texts)
        write_corpus(folder, texts)
        servers = [stack.enter_context(our_endpoint(bundle, folder, form)) for form in what.forms]
        if arguments.infinity and not arguments.soak:
            peers = (infinity(arguments.infinity, arguments.infinity_model, what, engine) for engine in what.engines)
            servers.extend(stack.enter_context(peer) for peer in peers)
        kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        measured = measure(what, bundle, servers, texts, arguments.seconds) | {"machine": machine()}
        if arguments.soak:
            capacity = max(row["tokens_per_second"] for row in measured["rows"])
            measured = {"soak": asyncio.run(soak(servers[0], texts, 2 * capacity, arguments.soak))}
            print(json.dumps(measured))
        (kept.setdefault("gpu", {}) if arguments.gpu else kept).update(measured)
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def make_bundle(folder: Path, *, fp16: bool) -> Path:
    """The packaged base model, released, in fp16 too where that is asked for."""
    model, exported, half = Path(resolve_model("packaged")), folder / "onnx", folder / "fp16"
    export_onnx(model, exported, Release(), Embedding(device="cpu"))
    if fp16:
        write_precision(exported, half, "fp16")
    beside = {EXPORT_FOLDERS["fp16"]: half} if fp16 else {}
    write_bundle(folder / "bundle", model=model, onnx_folder=exported, lineage=Lineage(version="1"), beside=beside)
    return folder / "bundle"


def make_texts(backend: Backend, count: int) -> list[tuple[str, int]]:
    """Texts with their token counts: a query and a passage in turn."""
    rng = random.Random(17)  # noqa: S311 - a workload to be repeated
    words = Path(__file__).read_text(encoding="utf-8").split() + __doc__.split()
    words = [word for word in words if word.isalpha()]
    texts = []
    for index in range(count):
        wanted = rng.randint(*(PASSAGE_TOKENS if index % 2 else QUERY_TOKENS))
        chosen = rng.choices(words, k=wanted)
        while len(row := backend.tokenize([" ".join(chosen)])[0]) > wanted:
            chosen.pop()
        texts.append((" ".join(chosen), len(row)))
    return texts


def write_corpus(store: Path, texts: list[tuple[str, int]]) -> None:
    """The texts as a corpus: what OpenVINO is proven on."""
    places = {"document_id": "d", "path": "a.md", "title": "", "heading_path": "", "batch": "1", "label_set": None}
    rows = [
        {"segment_id": f"{position:04}", "position": position, "text": text, "token_count": tokens, **places}
        for position, (text, tokens) in enumerate(texts)
    ]
    (store / "tables").mkdir()
    tables.CORPUS.frame(rows).write_parquet(store / "tables" / "corpus.parquet")


@contextmanager
def our_endpoint(bundle: Path, folder: Path, form: Form) -> Iterator[Server]:
    """Our endpoint while the block runs; but for what computes, settings are the defaults."""
    serving = Serving(backend=form.backend, precision=form.precision)
    settings = Settings(paths=Paths(store=folder), serving=serving)
    port = free_port(settings.serving.host)
    endpoint = start_endpoint(bundle, settings, port=port, log=folder / f"{form.name}.log")
    try:
        yield Server(form.name, port, settings.serving.model_name, endpoint.process.pid)
    finally:
        endpoint.stop(settings.serving.drain_seconds)


@contextmanager
def infinity(command: Path, model: Path, what: Measured, engine: str) -> Iterator[Server]:
    """The peer with one of its engines while the block runs."""
    port = free_port("127.0.0.1")
    options = ["--engine", engine, "--device", what.device, "--port", str(port), "--host", "127.0.0.1"]
    started = subprocess.Popen(  # noqa: S603 - the command that the caller names
        [command.absolute(), "v2", "--model-id", ".", "--served-model-name", "base", *options],
        cwd=model,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not ready(port):
            if started.poll() is not None:
                raise SystemExit(f"infinity_emb with engine {engine} ended with exit code {started.returncode}")
            time.sleep(0.5)
        yield Server(f"infinity, {engine}", port, "base", started.pid)
    finally:
        started.terminate()
        started.wait()


def ready(port: int) -> bool:
    """Whether the peer on ``port`` answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def measure(
    what: Measured, bundle: Path, servers: list[Server], texts: list[tuple[str, int]], seconds: float
) -> dict[str, Any]:
    """Every server under every load and the model offline, round by round."""
    encoders = {form.name: Encoder(offline_backend(bundle, form), what.offline_tokens) for form in what.forms}
    loads: dict[tuple[str, int], list[Load]] = {}
    offline: dict[str, list[float]] = {name: [] for name in encoders}
    for server in servers:
        asyncio.run(load(server, texts, 4, 2.0))
    for _ in range(what.rounds):
        for name, encoder in encoders.items():
            offline[name].append(offline_rate(encoder, texts))
        for clients in what.clients:
            for server in servers:
                found = asyncio.run(load(server, texts, clients, seconds))
                loads.setdefault((server.name, clients), []).append(found)
    medians = {name: statistics.median(rates) for name, rates in offline.items()}
    print("offline:", ", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in medians.items()))
    print(f"{'server':20} {'clients':>7} {'tokens/s':>9} {'of offline':>10} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}")
    rows = [
        row_of(name, clients, found, medians.get(name, medians[what.forms[0].name]))
        for (name, clients), found in loads.items()
    ]
    for row in sorted(rows, key=lambda row: (row["clients"], not row["server"].startswith("ours"), row["server"])):
        print(
            f"{row['server']:20} {row['clients']:7} {row['tokens_per_second']:9.0f} {row['of_offline']:10.2f} "
            f"{row['p50_ms']:8.1f} {row['p95_ms']:8.1f} {row['p99_ms']:8.1f}"
        )
    return {"offline_tokens_per_second": medians, "rounds": what.rounds, "seconds": seconds, "rows": rows}


def offline_backend(bundle: Path, form: Form) -> Backend:
    """What an endpoint of ours runs, without the endpoint."""
    if form.backend == "torch":
        return TorchBackend.load(bundle / "model", Embedding(), TORCH_PRECISIONS[form.precision])
    if form.backend == "onnx":
        return OnnxBackend(bundle / EXPORT_FOLDERS[form.precision])
    return OpenVinoBackend(bundle / "onnx", OPENVINO_PRECISIONS[form.precision])


def row_of(name: str, clients: int, found: list[Load], offline: float) -> dict[str, Any]:
    """A server's figures under one load: median rate of the rounds, percentiles over all of them."""
    bad = sum((load.statuses for load in found), Counter())
    if set(bad) != {200}:
        raise SystemExit(f"{name} with {clients} clients answered {dict(bad)}")
    rate = statistics.median(load.tokens / load.seconds for load in found)
    latencies = np.array([latency for load in found for latency in load.latencies]) * 1000
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist()
    figures = {"tokens_per_second": rate, "of_offline": rate / offline}
    return {"server": name, "clients": clients, **figures, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def offline_rate(encoder: Encoder, texts: list[tuple[str, int]]) -> float:
    """Tokens a second of one call over all texts."""
    started = time.perf_counter()
    encoder.encode([text for text, _ in texts], "query")
    return sum(tokens for _, tokens in texts) / (time.perf_counter() - started)


async def load(server: Server, texts: list[tuple[str, int]], clients: int, seconds: float) -> Load:
    """Each of ``clients`` asks again as soon as it is answered."""
    found = Load()
    stop = time.perf_counter() + seconds
    requests = [(request_bytes(server, [text]), tokens) for text, tokens in texts]

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        place = number * len(requests) // clients
        while time.perf_counter() < stop:
            request, tokens = requests[place % len(requests)]
            place += 1
            started = time.perf_counter()
            found.statuses[await exchange(reader, writer, request)] += 1
            found.latencies.append(time.perf_counter() - started)
            found.tokens += tokens
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    found.seconds = time.perf_counter() - started
    return found


async def soak(server: Server, texts: list[tuple[str, int]], rate: float, seconds: float) -> dict[str, Any]:
    """Requests at ``rate`` tokens a second whatever the answers, and the server's memory minute by minute."""
    statuses: Counter[int] = Counter()
    process = psutil.Process(server.pid)
    megabytes: list[float] = []
    rng = random.Random(17)  # noqa: S311 - a workload to be repeated

    async def ask(request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        statuses[await exchange(reader, writer, request)] += 1
        writer.close()

    started = time.perf_counter()
    sent = 0
    async with asyncio.TaskGroup() as group:
        while (now := time.perf_counter() - started) < seconds:
            if now >= len(megabytes) * seconds / 10:
                megabytes.append(round(process.memory_info().rss / 1e6))
            while sent < now * rate:
                chosen = rng.sample(texts, SOAK_TEXTS)
                group.create_task(ask(request_bytes(server, [text for text, _ in chosen])))
                sent += sum(tokens for _, tokens in chosen)
            await asyncio.sleep(0.01)
    megabytes.append(round(process.memory_info().rss / 1e6))
    return {"seconds": seconds, "offered_tokens_per_second": rate, "statuses": dict(statuses), "megabytes": megabytes}


def request_bytes(server: Server, texts: list[str]) -> bytes:
    """A whole HTTP request for the vectors of ``texts``."""
    body = json.dumps({"input": texts, "model": server.model, "encoding_format": "base64"}).encode()
    path = "/v1/embeddings" if server.name.startswith("ours") else "/embeddings"
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send a request, read its answer whole, return its status; a client this small hardly takes from the server."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(head.split(b" ")[1])


if __name__ == "__main__":
    main()
