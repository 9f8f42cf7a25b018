"""The endpoint's batches without HTTP: one on each core against one at a time over all cores, and those of a GPU.

    python benchmarks/lanes.py
    python benchmarks/lanes.py --gpu

Clients in a closed loop hand one text each to the endpoint's queue, queries of 8 to 20 tokens and passages of 100 to
250 in turn, and wait for its vector; the model is the packaged one on onnxruntime in fp32. Both ways take turns, round
by round, and so do both ways to encode the same texts in one call. With ``--gpu`` the model is on torch in bf16, and
batches are of more or fewer tokens, and of texts that differ in length by more or less. Results go to
``benchmarks/results/lanes.json``, under the number of cores or the name of the card.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from finetuning import machine
from numpy.typing import NDArray
from serving_load import CPU, GPU, make_texts

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import resolve_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.machine import usable_cores
from embed_pipeline.serving.batcher import Batcher, Cores
from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.settings import Embedding, Release

RESULTS = Path(__file__).parent / "results" / "lanes.json"
QUEUE_TOKENS = 1_000_000

Row = NDArray[np.int32]


@dataclass(frozen=True)
class Batches:
    """What the queue makes of waiting texts: tokens in a batch, and by how many its texts may differ in length."""

    tokens: int
    most_padding: int


ON_CORES = Batches(768, 16)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load in each round")
    parser.add_argument("--gpu", action="store_true", help="batches on a GPU, in place of those on cores")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, exported = Path(resolve_model("packaged")), Path(folder) / "onnx"
        export_onnx(model, exported, Release(), Embedding(device="cpu"))
        if arguments.gpu:
            measured = measure_gpu(TorchBackend.load(model, Embedding(), "bf16"), arguments.rounds, arguments.seconds)
        else:
            measured = measure(OnnxBackend(exported), arguments.rounds, arguments.seconds)
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    kept[machine() if arguments.gpu else f"{usable_cores()} cores"] = measured
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=1))


def measure(backend: OnnxBackend, rounds: int, seconds: float) -> dict[str, Any]:
    """Tokens a second both ways, offline and for each number of clients, and the clients' waits."""
    texts = [text for text, _ in make_texts(backend, CPU.texts)]
    rows = backend.tokenize(texts)
    tokens, every = sum(len(row) for row in rows), backend.lanes
    found = Loads(("way", "clients"), rounds, seconds)
    for _ in range(rounds):
        for way, lanes in (("side by side", every), ("one at a time", 1)):
            backend.lanes = lanes
            started = time.perf_counter()
            Encoder(backend).encode(texts, "query")
            found.add((way, "offline"), tokens / (time.perf_counter() - started), [])
            for clients in CPU.clients:
                found.add((way, str(clients)), *asyncio.run(load(backend, rows, clients, seconds, ON_CORES)))
    backend.lanes = every
    return found.summary()


def measure_gpu(backend: TorchBackend, rounds: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of each kind of batch and number of clients, and the clients' waits."""
    rows = backend.tokenize([text for text, _ in make_texts(backend, GPU.texts)])
    kinds = [Batches(tokens, padding) for tokens in (8_192, 32_768) for padding in (16, 128, backend.max_tokens)]
    found = Loads(("batch_tokens", "most_padding", "clients"), rounds, seconds)
    for _ in range(rounds):
        for batches in kinds:
            for clients in GPU.clients:
                loaded = asyncio.run(load(backend, rows, clients, seconds, batches))
                found.add((batches.tokens, batches.most_padding, clients), *loaded)
    return found.summary()


@dataclass
class Loads:
    """Rates and waits of loads that are repeated in rounds, by what tells the loads apart."""

    columns: tuple[str, ...]
    rounds: int
    seconds: float
    rates: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)
    waits: dict[tuple[Any, ...], list[float]] = field(default_factory=dict)

    def add(self, key: tuple[Any, ...], rate: float, waits: list[float]) -> None:
        """One load's tokens a second and what its texts waited."""
        self.rates.setdefault(key, []).append(rate)
        self.waits.setdefault(key, []).extend(waits)

    def summary(self) -> dict[str, Any]:
        """Medians of the rates, percentiles of all waits."""
        rows = [
            {
                **dict(zip(self.columns, key, strict=True)),
                "tokens_per_second": round(statistics.median(rates)),
                **percentiles(self.waits[key]),
            }
            for key, rates in self.rates.items()
        ]
        return {"rounds": self.rounds, "seconds": self.seconds, "rows": rows}


def percentiles(waits: list[float]) -> dict[str, float]:
    """Milliseconds that half and nearly all of the texts waited at most."""
    if not waits:
        return {}
    return {f"p{share}_ms": round(float(np.percentile(waits, share)) * 1000, 1) for share in (50, 95)}


async def load(
    backend: Backend, rows: list[Row], clients: int, seconds: float, batches: Batches
) -> tuple[float, list[float]]:
    """Tokens a second and each wait, where each of ``clients`` asks again as soon as it is answered."""
    queue = Batcher(
        backend.infer,
        lanes=backend.lanes,
        batch_tokens=batches.tokens,
        max_padding=batches.most_padding,
        max_queue_tokens=QUEUE_TOKENS,
        max_queue_seconds=math.inf,
        metrics=Metrics(),
        cores=Cores(backend.lanes),
    )
    started = time.perf_counter()
    waits: list[float] = []
    tokens = 0

    async def client(number: int) -> None:
        nonlocal tokens
        place = number * len(rows) // clients
        while (asked := time.perf_counter()) < started + seconds:
            row = rows[place % len(rows)]
            place += 1
            await queue.submit([row], 0).future
            waits.append(time.perf_counter() - asked)
            tokens += len(row)

    await asyncio.gather(*(client(number) for number in range(clients)))
    rate = tokens / (time.perf_counter() - started)
    queue.close()
    return rate, waits


if __name__ == "__main__":
    main()
