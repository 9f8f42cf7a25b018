"""Which attention kernels a training uses.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from embed_pipeline.embedding.packing import PACKED, pack
from embed_pipeline.settings import Training
from embed_pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

_FLASH, _SDPA = "flash_attention_2", "sdpa"
FULL_PRECISION = "sdpa_full_precision"
"""torch's fused attention in fp32 inside a bf16 model: on CPUs its bf16 backward pass takes twice as long."""


def choose_attention(model: SentenceTransformer, training: Training, device: str, *, bf16: bool) -> str | None:
    """Give the encoder the attention kernels of ``training.attention``; returns what was chosen, None: left alone.

    Args:
        model: the model, on its device; changed in place.
        training: the settings.
        device: ``cpu`` or ``cuda``.
        bf16: whether the model computes in bf16.

    Raises:
        TrainingError: what is asked for cannot be had on this machine, or the model does not have the kernels.
    """
    if training.attention != "auto":
        return _take(model, training.attention, device, bf16=bf16)
    if bf16 and device == "cuda":
        try:
            return _take(model, PACKED, device, bf16=bf16)
        except TrainingError as error:
            logger.info("%s", error)
    best = _best(getattr(model[0], "auto_model", None), device, bf16=bf16)
    return _take(model, best, device, bf16=bf16) if best else None


def _take(model: SentenceTransformer, wanted: str, device: str, *, bf16: bool) -> str:
    encoder = getattr(model[0], "auto_model", None)
    if wanted == PACKED and not bf16:
        message = f"training.attention = {wanted!r}: there is no packed attention in fp32"
        raise TrainingError(message)
    if wanted == _FLASH and (device != "cuda" or not _flash_is_installed()):
        message = f"training.attention = {wanted!r} needs a CUDA device and the package flash-attn"
        raise TrainingError(message)
    if encoder is None:
        message = f"training.attention = {wanted!r}: {type(model[0]).__name__} has no attention to choose"
        raise TrainingError(message)
    if wanted == FULL_PRECISION:
        _register_full_precision()
    try:
        if wanted == PACKED:
            pack(model, torch.bfloat16)
        else:
            encoder.set_attn_implementation(wanted)
    except ValueError as error:
        message = f"training.attention = {wanted!r}: {error}"
        raise TrainingError(message) from error
    return wanted


def _best(encoder: nn.Module | None, device: str, *, bf16: bool) -> str | None:
    """The fastest kernels for padded rows on this machine; None: the model's own choice."""
    if not bf16 or encoder is None:
        return None
    if device == "cuda":
        able = _flash_is_installed() and bool(getattr(encoder, "_supports_flash_attn", False))
        return _FLASH if able else None
    own = getattr(getattr(encoder, "config", None), "_attn_implementation", None)
    return FULL_PRECISION if own == _SDPA else None


def _flash_is_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _register_full_precision() -> None:
    """Make :data:`FULL_PRECISION` known to transformers, with the masks that its fused attention takes."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    fused = ALL_ATTENTION_FUNCTIONS[_SDPA]

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,  # noqa: ANN401 - what transformers hands on
    ) -> tuple[Tensor, None]:
        with torch.autocast(query.device.type, enabled=False):
            mask = attention_mask
            if mask is not None and mask.is_floating_point():
                mask = mask.float()
            attended, _ = fused(module, query.float(), key.float(), value.float(), mask, **options)
        return attended.to(query.dtype), None

    ALL_ATTENTION_FUNCTIONS.register(FULL_PRECISION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FULL_PRECISION, ALL_MASK_ATTENTION_FUNCTIONS[_SDPA])
