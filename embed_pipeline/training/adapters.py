"""LoRA (Hu et al. 2022): low-rank adapters on every linear layer, trained in place of the weights.

Adapters are put into the encoder's own layers by peft; what is saved is always a plain model with the adapters
folded in, so that no later stage needs peft.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from embed_pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_ALPHA_PER_RANK = 2


def add_adapters(model: SentenceTransformer, rank: int) -> None:
    """Freeze ``model`` and give every linear layer of its encoder an adapter.

    Args:
        model: the base model; changed in place.
        rank: inner size of the adapters, 1 or more; their product is scaled by 2.

    Raises:
        TrainingError: peft is not installed, or the model has no encoder that takes adapters.
    """
    if importlib.util.find_spec("peft") is None:
        message = f"training.lora_rank is {rank}, which needs peft: pip install peft"
        raise TrainingError(message)
    encoder = getattr(model[0], "auto_model", None)
    if encoder is None:
        message = f"training.lora_rank is {rank}, but {type(model[0]).__name__} is no transformer that takes adapters"
        raise TrainingError(message)
    from peft import LoraConfig, inject_adapter_in_model

    for weight in model.parameters():
        weight.requires_grad_(requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=_ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules="all-linear")
    inject_adapter_in_model(config, encoder)
