"""An export on OpenVINO, for processors: in fp32, bf16, or int8 whose vectors stay near those of fp32.

In int8 the weights of every matrix product are rounded in groups of 128, 64 or 32, each group of an output channel
with a scale of its own, and OpenVINO rounds what they are multiplied with in such groups as well, while it runs. A
scale for a whole tensor, as onnxruntime takes for either, loses ten times as much. The weights are rounded when the
model is opened, so a release needs no file for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import QUERY_FOLDER, Backend, EncoderConfig, Floats
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import MODEL_FILE, check_export, export_digest
from embed_pipeline.embedding.token_batches import lanes_for
from embed_pipeline.machine import usable_cores

if TYPE_CHECKING:
    import openvino

OpenVinoPrecision = Literal["fp32", "int8", "bf16"]

GROUP_SIZES = (128, 64, 32)
"""Weights of an int8 matrix that share a scale, fastest first; smaller groups are nearer to fp32."""
_GREATEST_INT8 = 127


class OpenVinoBackend(Backend):
    """An export in fp32, computed by OpenVINO on the processor."""

    runtime = "openvino"

    def __init__(
        self,
        onnx_folder: Path,
        precision: OpenVinoPrecision = "fp32",
        *,
        group_size: int = 64,
        threads: int = 0,
    ) -> None:
        """Open the fp32 export ``onnx_folder``.

        Args:
            onnx_folder: holds ``model.onnx``, ``tokenizer.json`` and ``embedding_config.json``.
            precision: arithmetic of the matrix products.
            group_size: one of :data:`GROUP_SIZES`, for int8.
            threads: cores that compute; 0: all of them.

        Raises:
            ModelError: OpenVINO is not installed, the processor has no bf16, a file is missing or cannot be read, or
                the model's data lies outside the folder.
        """
        super().__init__(EncoderConfig.read(onnx_folder))
        openvino = _openvino()
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            message = "this processor does not multiply bf16"
            raise ModelError(message)
        self._path = path = onnx_folder / MODEL_FILE
        self._arithmetic = f"{precision} by {group_size}" if precision == "int8" else precision
        check_export(path)
        self.lanes = lanes_for(path, threads)
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        try:
            model = core.read_model(str(path))
            if precision == "int8":
                _round_weights(model, group_size)
                options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group_size
            self._on_all_cores = self._on_one_core = _Requests(core, model, options, streams=1)
            if self.lanes > 1:
                self._on_one_core = _Requests(core, model, options, streams=self.lanes)
        except RuntimeError as error:
            message = f"OpenVINO cannot run {path}: {error}"
            raise ModelError(message) from error
        if (onnx_folder / QUERY_FOLDER).is_dir():
            queries = onnx_folder / QUERY_FOLDER
            self.query_side = OpenVinoBackend(queries, precision, group_size=group_size, threads=threads)

    @cached_property
    def identity(self) -> str:
        """The export's files, the precision and the version of OpenVINO."""
        return f"openvino {_openvino().get_version()} {self._arithmetic} {export_digest(self._path)}"

    def _begin(self, tokens: NDArray[np.int64], mask: NDArray[np.int64], *, alone: bool) -> Callable[[], Floats]:
        requests = self._on_all_cores if alone else self._on_one_core
        vectors = requests.infer({"input_ids": tokens, "attention_mask": mask})
        return lambda: vectors


class _Requests:
    """A compiled model and as many requests as may run on it at once; others wait."""

    def __init__(self, core: openvino.Core, model: openvino.Model, options: dict[str, Any], *, streams: int) -> None:
        compiled = core.compile_model(model, "CPU", {**options, "NUM_STREAMS": streams})
        self._free: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(streams):
            self._free.put(compiled.create_infer_request())

    def infer(self, inputs: dict[str, NDArray[np.int64]]) -> Floats:
        request = self._free.get()
        try:
            # A copy: the next inference writes into the same memory.
            return np.array(request.infer(inputs)["embeddings"], dtype=np.float32)
        finally:
            self._free.put(request)


def _round_weights(model: openvino.Model, group_size: int) -> None:
    """Round the constant matrices of ``model`` in place, those whose rows the groups divide.

    Raises:
        ModelError: there is none.
    """
    ordered = model.get_ordered_ops()
    products = [(node, weights) for node in ordered if (weights := _constant_matrix(node)) is not None]
    fitting = [(node, weights) for node, weights in products if weights.shape[1] % group_size == 0]
    if not fitting:
        message = f"no matrix of the model has rows of a multiple of {group_size} weights; int8 is not possible"
        raise ModelError(message)
    for node, weights in fitting:
        _replace(node, weights, group_size)


def _constant_matrix(node: openvino.Node) -> NDArray[np.float32] | None:
    """The constant that a matrix product multiplies with, float32 (outputs, inputs); None where there is none."""
    if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
        return None
    source = node.input_value(1).get_node()
    if source.get_type_name() != "Constant" or len(source.shape) != 2:  # noqa: PLR2004 - a matrix has two axes
        return None
    weights: NDArray[np.float32] = np.asarray(source.data, dtype=np.float32)
    return weights if node.get_attributes()["transpose_b"] else weights.T


def _replace(product: openvino.Node, weights: NDArray[np.float32], size: int) -> None:
    """Multiply with ``weights`` (outputs, inputs) rounded to int8 in groups of ``size`` inputs."""
    from openvino import opset13

    outputs, inputs = weights.shape
    grouped = weights.reshape(outputs, inputs // size, size)
    scales = np.maximum(np.abs(grouped).max(axis=2, keepdims=True), np.finfo(np.float32).tiny) / _GREATEST_INT8
    rounded = np.rint(grouped / scales).astype(np.int8)
    wide = opset13.convert(opset13.constant(rounded), "f32")
    scaled = opset13.multiply(wide, opset13.constant(scales.astype(np.float32)))
    matrix = opset13.reshape(scaled, opset13.constant(np.array([outputs, inputs])), special_zero=False)
    replacement = opset13.matmul(product.input_value(0), matrix, transpose_a=False, transpose_b=True)
    product.output(0).replace(replacement.output(0))


def _openvino() -> Any:  # noqa: ANN401 - a module that may be missing
    try:
        import openvino
    except ImportError as error:
        message = "openvino is not installed: pip install 'embed-pipeline[openvino]'"
        raise ModelError(message) from error
    return openvino
