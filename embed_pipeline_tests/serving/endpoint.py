"""An endpoint in this process, on a real socket, for the tests."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.serving.connections import bind
from embed_pipeline.serving.server import EmbeddingServer
from embed_pipeline.serving.service import Service
from embed_pipeline.settings import Paths, Serving, Settings
from embed_pipeline.storage import file_hash

MODEL = "embed-pipeline"
DEADLINE = 60.0


def corpus_of(texts: Sequence[str]) -> pl.DataFrame:
    """The texts as the segments of one document."""
    places = {"document_id": "d", "path": "a.md", "title": "A", "heading_path": "", "token_count": 9, "batch": "1"}
    rows = [
        {"segment_id": f"s{index:03}", "position": index, "text": text, "label_set": None, **places}
        for index, text in enumerate(texts)
    ]
    return tables.CORPUS.frame(rows)


@dataclass
class Running:
    """A running endpoint."""

    url: str
    service: Service
    server: EmbeddingServer
    client: httpx.Client

    def embed(self, texts: str | list[Any], **fields: Any) -> httpx.Response:
        return self.client.post("/v1/embeddings", json={"input": texts, "model": MODEL, **fields})

    def vectors(self, texts: str | list[str], **fields: Any) -> np.ndarray:
        answer = self.embed(texts, **fields)
        assert answer.status_code == 200, answer.text
        return np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.settimeout(DEADLINE)
        return connection

    def metric(self, name: str) -> float:
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"embed_{name} "):
                return float(line.split()[-1])
        raise AssertionError(name)


@contextmanager
def running(
    bundle: Path, *, api_key: str | None = None, store: Path | None = None, **serving: Any
) -> Iterator[Running]:
    """Serve ``bundle`` on a free port while the block runs."""
    paths = Paths(store=store or bundle.parent / "no-store")
    settings = Settings(paths=paths, serving=Serving(**{"port": "auto", "cores": 1, **serving}))
    service = Service(settings, api_key)
    server = EmbeddingServer(bundle, service, bind(settings.serving))
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=DEADLINE) as client:
            eventually(lambda: service.ready or not thread.is_alive())
            yield Running(server.url, service, server, client)
    finally:
        server.drain()
        thread.join()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.005)


def drip(connection: socket.socket, byte: bytes) -> None:
    """Send a byte now and then, until the other side has closed.

    Raises:
        ConnectionError: it has.
    """
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        connection.sendall(byte)
        time.sleep(0.02)


def changed(bundle: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy of ``bundle`` at ``copy`` that says other values in its JSON file ``name``, and stands by them."""
    shutil.copytree(bundle, copy)
    written = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**written, **values}))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["version"] = copy.name
    manifest["files"][name] = file_hash(copy / name)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@dataclass
class Gate:
    """In place of a model's inference: runs it only once opened, and notes every batch."""

    infer: Callable[..., np.ndarray]
    opened: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)

    def __call__(self, ids: Sequence[Any], *, alone: bool) -> np.ndarray:
        self.batches.append([len(row) for row in ids])
        assert self.opened.wait(DEADLINE)
        return self.infer(ids, alone=alone)


@contextmanager
def gated(service: Service) -> Iterator[Gate]:
    """Hold the inference of the first model; it is let go at the end of the block, if not before."""
    batcher = service.models[0]._sides["passage"].batcher
    gate = Gate(batcher._infer)
    batcher._infer = gate
    try:
        yield gate
    finally:
        gate.opened.set()
        batcher._infer = gate.infer
