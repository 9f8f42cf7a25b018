"""An export in another precision: int8 weights for processors, half precision for GPUs."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from embed_pipeline.embedding.onnx_backend import MODEL_FILE, refuse_outside_data, sides_of
from embed_pipeline.embedding.onnx_export import INLINE_BYTES
from embed_pipeline.release.bundle import EXPORT_FOLDERS
from embed_pipeline.release.manifest import ReleaseError
from embed_pipeline.release.parity import PARITY_FILE, Parity, read_parity
from embed_pipeline.settings import Settings

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

Precision = Literal["int8", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("int8", "fp16")
INT8_BLOCKS: tuple[int | None, ...] = (None, 64)
"""int8 weights that share a scale, fastest first: those of an output channel, then blocks, which lose a twentieth."""
# Of onnxruntime's accuracy levels, the one that rounds what weights are multiplied with as well.
_MULTIPLY_INT8 = 4

# Everything else stays in fp32; sums, norms and softmax lose digits in fp16 that the parity gate asks for.
HALF_OPERATORS = frozenset({"MatMul", "Gemm", "Add", "Mul", "Gelu", "Transpose", "Reshape", "Attention"})


def write_within_bounds(
    onnx_folder: Path,
    output: Path,
    precision: Precision,
    measure: Callable[[Path], Parity],
    settings: Settings,
) -> tuple[Parity, list[str]]:
    """Write the export in another precision: in the fastest form that keeps to its bounds, else in the nearest.

    Args:
        onnx_folder: as :func:`write_precision` takes it.
        output: likewise.
        precision: likewise.
        measure: the parity of an export.
        settings: the bounds.

    Returns:
        The parity of what was written, and what of it misses its bound (:func:`precision_failures`).
    """
    for block in INT8_BLOCKS if precision == "int8" else (None,):
        shutil.rmtree(output, ignore_errors=True)
        write_precision(onnx_folder, output, precision, block=block)
        parity = measure(output)
        failures = precision_failures(precision, parity, settings)
        if not failures:
            break
        logger.info("%s%s: %s", precision, f" by {block}" if block else "", "; ".join(failures))
    return parity, failures


def write_precision(onnx_folder: Path, output: Path, precision: Precision, *, block: int | None = None) -> None:
    """Write the export ``onnx_folder`` to ``output`` in another precision, tokenizer and configuration as they are.

    Args:
        onnx_folder: as :func:`~embed_pipeline.embedding.onnx_export.export_onnx` writes it.
        output: a folder that does not exist.
        precision: ``int8``: weights of the matrix products in 8 bits; ``fp16``: :func:`mixed_precision`.
        block: int8 weights that share a scale, as what they are multiplied with does, while the embeddings stay fp32.
            None: each output channel and each batch has one scale, and the embeddings are in 8 bits too.

    Raises:
        ReleaseError: the result is not a valid graph.
        ModelError: the graph's data lies outside its folder.
    """
    refuse_outside_data(onnx_folder / MODEL_FILE)
    shutil.copytree(onnx_folder, output, ignore=shutil.ignore_patterns(f"{MODEL_FILE}*", PARITY_FILE))
    for part in sides_of(onnx_folder):
        _write_graph(part, output / part.relative_to(onnx_folder), precision, block)


def _write_graph(onnx_folder: Path, output: Path, precision: Precision, block: int | None) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, target = onnx_folder / MODEL_FILE, output / MODEL_FILE
    refuse_outside_data(source)
    large = source.stat().st_size > INLINE_BYTES or any(onnx_folder.glob(f"{MODEL_FILE}.*"))
    if precision == "fp16" or block is not None:
        beside = {"save_as_external_data": True, "location": f"{MODEL_FILE}.data"} if large else {}
        made = mixed_precision(source) if block is None else _in_blocks(source, block)
        onnx.save(made, str(target), **beside)
        return
    # Seven bits of eight, so that processors without VNNI do not saturate and every machine gives what was measured.
    quantize_dynamic(
        source,
        target,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        use_external_data_format=large,
    )


def _in_blocks(path: Path, block: int) -> onnx.ModelProto:
    """The graph at ``path`` with int8 weights, ``block`` of an output channel to a scale."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=_MULTIPLY_INT8, bits=8)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(path)), algo_config=config)
    quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made


def measured_precisions(folder: Path) -> dict[Precision, Parity]:
    """The parity of each export in another precision that lies in ``folder``, under the names of the bundle.

    Raises:
        ReleaseError: the figures of one are missing or damaged.
    """
    named = {precision: folder / EXPORT_FOLDERS[precision] for precision in PRECISIONS}
    return {precision: read_parity(export) for precision, export in named.items() if export.is_dir()}


def precision_failures(precision: Precision, parity: Parity, settings: Settings) -> list[str]:
    """What of an export in another precision misses its bound, a sentence each; empty: it may be released.

    fp16 is held to its vectors. int8 has other vectors by design; it is held to what rankings lose.
    """
    # Written so that a value that is not a number fails.
    if precision == "fp16":
        least = settings.release.min_fp16_cosine
        if not parity.min_cosine >= least:
            return [f"fp16: min cosine {parity.min_cosine:.5f} is below release.min_fp16_cosine {least}"]
        return []
    bound = settings.release.max_int8_ndcg_delta
    if not abs(parity.ndcg_delta) <= bound:
        return [f"int8: nDCG@10 changes by {parity.ndcg_delta:+.4f}, more than release.max_int8_ndcg_delta {bound}"]
    return []


def engine_failures(parity: Parity, settings: Settings) -> list[str]:
    """What of a TensorRT engine misses its bound, that of fp16, a sentence each; empty: it may be released."""
    return [f"TensorRT engine, {failure}" for failure in precision_failures("fp16", parity, settings)]


def mixed_precision(path: Path) -> onnx.ModelProto:
    """The graph at ``path`` with ``HALF_OPERATORS`` in fp16 and the rest in fp32; inputs and output as before.

    Raises:
        ReleaseError: the result is not a valid graph.
        ModelError: the graph's data lies outside its folder.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    refuse_outside_data(path)
    proto = onnx.load(str(path))
    kept = sorted({node.op_type for node in proto.graph.node} - HALF_OPERATORS)
    model = OnnxModel(convert_float_to_float16(proto, keep_io_types=True, op_block_list=kept))
    half: onnx.ModelProto = model.model
    _drop_repeated(half.graph)
    _join_casts(half.graph)
    # The converter appends its casts at the end; ONNX wants every node after those that it reads from.
    model.topological_sort()
    # The types noted for values between the nodes are those from before; the check infers them anew.
    half.graph.ClearField("value_info")
    try:
        onnx.checker.check_model(half, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = f"the mixed-precision graph is not valid: {error}"
        raise ReleaseError(message) from error
    return half


def _drop_repeated(graph: onnx.GraphProto) -> None:
    """Keep one of the casts that the converter adds for a value: onnxruntime 1.31 adds one for each that reads it."""
    known: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in known:
            graph.node.remove(node)
        known.update(node.output)


def _join_casts(graph: onnx.GraphProto) -> None:
    """Drop casts to fp16 and straight back between two fp32 operators: each would round the value for nothing.

    The converter leaves every cast of the original graph alone, so a cast to fp16 is its own and reads fp32.
    """
    from onnx import TensorProto

    def target(node: onnx.NodeProto) -> int:
        return int(node.attribute[0].i) if node.op_type == "Cast" else TensorProto.UNDEFINED

    wide = {node.output[0]: node.input[0] for node in graph.node if target(node) == TensorProto.FLOAT16}
    joined: dict[str, str] = {}
    for node in graph.node:
        if target(node) == TensorProto.FLOAT and node.input[0] in wide:
            joined[node.output[0]] = wide[node.input[0]]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = joined.get(name, name)
        if node.output[0] in outputs & joined.keys():
            node.input[0], node.op_type = joined[node.output[0]], "Identity"
            node.ClearField("attribute")
    read = outputs | {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]:
        graph.node.remove(node)
