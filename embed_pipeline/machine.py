"""What this machine has for all that computes: cores, memory, arithmetic, and room for so many tokens' activations."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from embed_pipeline.settings import Training

Precision = Literal["fp32", "bf16"]

_CPUINFO = Path("/proc/cpuinfo")
_ZEN_5 = 26
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# A GPU's memory is the training's own; a machine's is shared with all else that runs there.
_MEMORY_SHARE = {"cpu": 0.35, "cuda": 0.7}
# Activations kept for the backward pass, in values per token, layer and hidden unit (Korthikanti et al. 2022, eq. 1,
# without tensor parallelism: 34 bytes at two bytes a value), rounded up for attention maps.
_VALUES_PER_UNIT = 24
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

CHECKPOINTED_FACTOR = 8
"""How many times more tokens fit where layers keep their inputs alone and compute the rest again."""

# How OpenMP's threads wait for each other: of GNU (torch, faiss, scikit-learn) and of Intel and LLVM.
_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def sleep_at_barriers() -> None:
    """Have OpenMP's threads sleep while they wait for each other, in this process and in those that it starts.

    By default they spin: next to other work they then hold the cores that the awaited thread needs. OpenMP reads the
    variables when it is loaded, so this comes before torch or faiss is imported. What the environment sets stays.
    """
    for name, value in _ASLEEP.items():
        os.environ.setdefault(name, value)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc).

    What a model's sessions held stays with this process otherwise: 250 MB for each release that all-MiniLM-L6-v2 was
    replaced by, without an end.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def usable_cores(quota: Path = _CPU_QUOTA) -> int:
    """Cores that this process may use: those it may run on, threads of one core as one, within a container's quota."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    share, _, period = quota.read_text(encoding="ascii").partition(" ") if quota.is_file() else ("max", "", "")
    return cores if share == "max" else max(1, min(cores, math.ceil(int(share) / int(period))))


def training_precision(training: Training, device: torch.device) -> Precision:
    """``training.precision``, or for ``auto`` bf16 where it is faster: GPUs that have it, some processors."""
    if training.precision != "auto":
        return training.precision
    if device.type == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_gains_by_bf16() else "fp32"


def cpu_has_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """True where the processor multiplies bfloat16 natively (AVX512-BF16 or AMX); False where that is not known."""
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags(cpuinfo))


def cpu_gains_by_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """True on processors with AMX, and on AMD's with AVX512-BF16, where a training step takes 0.7 of its time in fp32.

    AVX512-BF16 alone does not make it so: on another processor torch's products took 1.7 times as long as in fp32.
    """
    flags = _cpu_flags(cpuinfo)
    return "amx_bf16" in flags or ("avx512_bf16" in flags and _is_amd(cpuinfo))


@cache
def gains_by_onednn(cpuinfo: Path = _CPUINFO) -> bool:
    """True on AMD's processors that compute AVX-512 at its full width, and which MKL, torch's default, leaves unused.

    Those before (Zen 4) compute it at half of it: there a product gains a tenth, and a training step nothing.
    """
    family = int(_cpu_line("cpu family", cpuinfo) or 0)
    if "avx512f" not in _cpu_flags(cpuinfo) or not _is_amd(cpuinfo) or family < _ZEN_5:
        return False
    import torch

    return bool(torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def torch_multiplies(precision: str) -> bool:
    """Whether torch multiplies in ``precision`` (fp32, bf16 or fp16) on this machine without emulating it."""
    if precision == "fp32":
        return True
    import torch

    if not torch.cuda.is_available():
        return precision == "bf16" and cpu_has_bf16()
    return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name, or the architecture where the name is not known."""
    return _cpu_line("model name", cpuinfo) or platform.machine()


def _is_amd(cpuinfo: Path) -> bool:
    return _cpu_line("vendor_id", cpuinfo) == "AuthenticAMD"


def _cpu_flags(cpuinfo: Path) -> set[str]:
    return set(_cpu_line("flags", cpuinfo).split())


def _cpu_line(name: str, cpuinfo: Path) -> str:
    """What the first processor's line of that name says; nothing where that is not known."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def activation_tokens(model: nn.Module, precision: Precision, device: torch.device) -> int:
    """Tokens whose activations fit in a share of this machine's memory, for one backward pass over them all.

    It depends on the machine's total memory alone, so that the same machine always decides alike.
    """
    layers = int(getattr(_config(model), "num_hidden_layers", 0) or 12)
    bytes_per_token = layers * width(model) * _VALUES_PER_UNIT * (2 if precision == "bf16" else 4)
    return max(1, int(total_memory(device) * _MEMORY_SHARE[device.type]) // bytes_per_token)


def width(model: nn.Module) -> int:
    """Hidden size of the encoder; 768, the commonest, where it does not say."""
    return int(getattr(_config(model), "hidden_size", 0) or 768)


def _config(model: nn.Module) -> Any:  # noqa: ANN401 - transformers' configurations share no public base
    encoder = next(iter(model.children()), None)
    return getattr(getattr(encoder, "auto_model", None), "config", None)


def total_memory(device: torch.device) -> int:
    """Bytes of memory of the device; for the CPU, of the machine or of the container's limit."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def describe(device: torch.device) -> str:
    """The device in words, for run records."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
