"""A sentence-transformers model as one ONNX graph: token ids in, pooled unit vectors out.

Straight from ``torch.onnx`` (the dynamo exporter), so that the graph is what the torch model computes. Pooling and
normalisation are in the graph; a server needs a tokenizer and nothing else.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_pipeline.embedding.backend import CONFIG_FILE, QUERY_FOLDER, TOKENIZER_FILE, EncoderConfig
from embed_pipeline.embedding.families import (
    ModelError,
    embedding_dimensions,
    has_types,
    is_routed,
    max_tokens_of,
    pad_token_of,
    route_of,
    static_embedding,
    truncation_side_of,
)
from embed_pipeline.embedding.models import base_model_name, load_model
from embed_pipeline.embedding.onnx_backend import MODEL_FILE, refuse_outside_data
from embed_pipeline.embedding.token_batches import pad_rows
from embed_pipeline.settings import Embedding, Release

if TYPE_CHECKING:
    import onnx
    import torch
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)
# From this operator set on, ONNX has attention as one operator, which runtimes have kernels for.
_ATTENTION_OPSET = 23
# A protobuf message ends at 2 GiB; weights beyond this go to a file beside the graph.
INLINE_BYTES = 1_800_000_000
# Texts that a graph is tried on: tokens of each, and of the longest.
_TRIAL_TOKENS, _LONGEST_TRIAL = (1, 3, 7, 33), 129
_TRIAL_TOKEN, _TRIAL_VOCABULARY = 5, 30
_LEAST_COSINE = 0.9999


class OnnxExportError(ValueError):
    """A model cannot be exported, or an export is not what it should be."""


def export_onnx(model: str | Path, output: Path, release: Release, embedding: Embedding) -> None:
    """Write ``model``, as ``resolve_model`` takes it, as ONNX to the folder ``output``, checked.

    ``model.onnx`` takes ``input_ids`` and ``attention_mask`` (int64, [batch, sequence], both dynamic) and gives
    ``embeddings`` (float32, [batch, dimensions], unit rows). Next to it: ``tokenizer.json``, the model's and the
    tokenizer's configuration, and ``embedding_config.json`` with limits and prefixes. The same weights give the
    same bytes, and no path of this machine is left in them. A model with another way for queries than for passages
    becomes two graphs: that of queries, with all that belongs to it, lies in the folder ``query``.

    Raises:
        OnnxExportError: the exported graph is not valid, or its tokenizer has no ``tokenizer.json`` form.
        ModelError: ``model`` cannot be loaded.
    """
    loaded = load_model(model, embedding, device="cpu")
    name = base_model_name(embedding)
    if is_routed(loaded):
        _export_one(route_of(loaded, "query"), output / QUERY_FOLDER, release.opset, name)
    _export_one(route_of(loaded, "passage"), output, release.opset, name)


def _export_one(model: SentenceTransformer, output: Path, opset: int, base_model: str) -> None:
    output.mkdir(parents=True, exist_ok=True)
    _use_exportable_attention(model, opset)
    _export_graph(model, output / MODEL_FILE, opset)
    described = EncoderConfig.of(model)
    check_onnx(output / MODEL_FILE, described)
    _write_tokenizer(model, output)
    config = described.as_dict() | {"base_model": base_model}
    (output / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    logger.info("exported %s with operator set %d: %d dimensions", MODEL_FILE, opset, config["dimensions"])


def check_onnx(path: Path, config: EncoderConfig) -> None:
    """Check an exported graph: valid, its inputs and output as promised, and it runs on batches of every form.

    Args:
        path: the graph.
        config: of the model that it was exported from.

    Raises:
        OnnxExportError: naming what is wrong; data outside the folder is refused before anything reads it.
    """
    import onnx

    try:
        refuse_outside_data(path)
        onnx.checker.check_model(str(path), full_check=True)
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        message = f"{path.name} is not a valid graph: {error}"
        raise OnnxExportError(message) from error
    graph = onnx.load(str(path), load_external_data=False).graph
    inputs = [value.name for value in graph.input]
    outputs = {value.name: _shape(value) for value in graph.output}
    if inputs != ["input_ids", "attention_mask"] or list(outputs) != ["embeddings"]:
        message = f"{path.name} has inputs {inputs} and outputs {list(outputs)}"
        raise OnnxExportError(message)
    if outputs["embeddings"] != (expected := ["batch", config.dimensions]):
        message = f"{path.name} gives embeddings of shape {outputs['embeddings']}, expected {expected}"
        raise OnnxExportError(message)
    for value in graph.input:
        if _shape(value) != ["batch", "sequence"]:
            message = f"{path.name}: input {value.name} has shape {_shape(value)}, expected ['batch', 'sequence']"
            raise OnnxExportError(message)
    _run_batches(path, config)


def _run_batches(path: Path, config: EncoderConfig) -> None:
    """Run the graph on one text and on several, of odd lengths up to the longest that the model reads.

    Operators of a new operator set are sometimes exported, and found valid, in a form that no runtime computes.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    left = config.padding_side == "left"
    longest = min(config.max_tokens, _LONGEST_TRIAL)
    lengths = [min(length, longest) for length in _TRIAL_TOKENS]
    batches = [[length] for length in (*lengths, longest)] + [lengths, lengths[:2]]
    batch: list[int] = []
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        alone: dict[int, NDArray[np.float32]] = {}
        for batch in batches:
            rows = [np.arange(_TRIAL_TOKEN, _TRIAL_TOKEN + length) % _TRIAL_VOCABULARY for length in batch]
            ids, mask = pad_rows(rows, config.pad_token_id, left=left)
            vectors = session.run(["embeddings"], {"input_ids": ids, "attention_mask": mask})[0]
            if len(batch) == 1:
                alone[batch[0]] = vectors[0]
            expected = np.stack([alone[length] for length in batch])
            worst = float((vectors * expected).sum(axis=1).min()) if vectors.shape == expected.shape else -1.0
            # Written so that a value that is not a number is refused.
            if not worst >= _LEAST_COSINE:
                message = f"{path.name} gives other vectors in a batch of {len(batch)} than text by text ({worst:.5f})"
                raise OnnxExportError(message)
    except (
        states.Fail,
        states.InvalidArgument,
        states.InvalidGraph,
        states.NotImplemented,
        states.RuntimeException,
    ) as error:
        reason = str(error).strip().rpartition("\n")[2]
        message = f"{path.name} does not run on texts of {batch} tokens: {reason}; set release.opset to 20 or lower"
        raise OnnxExportError(message) from error


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _use_exportable_attention(model: SentenceTransformer, opset: int) -> None:
    """Choose the attention code whose graph runtimes fuse: plain products below the attention operator's opset."""
    transformer = getattr(model[0], "auto_model", None)
    if transformer is not None and hasattr(transformer, "set_attn_implementation"):
        transformer.set_attn_implementation("sdpa" if opset >= _ATTENTION_OPSET else "eager")


def _export_graph(model: SentenceTransformer, path: Path, opset: int) -> None:
    import torch

    # The traced example: more than one row and column, and some padding, so that nothing is taken for a constant.
    ids = torch.full((2, 16), pad_token_of(model), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                _sentence_encoder(model),
                (ids, mask),
                dynamo=True,
                opset_version=opset,
                input_names=["input_ids", "attention_mask"],
                output_names=["embeddings"],
                dynamic_shapes=(axes, axes),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        config = getattr(getattr(model[0], "auto_model", None), "config", None)
        family = getattr(config, "model_type", type(model[0]).__name__)
        message = f"torch cannot trace a model of type {family} for texts of any length: {cause}; choose another base"
        raise OnnxExportError(message) from error
    if program is None:
        message = f"torch.onnx gave no program for operator set {opset}"
        raise OnnxExportError(message)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    program.save(str(path), external_data=size > INLINE_BYTES)
    _strip(path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own code, an absent torchvision and names of shared axes."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        registration.setLevel(before)


def _sentence_encoder(model: SentenceTransformer) -> torch.nn.Module:
    """The model as a module from two tensors to unit vectors, the same arithmetic as the encoder's."""
    import torch

    dimensions = embedding_dimensions(model)
    typed, static = has_types(model), static_embedding(model)

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            if typed:
                features["token_type_ids"] = torch.zeros_like(input_ids)
            if static is None:
                features = self.model(features)
            else:
                # What its bag of vectors computes, for rows with padding.
                real = attention_mask.unsqueeze(-1).to(static.embedding.weight.dtype)
                summed = (torch.nn.functional.embedding(input_ids, static.embedding.weight) * real).sum(1)
                features["sentence_embedding"] = summed / real.sum(1).clamp(min=1)
                for module in list(self.model)[1:]:
                    features = module(features)
            pooled = features["sentence_embedding"]
            return torch.nn.functional.normalize(pooled[:, :dimensions], p=2.0, dim=-1)

    return SentenceEncoder().eval()


def _strip(path: Path) -> None:
    """Remove what the exporter notes about its own run: stack traces, source lines, module paths."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    _strip_message(proto)
    onnx.save(proto, str(path))


def _strip_message(message: Any) -> None:  # noqa: ANN401 - any protobuf message
    """Clear the notes of a message and of every message below it but raw tensors' own fields."""
    for field, value in list(message.ListFields()):
        if field.name in {"metadata_props", "doc_string"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in value if field.is_repeated else [value]:
                _strip_message(child)


def _write_tokenizer(model: SentenceTransformer, output: Path) -> None:
    if hasattr(model.tokenizer, "save_pretrained"):
        model.tokenizer.save_pretrained(str(output))
    # The file would otherwise keep whatever cut and padding the last call in this process had set.
    tokenizer = EncoderConfig.of(model).tokenizer
    tokenizer.enable_truncation(max_tokens_of(model), direction=truncation_side_of(model))
    tokenizer.save(str(output / TOKENIZER_FILE))
    transformer = getattr(model[0], "auto_model", None)
    if transformer is not None:
        transformer.config.save_pretrained(str(output))
