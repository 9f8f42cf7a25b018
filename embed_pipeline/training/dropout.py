"""Training without dropout.

Contrastive fine-tuning gets its variety from the negatives. Without dropout the gradients do not depend on how a
batch is cut, so that gradient caching and a smaller micro-batch give the same ones, and attention can use the fused
kernels, which on CPUs have no dropout: a step of MiniLM takes less than half the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability of ``model`` to 0; its configuration, which is saved, stays as it is."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - the only base class of all dropouts
            module.p = 0.0
        # Attention layers keep their probability as a plain number.
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
