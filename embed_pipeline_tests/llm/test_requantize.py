"""Weights in a faster form: the same values, the rest of the file as it was, and anything else left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from embed_pipeline.llm.embedded import fast_weights

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
MATRIX = np.random.default_rng(0).normal(0, 0.3, (6, 64)).astype(np.float32)
MATRIX[2, :32] = 0
NORM = np.arange(5, dtype=np.float32)
WORDS, KINDS = ["<s>", "ein", "Wort", "größer"], [3, 1, 1, 6]


def write_model(file: Path, kind: GGMLQuantizationType = Q4_1, alignment: int = 32) -> Path:
    """A file with fields of every sort, a vector in fp32 and a matrix of ``kind``."""
    writer = GGUFWriter(file, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(3)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", val=False)
    writer.add_token_list(WORDS)
    writer.add_token_types(KINDS)
    writer.add_tensor("norm", NORM)
    writer.add_tensor("matrix", quantize(MATRIX, kind), raw_dtype=kind)
    writer.add_tensor("last", NORM + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(("kind", "alignment"), [(Q4_1, 32), (Q4_1, 128), (Q4_0, 32), (Q5_0, 32), (Q5_1, 32)])
def test_only_the_slow_matrices_are_rewritten(tmp_path: Path, kind: GGMLQuantizationType, alignment: int) -> None:
    file = write_model(tmp_path / "model.gguf", kind, alignment)
    old, new = GGUFReader(file), GGUFReader(fast_weights(file, tmp_path / "kept"))
    fields = [[(name, f.types, f.contents()) for name, f in reader.fields.items()] for reader in (old, new)]
    assert fields[0] == fields[1]
    assert new.fields["tokenizer.ggml.tokens"].contents() == WORDS
    norm, matrix, last = new.tensors
    assert all(tensor.data_offset % alignment == 0 for tensor in new.tensors)
    assert [(t.name, t.tensor_type, t.shape.tolist()) for t in new.tensors] == [
        ("norm", GGMLQuantizationType.F32, [5]), ("matrix", Q8_0, [64, 6]), ("last", GGMLQuantizationType.F32, [5]),
    ]  # fmt: skip
    np.testing.assert_array_equal(norm.data, NORM)
    np.testing.assert_array_equal(last.data, NORM + 1)
    before, after = dequantize(old.tensors[1].data, kind), dequantize(matrix.data, Q8_0)
    # Half a step of 127, and the rounding of the step to float16.
    bound = np.abs(before.reshape(-1, 32)).max(axis=1) * (0.5 / 127 + 2**-11)
    assert (np.abs(after - before).reshape(-1, 32) <= bound[:, None]).all()


def test_the_faster_file_is_written_once_for_each_state_of_the_model(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf")
    first = fast_weights(file, tmp_path / "kept")
    written = first.stat()
    assert fast_weights(file, tmp_path / "kept").stat() == written
    write_model(file, Q5_1)
    assert fast_weights(file, tmp_path / "kept") != first
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".gguf", ".gguf"]


@pytest.mark.parametrize("damage", ["", "this is no model", "cut", "version"])
def test_what_gguf_cannot_read_is_left_to_llama_cpp(tmp_path: Path, damage: str) -> None:
    file = write_model(tmp_path / "model.gguf")
    whole = file.read_bytes()
    of_another_version = whole[:4] + (99).to_bytes(4, "little") + whole[8:]
    file.write_bytes({"cut": whole[:-200], "version": of_another_version}.get(damage, damage.encode()))
    assert fast_weights(file, tmp_path / "kept").resolve() == file


def test_a_model_without_slow_matrices_is_used_as_it_is(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf", Q8_0)
    assert fast_weights(file, tmp_path / "kept").resolve() == file
