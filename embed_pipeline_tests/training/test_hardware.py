from __future__ import annotations

from pathlib import Path

import torch

from embed_pipeline.settings import Embedding
from embed_pipeline.training.hardware import cpu_has_bf16, training_precision

CPU = torch.device("cpu")


def test_bf16_is_for_processors_that_have_it(tmp_path: Path) -> None:
    has, has_not = tmp_path / "has", tmp_path / "has_not"
    has.write_text("model name : x\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n")
    has_not.write_text("model name : avx512_bf16\nflags\t\t: fpu avx2\n")
    assert cpu_has_bf16(has)
    assert not cpu_has_bf16(has_not)
    assert not cpu_has_bf16(tmp_path / "absent")


def test_a_precision_that_is_set_is_kept() -> None:
    assert training_precision(Embedding(precision="fp32"), CPU) == "fp32"
    assert training_precision(Embedding(precision="bf16"), CPU) == "bf16"
