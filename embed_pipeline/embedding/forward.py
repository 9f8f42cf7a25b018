"""One pass through a sentence-transformers model: padded token ids to unit vectors, in fp32 or half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of the matrix products; sums, norms and the vectors themselves are always fp32."""


def unit_vectors(
    model: SentenceTransformer,
    tokens: NDArray[np.int64],
    mask: NDArray[np.int64],
    *,
    dimensions: int,
    precision: Precision,
) -> NDArray[np.float32]:
    """Vectors of length 1, float32 (n, dimensions), of a padded batch of token ids, int64 (n, longest)."""
    import torch

    device = model.device
    features = {"input_ids": torch.from_numpy(tokens).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    if "token_type_ids" in model.tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    with torch.inference_mode(), _arithmetic(device, precision):
        pooled = model(features)["sentence_embedding"]
    cut = pooled[:, :dimensions].float()
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(cut, p=2, dim=-1).cpu().numpy()
    return vectors


def narrow_products(model: SentenceTransformer, precision: Precision) -> None:
    """Keep the weights of every linear layer in ``precision``: autocast would convert them anew for each batch.

    The vectors stay those of autocast on fp32 weights. A model so narrowed is for inference only.
    """
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
