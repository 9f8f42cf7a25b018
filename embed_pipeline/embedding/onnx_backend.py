"""An export on onnxruntime, with neither torch nor transformers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import QUERY_FOLDER, Backend, EncoderConfig, Floats
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.token_batches import lanes_for
from embed_pipeline.machine import usable_cores
from embed_pipeline.storage import file_hash

if TYPE_CHECKING:
    import onnx
    import onnxruntime

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
_CUDA = "CUDAExecutionProvider"
_SPIN_MICROSECONDS = "20"
# On a processor the operators that these fuse to are loops over single numbers, slower than those that they replace.
_SLOW_FUSIONS = ("SkipLayerNormFusion", "BiasGeluFusion")


class OnnxBackend(Backend):
    """An export on onnxruntime."""

    runtime = "onnxruntime"

    def __init__(
        self, onnx_folder: Path, threads: int = 0, *, provider: tuple[str, dict[str, str]] | None = None
    ) -> None:
        """Open ``onnx_folder``.

        Args:
            onnx_folder: holds ``model.onnx``, ``tokenizer.json`` and ``embedding_config.json``.
            threads: cores that compute; 0: all of them.
            provider: name and options of an execution provider of a GPU, to be used before CUDA's; None: CUDA's alone,
                where there is one.

        Raises:
            ModelError: a file is missing or cannot be read, the model's data lies outside the folder, or ``provider``
                does not start.
        """
        super().__init__(EncoderConfig.read(onnx_folder))
        self._path = path = onnx_folder / MODEL_FILE
        self._on_all_cores = self._on_one_core = _open_session(path, threads or usable_cores(), provider)
        self.device = "cuda" if _CUDA in self._on_all_cores.get_providers() else "cpu"
        self.lanes = 1 if self.on_gpu else lanes_for(path, threads)
        if self.lanes > 1:
            self._on_one_core = _open_session(path, 1)
        if (onnx_folder / QUERY_FOLDER).is_dir():
            self.query_side = OnnxBackend(onnx_folder / QUERY_FOLDER, threads, provider=provider)

    @cached_property
    def identity(self) -> str:
        """The export's files, the device and the version of onnxruntime."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__} {self.device} {export_digest(self._path)}"

    def _begin(self, tokens: NDArray[np.int64], mask: NDArray[np.int64], *, alone: bool) -> Callable[[], Floats]:
        session = self._on_all_cores if alone else self._on_one_core
        outputs = session.run(["embeddings"], {"input_ids": tokens, "attention_mask": mask})
        vectors: Floats = np.asarray(outputs[0], dtype=np.float32)
        return lambda: vectors


def sides_of(onnx_folder: Path) -> list[Path]:
    """The folders of an export's graphs: its own and, where queries have a graph to themselves, that one's."""
    queries = onnx_folder / QUERY_FOLDER
    return [onnx_folder, queries] if queries.is_dir() else [onnx_folder]


def export_digest(path: Path) -> str:
    """Hash of the ONNX file ``path`` and of the data next to it."""
    digest = hashlib.sha256()
    for part in sorted(path.parent.glob(f"{path.name}*")):
        digest.update(bytes.fromhex(file_hash(part)))
    return digest.hexdigest()


def refuse_outside_data(path: Path, model: onnx.ModelProto | None = None) -> None:
    """Raise where tensors of the ONNX file ``path`` are kept in files outside its folder.

    onnxruntime would read them with this process's rights, wherever they are.

    Raises:
        ModelError: naming the tensor and the file.
    """
    import onnx

    proto = model or onnx.load(str(path), load_external_data=False)
    folder = path.parent.resolve()
    for tensor in _tensors(proto):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            target = (folder / entry.value).resolve()
            if not target.is_relative_to(folder):
                message = f"{path}: tensor {tensor.name!r} is kept in {entry.value!r}, outside the model's folder"
                raise ModelError(message)


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs, nodes = [proto.graph], [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        for node in nodes:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else [])
                yield from attribute.tensors
                graphs.extend([*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs])
        nodes = []


def check_export(path: Path) -> None:
    """Raise where the ONNX file ``path`` is not safe to open.

    Raises:
        ModelError: it is missing or no ONNX model, or its data lies outside its folder.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    if not path.is_file():
        message = f"{path} is missing"
        raise ModelError(message)
    try:
        refuse_outside_data(path)
    except DecodeError as error:
        message = f"{path} is not an ONNX model: {error}"
        raise ModelError(message) from error


def _open_session(
    path: Path, threads: int, provider: tuple[str, dict[str, str]] | None = None
) -> onnxruntime.InferenceSession:
    import onnxruntime

    check_export(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait for each other spin, so that a query takes two thirds of the time: for as long as lies between
    # two operators, and not after a batch, so that they take no core from anything else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    if has_cuda:
        # The CUDA libraries that pip installed are on no path that the loader looks at.
        onnxruntime.preload_dlls()
        # TF32 would cost the digits that the parity gate asks for.
        providers.insert(0, (_CUDA, {"use_tf32": "0"}))
    if provider is not None:
        providers.insert(0, provider)
    session = onnxruntime.InferenceSession(
        str(path),
        sess_options=options,
        providers=providers,
        disabled_optimizers=None if has_cuda else list(_SLOW_FUSIONS),
    )
    if provider is not None and provider[0] not in session.get_providers():
        message = f"onnxruntime cannot start {provider[0]} for {path}"
        raise ModelError(message)
    if has_cuda and _CUDA not in session.get_providers():
        logger.warning("onnxruntime was built for a GPU and cannot use one here; %s runs on the processor", path)
    return session
