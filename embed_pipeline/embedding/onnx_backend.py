"""The exported model through onnxruntime: for serving and for the parity gate, with neither torch nor transformers.

Reads the folder that :func:`embed_pipeline.release.onnx_export.export_onnx` writes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.batches import pad_rows, token_budget_batches
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.progress import progress

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "embedding_config.json"
_WINDOW_TEXTS = 32_768


class OnnxBackend:
    """An exported model: text to token ids to unit vectors.

    Attributes:
        dimensions: length of a vector.
        max_tokens: longest text, in tokens with prefix and special tokens.
        query_prefix: put before every query.
        passage_prefix: put before every passage.
        base_model: name of the model that was tuned.
        special_tokens: special tokens that the tokenizer adds to a text.
    """

    def __init__(self, onnx_folder: Path, threads: int = 0, batch_tokens: int = 4096) -> None:
        """Open ``onnx_folder``.

        Args:
            onnx_folder: holds ``model.onnx``, ``tokenizer.json`` and ``embedding_config.json``.
            threads: of one inference; 0: all cores.
            batch_tokens: tokens in one batch of :meth:`encode`, padding included.

        Raises:
            ModelError: a file is missing or cannot be read, or the model's data lies outside the folder.
        """
        config = _read_config(onnx_folder / CONFIG_FILE)
        self.dimensions = int(config["dimensions"])
        self.max_tokens = int(config["max_tokens"])
        self.query_prefix = str(config["query_prefix"])
        self.passage_prefix = str(config["passage_prefix"])
        self.base_model = str(config["base_model"])
        self._pad_token_id = int(config["pad_token_id"])
        self._left = config.get("padding_side") == "left"
        self._batch_tokens = batch_tokens
        self._whole = _read_tokenizer(onnx_folder / TOKENIZER_FILE)
        self.special_tokens: int = self._whole.num_special_tokens_to_add(is_pair=False)
        self._cut = _read_tokenizer(onnx_folder / TOKENIZER_FILE)
        self._cut.enable_truncation(self.max_tokens)
        self._session = _open_session(onnx_folder / MODEL_FILE, threads)

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> list[NDArray[np.int32]]:
        """Token ids of each text with the special tokens; no prefix is added here.

        Args:
            texts: as they are to be read, prefix included.
            truncate: cut each to ``max_tokens``, special tokens kept; else nothing is cut.
        """
        tokenizer = self._cut if truncate else self._whole
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def infer(self, ids: Sequence[Sequence[int] | NDArray[np.integer[Any]]]) -> NDArray[np.float32]:
        """Unit vectors, float32 (n, dimensions), of rows of token ids, run as one padded batch.

        Raises:
            ValueError: there are no rows, or a row is empty or longer than ``max_tokens``.
        """
        if not len(ids):
            message = "ids holds no row"
            raise ValueError(message)
        for position, row in enumerate(ids):
            if not 0 < len(row) <= self.max_tokens:
                message = f"ids[{position}] has {len(row)} tokens, must have 1 to {self.max_tokens}"
                raise ValueError(message)
        outputs = self._session.run(["embeddings"], self.padded(ids))
        vectors: NDArray[np.float32] = np.asarray(outputs[0], dtype=np.float32)
        return vectors

    def padded(self, ids: Sequence[Sequence[int] | NDArray[np.integer[Any]]]) -> dict[str, NDArray[np.int64]]:
        """The graph's inputs, int64 (n, longest), for rows of token ids."""
        tokens, mask = pad_rows(ids, self._pad_token_id, left=self._left)
        return {"input_ids": tokens, "attention_mask": mask}

    def encode(
        self, texts: Sequence[str], kind: Literal["query", "passage"], label: str | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors of ``texts``, float32 (n, dimensions), in input order; long texts are cut.

        Raises:
            ModelError: the model gives a vector that is not finite.
        """
        prefix = self.query_prefix if kind == "query" else self.passage_prefix
        distinct = list(dict.fromkeys(texts))
        vectors = np.empty((len(distinct), self.dimensions), dtype=np.float32)
        with progress(label or f"encode {kind} texts with onnxruntime", len(distinct), "texts") as bar:
            for start in range(0, len(distinct), _WINDOW_TEXTS):
                window = distinct[start : start + _WINDOW_TEXTS]
                rows = self.tokenize([prefix + text for text in window], truncate=True)
                for batch in token_budget_batches([len(row) for row in rows], self._batch_tokens):
                    vectors[start + batch] = self.infer([rows[i] for i in batch])
                    bar.advance(len(batch))
        if not np.isfinite(vectors).all():
            message = "the exported model gives vectors that are not finite"
            raise ModelError(message)
        position = {text: index for index, text in enumerate(distinct)}
        return vectors[[position[text] for text in texts]]


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


def _open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

    if not path.is_file():
        message = f"{path} is missing"
        raise ModelError(message)
    try:
        refuse_outside_data(path)
    except DecodeError as error:
        message = f"{path} is not an ONNX model: {error}"
        raise ModelError(message) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # TF32 would cost the digits that the parity gate asks for.
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)


def _read_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        message = f"{path} is missing"
        raise ModelError(message)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise ModelError(message) from error
    needed = {"dimensions", "max_tokens", "query_prefix", "passage_prefix", "pad_token_id", "base_model"}
    missing = sorted(needed - set(config)) if isinstance(config, dict) else sorted(needed)
    if missing:
        message = f"{path} lacks {', '.join(missing)}"
        raise ModelError(message)
    return dict(config)
