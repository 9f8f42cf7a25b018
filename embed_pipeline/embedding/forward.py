"""One pass through a sentence-transformers model: padded token ids to unit vectors, in fp32 or half precision."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of the matrix products; sums, norms and the vectors themselves are always fp32."""


def unit_vectors(
    model: SentenceTransformer,
    tokens: NDArray[np.int64],
    mask: NDArray[np.int64],
    *,
    dimensions: int,
    precision: Precision,
) -> Tensor:
    """Vectors of length 1, float32 (n, dimensions) on the model's device, of padded token ids, int64 (n, longest)."""
    import torch

    with torch.inference_mode(), _arithmetic(model.device, precision):
        pooled = model(features_of(model, tokens, mask))["sentence_embedding"]
    return torch.nn.functional.normalize(pooled[:, :dimensions].float(), p=2, dim=-1)


def features_of(model: SentenceTransformer, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, Tensor]:
    """What ``model`` takes, on its device, for padded token ids and their mask, int64 (n, longest)."""
    import torch

    device = model.device
    features = {"input_ids": torch.from_numpy(tokens).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    if "token_type_ids" in model.tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    return features


def prepare_for_inference(model: SentenceTransformer, precision: Precision) -> None:
    """Narrow the products of ``model``, and on a GPU leave out the padding where that is found to work.

    The vectors stay those of autocast on fp32 weights. A model so prepared is for inference only.
    """
    narrow_products(model, precision)
    if precision == "fp32" or model.device.type != "cuda":
        return
    from embed_pipeline.embedding.packing import PackingError, pack

    try:
        pack(model, _half(precision))
    except PackingError as error:
        logger.info("batches are computed with their padding: %s", error)


def narrow_products(model: SentenceTransformer, precision: Precision) -> None:
    """Keep the weights of every linear layer in ``precision``: autocast would convert them anew for each batch."""
    import torch

    if precision == "fp32":
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(_half(precision))


def _arithmetic(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    if precision == "fp32":
        return nullcontext()
    import torch

    context: AbstractContextManager[object] = torch.autocast(device.type, dtype=_half(precision))
    return context


def _half(precision: Precision) -> torch.dtype:
    import torch

    return torch.float16 if precision == "fp16" else torch.bfloat16
