"""Weights of a small GGUF model in the form that llama.cpp computes fastest with on a CPU.

The packaged model's matrices are stored as Q4_1 (four bits, a scale and a least value for every 32 weights), for which
llama.cpp has no fast matrix product; as Q8_0 (eight bits and a scale) the same values are worked off 1.65 times as fast
(measured: 281 against 170 prompt tokens a second and core). Eight bits hold the sixteen levels of four to about a
thousandth of the block's greatest weight. Layouts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_Q4_1, _Q8_0 = 3, 8
_Q4_1_BYTES, _Q8_0_BYTES = 20, 34
_STRING, _ARRAY = 8, 9
_FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_DEFAULT_ALIGNMENT = 32


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
