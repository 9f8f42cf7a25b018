from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.llm.embedded import fast_weights, q4_1_to_q8_0

_RANDOM = np.random.default_rng(0)


def _q4_1(blocks: int) -> tuple[bytes, np.ndarray]:
    """Random Q4_1 blocks and the weights that they mean."""
    scale = _RANDOM.uniform(0, 0.1, (blocks, 1)).astype(np.float16)
    least = _RANDOM.uniform(-0.5, 0.1, (blocks, 1)).astype(np.float16)
    packed = _RANDOM.integers(0, 256, (blocks, 16), dtype=np.uint8)
    levels = np.concatenate([packed & 15, packed >> 4], axis=1)
    stored = np.concatenate([scale.view(np.uint8), least.view(np.uint8), packed], axis=1)
    return stored.tobytes(), levels * scale.astype(np.float32) + least.astype(np.float32)


def _gguf(tensors: list[tuple[bytes, tuple[int, ...], int, bytes]]) -> bytes:
    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    pairs = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    pairs += text(b"words") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc")
    pairs += text(b"sizes") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3)
    head, data = b"", b""
    for name, shape, kind, content in tensors:
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 3) + pairs + head
    return start + b"\0" * (-len(start) % 32) + data


def test_eight_bits_hold_what_four_said() -> None:
    stored, weights = _q4_1(50)
    blocks = q4_1_to_q8_0(np.frombuffer(stored, np.uint8).reshape(50, 20))
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    read = blocks[:, 2:].copy().view(np.int8) * scale
    greatest = np.abs(weights).max(axis=1, keepdims=True)
    assert (np.abs(read - weights) <= 0.006 * greatest).all()
    assert not q4_1_to_q8_0(np.zeros((2, 20), np.uint8))[:, 2:].any()


def test_only_the_four_bit_matrices_are_rewritten(tmp_path: Path) -> None:
    stored, _ = _q4_1(6)
    norm = np.arange(5, dtype=np.float32).tobytes()
    file = tmp_path / "model.gguf"
    file.write_bytes(_gguf([(b"norm", (5,), 0, norm), (b"matrix", (64, 3), 3, stored), (b"last", (5,), 0, norm)]))
    expected = q4_1_to_q8_0(np.frombuffer(stored, np.uint8).reshape(6, 20)).tobytes()
    # The float tensors keep their padding, which is part of what they took.
    pad = b"\0" * 12
    wanted = _gguf([(b"norm", (5,), 0, norm + pad), (b"matrix", (64, 3), 8, expected), (b"last", (5,), 0, norm + pad)])
    with fast_weights(file) as faster:
        assert faster != file
        assert faster.read_bytes() == wanted
    assert not faster.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is no model",
        _gguf([(b"matrix", (64, 3), 3, b"")])[:90],
        _gguf([(b"norm", (5,), 0, b"\0" * 20)]),
        b"GGUF" + struct.pack("<IQQ", 99, 1, 0),
    ],
    ids=["empty", "words", "cut", "nothing to gain", "version"],
)
def test_anything_else_is_given_back_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with fast_weights(file) as given:
        assert given == file
