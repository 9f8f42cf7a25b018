"""TensorRT on an NVIDIA GPU: the engine of a release, or its fp16 export through onnxruntime's TensorRT provider."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import Backend, EncoderConfig, Floats
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.storage import file_hash

ENGINE_FILE = "model.plan"
ENGINE_CONFIG_FILE = "engine.json"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embeddings"
_BATCH_TOKENS = 16_384
_PROVIDER = "TensorrtExecutionProvider"


class TensorRTUnavailable(RuntimeError):  # noqa: N818 - a state of the machine, not a fault
    """This machine cannot build or run an engine; the message is the plain reason."""


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine is built for: (batch, sequence) at least, best and at most."""

    least: tuple[int, int]
    best: tuple[int, int]
    most: tuple[int, int]

    @classmethod
    def covering(cls, max_tokens: int, batch_tokens: int = _BATCH_TOKENS) -> Profile:
        """From one token to the model's limit; at most as many rows as ``batch_tokens`` holds at that limit.

        Raises:
            ModelError: a value is below 1.
        """
        if max_tokens < 1 or batch_tokens < 1:
            message = f"max_tokens is {max_tokens} and batch_tokens {batch_tokens}; both must be at least 1"
            raise ModelError(message)
        rows = max(1, batch_tokens // max_tokens)
        return cls(least=(1, 1), best=(max(1, rows // 2), max(1, max_tokens // 2)), most=(rows, max_tokens))


def require_tensorrt() -> tuple[Any, str]:
    """The tensorrt module and the GPU's name.

    Raises:
        TensorRTUnavailable: ``no NVIDIA GPU`` or ``tensorrt is not installed``.
    """
    import torch

    if not torch.cuda.is_available():
        message = "no NVIDIA GPU"
        raise TensorRTUnavailable(message)
    if importlib.util.find_spec("tensorrt") is None:
        message = "tensorrt is not installed"
        raise TensorRTUnavailable(message)
    return importlib.import_module("tensorrt"), str(torch.cuda.get_device_name())


class TensorRTBackend(Backend):
    """An engine, which runs on the kind of GPU and with the version of TensorRT that it was built for."""

    runtime = "tensorrt"
    device = "cuda"

    def __init__(self, folder: Path) -> None:
        """Open the engine in ``folder``.

        Args:
            folder: holds ``model.plan``, ``engine.json``, ``tokenizer.json`` and ``embedding_config.json``.

        Raises:
            TensorRTUnavailable: there is no NVIDIA GPU, or tensorrt is not installed.
            ModelError: a file is missing or cannot be read, or the engine is for another GPU or version.
        """
        super().__init__(EncoderConfig.read(folder))
        trt, gpu = require_tensorrt()
        import torch

        self._path = path = folder / ENGINE_FILE
        facts = _facts(folder)
        built_for, here = (facts["gpu"], facts["tensorrt"]), (gpu, str(trt.__version__))
        if built_for != here:
            message = f"{path} is for {built_for[0]} with TensorRT {built_for[1]}; this is {here[0]} with {here[1]}"
            raise ModelError(message)
        self._rows = int(facts["profile"]["max"][0])
        # Both must outlive the context.
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            message = f"TensorRT cannot load {path}; its log, above, says why"
            raise ModelError(message)
        self._context = self._engine.create_execution_context()
        # TensorRT synchronises the whole device for a call on the default stream.
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch does not type it
        self._lock = threading.Lock()
        self._built_for = built_for

    @cached_property
    def identity(self) -> str:
        """The engine's file, the GPU and the version of TensorRT."""
        gpu, version = self._built_for
        return f"tensorrt {version} {gpu} {file_hash(self._path)}"

    def _begin(
        self,
        tokens: NDArray[np.int64],
        mask: NDArray[np.int64],
        *,
        alone: bool,  # noqa: ARG002 - a GPU runs one batch at a time
    ) -> Callable[[], Floats]:
        vectors = np.concatenate([self._run(*part) for part in _parts(tokens, mask, self._rows)])
        return lambda: vectors

    def _run(self, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> Floats:
        """Vectors of at most as many rows as the engine takes.

        Raises:
            ModelError: the engine does not run.
        """
        import torch

        shape = tokens.shape
        # A context holds the addresses of one call.
        with self._lock, torch.cuda.stream(self._stream):
            given = [torch.from_numpy(np.ascontiguousarray(part)).to(self.device) for part in (tokens, mask)]
            found = torch.empty((shape[0], self.dimensions), dtype=torch.float32, device=self.device)
            for name, tensor in zip(INPUTS, given, strict=True):
                if not self._context.set_input_shape(name, shape):
                    message = f"{self._path} takes no batch of {shape[0]} texts of {shape[1]} tokens"
                    raise ModelError(message)
                self._context.set_tensor_address(name, tensor.data_ptr())
            self._context.set_tensor_address(OUTPUT, found.data_ptr())
            if not self._context.execute_async_v3(self._stream.cuda_stream):
                message = f"TensorRT cannot run {self._path}; its log, above, says why"
                raise ModelError(message)
            self._stream.synchronize()
            vectors: Floats = found.cpu().numpy()
        return vectors


class TensorRTProviderBackend(OnnxBackend):
    """An export that onnxruntime has TensorRT compute: its engine is built when it is opened, and kept."""

    runtime = "onnxruntime-tensorrt"

    def __init__(self, onnx_folder: Path, engines: Path) -> None:
        """Open ``onnx_folder``.

        Args:
            onnx_folder: the export, in fp16.
            engines: folder in which built engines are kept.

        Raises:
            TensorRTUnavailable: onnxruntime has no TensorRT provider here, or it does not start.
            ModelError: a file is missing or cannot be read.
        """
        import onnxruntime

        if _PROVIDER not in onnxruntime.get_available_providers():
            message = "onnxruntime has no TensorRT provider here"
            raise TensorRTUnavailable(message)
        profile = Profile.covering(EncoderConfig.read(onnx_folder).max_tokens)
        self._rows = profile.most[0]
        engines.mkdir(parents=True, exist_ok=True)
        super().__init__(onnx_folder, 0, provider=(_PROVIDER, provider_options(profile, engines)))

    def _begin(self, tokens: NDArray[np.int64], mask: NDArray[np.int64], *, alone: bool) -> Callable[[], Floats]:
        parts = [
            super(TensorRTProviderBackend, self)._begin(*part, alone=alone) for part in _parts(tokens, mask, self._rows)
        ]
        return lambda: np.concatenate([part() for part in parts])


def provider_options(profile: Profile, engines: Path) -> dict[str, str]:
    """Options of onnxruntime's TensorRT provider: one engine for all shapes of ``profile``, kept in ``engines``."""

    def shapes(shape: tuple[int, int]) -> str:
        return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in INPUTS)

    return {
        # The graph's own casts say what is computed in fp16.
        "trt_fp16_enable": "1",
        "trt_profile_min_shapes": shapes(profile.least),
        "trt_profile_opt_shapes": shapes(profile.best),
        "trt_profile_max_shapes": shapes(profile.most),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engines),
    }


def _parts(
    tokens: NDArray[np.int64], mask: NDArray[np.int64], rows: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """A padded batch in parts of at most ``rows`` rows."""
    return ((tokens[start : start + rows], mask[start : start + rows]) for start in range(0, len(tokens), rows))


def _facts(folder: Path) -> dict[str, Any]:
    """What ``engine.json`` says of the engine.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = folder / ENGINE_CONFIG_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("gpu", "tensorrt", "profile")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} does not describe an engine: {error}"
        raise ModelError(message) from error
