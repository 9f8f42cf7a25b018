"""A TensorRT engine from the exported graph, on a machine with an NVIDIA GPU.

The network is strongly typed: TensorRT 10 takes that as a flag and 11 knows nothing else (11 removed
``BuilderFlag.FP16``, layer precisions and ``OBEY_PRECISION_CONSTRAINTS``). So precision is put into the graph before it
is parsed: matrix products in fp16, normalisation, softmax and pooling in fp32.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from embed_pipeline.embedding.backend import CONFIG_FILE
from embed_pipeline.embedding.onnx_backend import MODEL_FILE, sides_of
from embed_pipeline.embedding.tensorrt_backend import (
    ENGINE_CONFIG_FILE,
    ENGINE_FILE,
    INPUTS,
    Profile,
    TensorRTUnavailable,
    require_tensorrt,
)
from embed_pipeline.release.manifest import ReleaseError
from embed_pipeline.release.parity import PARITY_FILE
from embed_pipeline.release.precision import mixed_precision
from embed_pipeline.storage import file_hash

logger = logging.getLogger(__name__)

TIMING_CACHE_FILE = "timing.cache"
UNAVAILABLE_FILE = "not_built.txt"
"""In place of an engine: the reason why this machine cannot build one."""


def build_engine(
    onnx_folder: Path, output: Path, *, batch_tokens: int = 16_384, timing_cache: Path | None = None
) -> Path:
    """Build the engine of ``onnx_folder`` into ``output`` and return the engine file.

    The folder is one that NVIDIA's embedding NIM takes: ``model.plan`` and the tokenizer. ``engine.json`` says the GPU
    and the TensorRT version that the engine runs on, which are no others than those here, the shapes that it takes and
    the hash of the graph that it was built from.

    Args:
        onnx_folder: the export.
        output: folder for the engine.
        batch_tokens: tokens in the largest batch.
        timing_cache: file that keeps kernel timings between builds; None: inside ``output``.

    Raises:
        TensorRTUnavailable: there is no NVIDIA GPU, or tensorrt is not installed.
        ReleaseError: the graph cannot be parsed or built; TensorRT's own messages are in the error.
    """
    trt, gpu = require_tensorrt()
    if len(sides_of(onnx_folder)) > 1:
        message = "queries and passages take different ways through the model, and an engine has one"
        raise TensorRTUnavailable(message)
    config = json.loads((onnx_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    profile = Profile.covering(int(config["max_tokens"]), batch_tokens)
    output.mkdir(parents=True, exist_ok=True)
    graph = mixed_precision(onnx_folder / MODEL_FILE).SerializeToString()
    cache = timing_cache or output / TIMING_CACHE_FILE
    engine = build_serialized(trt, graph, profile, cache)
    shutil.copytree(
        onnx_folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(f"{MODEL_FILE}*", PARITY_FILE)
    )
    path = output / ENGINE_FILE
    path.write_bytes(engine)
    facts = {
        "engine": path.name,
        "gpu": gpu,
        "tensorrt": str(trt.__version__),
        "precision": "fp16 with fp32 normalisation, softmax and pooling",
        "profile": {"min": profile.least, "opt": profile.best, "max": profile.most},
        "dimensions": config["dimensions"],
        "max_tokens": config["max_tokens"],
        "onnx_sha256": file_hash(onnx_folder / MODEL_FILE),
    }
    (output / ENGINE_CONFIG_FILE).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    logger.info("built %s (%d bytes)", path.name, len(engine))
    return path


def build_serialized(trt: Any, graph: bytes, profile: Profile, timing_cache: Path) -> bytes:  # noqa: ANN401 - a module
    """Configure TensorRT's builder for ``graph`` and build.

    Args:
        trt: the tensorrt module, version 10 or later.
        graph: a serialized ONNX model whose types are final.
        profile: shapes of both inputs.
        timing_cache: read where it exists, and written.

    Raises:
        ReleaseError: parsing or building fails.
    """
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        message = f"TensorRT cannot parse the graph: {reasons}"
        raise ReleaseError(message)
    config = builder.create_builder_config()
    # fp32 parts are fp32: TF32 keeps ten bits of the mantissa, and is on unless cleared.
    config.clear_flag(trt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    for name in INPUTS:
        shapes.set_shape(name, profile.least, profile.best, profile.most)
    config.add_optimization_profile(shapes)
    stored = timing_cache.read_bytes() if timing_cache.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False):
        logger.warning("%s is of another GPU or TensorRT version; kernels are timed anew", timing_cache.name)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        message = "TensorRT built no engine; its log, above, says why"
        raise ReleaseError(message)
    timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)
