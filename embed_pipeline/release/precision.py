"""Half precision put into the graph: matrix products in fp16, what normalises in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from embed_pipeline.embedding.onnx_backend import refuse_outside_data
from embed_pipeline.release.onnx_export import ReleaseError

if TYPE_CHECKING:
    import onnx

# Everything else stays in fp32; sums, norms and softmax lose digits in fp16 that the parity gate asks for.
HALF_OPERATORS = frozenset({"MatMul", "Gemm", "Add", "Mul", "Gelu", "Transpose", "Reshape", "Attention"})


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
