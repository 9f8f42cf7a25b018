from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embed_pipeline.settings import Embedding
from embed_pipeline.training import hardware
from embed_pipeline.training.hardware import cpu_has_amx, cpu_has_bf16, training_precision

CPU = torch.device("cpu")


def test_what_a_processor_does_in_bf16_is_read_from_its_flags(tmp_path: Path) -> None:
    units, instructions, neither = tmp_path / "units", tmp_path / "instructions", tmp_path / "neither"
    units.write_text("model name : x\nflags\t\t: fpu avx512f avx512_bf16 amx_tile amx_bf16\n")
    instructions.write_text("model name : amx_bf16\nflags\t\t: fpu avx512f avx512_bf16\n")
    neither.write_text("model name : avx512_bf16\nflags\t\t: fpu avx2\n")
    found = {path.name: (cpu_has_bf16(path), cpu_has_amx(path)) for path in (units, instructions, neither)}
    assert found == {"units": (True, True), "instructions": (True, False), "neither": (False, False)}
    assert not cpu_has_bf16(tmp_path / "absent")
    assert not cpu_has_amx(tmp_path / "absent")


@pytest.mark.parametrize(("amx", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_processor_trains_in_bf16_only_with_units_for_it(
    *, amx: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cpu_has_amx", lambda: amx)
    assert training_precision(Embedding(), CPU) == precision


def test_a_precision_that_is_set_is_kept() -> None:
    assert training_precision(Embedding(precision="fp32"), CPU) == "fp32"
    assert training_precision(Embedding(precision="bf16"), CPU) == "bf16"
