"""What this machine has: cores within a quota, arithmetic, memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embed_pipeline import machine
from embed_pipeline.llm.embedded import lay_out
from embed_pipeline.machine import (
    cpu_gains_by_bf16,
    cpu_has_bf16,
    gains_by_onednn,
    processor,
    torch_multiplies,
    training_precision,
    usable_cores,
)
from embed_pipeline.settings import Training

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("900000000 100000", None)]
)
def test_a_container_uses_no_more_cores_than_its_quota(tmp_path: Path, quota: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == (cores or usable_cores(tmp_path / "none"))
    assert usable_cores() >= 1


def test_the_embedded_language_model_keeps_to_the_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed_pipeline.llm.embedded.usable_cores", lambda: 3)
    assert (lay_out(8, "all", 1).servers, lay_out(8, "all", 2_000_000_000).threads) == (3, 3)


def test_what_a_processor_does_in_bf16_is_read_from_its_flags(tmp_path: Path) -> None:
    intel, amd = "vendor_id\t: GenuineIntel\nmodel name : amx_bf16\n", "vendor_id\t: AuthenticAMD\nmodel name : x\n"
    processors = {
        "units": intel + "flags\t\t: fpu avx512f avx512_bf16 amx_tile amx_bf16\n",
        "instructions": intel + "flags\t\t: fpu avx512f avx512_bf16\n",
        "of AMD": amd + "flags\t\t: fpu avx512f avx512_bf16\n",
        "neither": amd + "flags\t\t: fpu avx2\n",
    }
    found = {}
    for name, text in processors.items():
        path = tmp_path / name
        path.write_text(text)
        found[name] = (cpu_has_bf16(path), cpu_gains_by_bf16(path))
    absent = tmp_path / "absent"
    assert found == {
        "units": (True, True),
        "instructions": (True, False),
        "of AMD": (True, True),
        "neither": (False, False),
    }
    assert not cpu_has_bf16(absent)
    assert not cpu_gains_by_bf16(absent)
    assert (processor(tmp_path / "of AMD"), bool(processor(absent))) == ("x", True)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch multiplies without MKL here")
@pytest.mark.parametrize(
    ("vendor", "family", "flags", "gains"),
    [
        ("AuthenticAMD", 26, "avx2 avx512f", True),
        ("AuthenticAMD", 25, "avx2 avx512f", False),
        ("AuthenticAMD", 26, "avx2", False),
        ("GenuineIntel", 26, "avx512f", False),
    ],
)
def test_mkl_is_replaced_where_it_leaves_instructions_unused(
    tmp_path: Path, vendor: str, family: int, flags: str, *, gains: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}\ncpu family\t: {family}\nflags : fpu {flags}\n")
    assert gains_by_onednn(tmp_path / "cpuinfo") is gains
    assert not gains_by_onednn(tmp_path / "absent")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies in more precisions")
@pytest.mark.parametrize("bf16", [True, False])
def test_torch_multiplies_what_the_processor_does(*, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: bf16)
    assert [torch_multiplies(precision) for precision in ("fp32", "bf16", "fp16")] == [True, bf16, False]


@pytest.mark.parametrize(("gains", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_processor_trains_in_bf16_only_where_it_gains(
    *, gains: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_gains_by_bf16", lambda: gains)
    assert training_precision(Training(), CPU) == precision


def test_a_precision_that_is_set_is_kept() -> None:
    assert training_precision(Training(precision="fp32"), CPU) == "fp32"
    assert training_precision(Training(precision="bf16"), CPU) == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize(
    "entry", ["embed_pipeline.definitions", "embed_pipeline.cli", "embed_pipeline.serving.__main__"]
)
def test_no_entry_point_loads_openmp_before_it_says_how_threads_wait(entry: str) -> None:
    code = (
        f"import os, sys, {entry}; from embed_pipeline.machine import sleep_at_barriers; early = sorted("
        "{'torch', 'faiss', 'sklearn', 'onnxruntime'} & set(sys.modules)); sleep_at_barriers(); "
        "print(early, os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'], os.environ['KMP_BLOCKTIME'])"
    )
    environment = {**os.environ, "GOMP_SPINCOUNT": "7"}
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert ran.stdout.split("\n")[-2] == "[] PASSIVE 7 0"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps nothing, or has no way to ask")
def test_freed_memory_goes_back_to_the_system():
    import psutil

    process = psutil.Process()
    # Too small to be mapped one by one, and the last one keeps the heap from shrinking by itself.
    blocks = [bytes(60_000) for _ in range(3000)]
    last = blocks.pop()
    del blocks
    before = process.memory_info().rss
    machine.return_freed_memory()
    assert process.memory_info().rss < before - 100_000_000
    assert last
