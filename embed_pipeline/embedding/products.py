"""fp32 products by oneDNN, on processors whose wide instructions MKL does not use.

torch leaves fp32 products on a processor to Intel's MKL, which computes with AVX2 on AMD's processors even where they
have AVX-512. oneDNN, which comes with torch, uses AVX-512: on an EPYC of 2024 (Zen 5) its products took 45 % of the
time, and the vectors are the same but for rounding (docs/decisions.md).

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from embed_pipeline import machine


def use_fast_products(model: nn.Module) -> None:
    """Have the linear layers of ``model`` computed by oneDNN where this machine gains by it; weights stay as they are.

    Args:
        model: changed in place.
    """
    if machine.gains_by_onednn():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDnnLinear


def inner_products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right.T``, fp32 (m, n) of (m, d) and (n, d).

    Args:
        left: rows.
        right: rows.
        out: memory that torch may write them to; oneDNN takes its own.
    """
    if left.device.type == "cpu" and machine.gains_by_onednn():
        product: Tensor = _Linear.apply(left, right, None)  # type: ignore[no-untyped-call]
        return product
    return torch.mm(left, right.T, out=out)


class OneDnnLinear(nn.Linear):
    """A linear layer whose fp32 products on a processor oneDNN computes; all else it leaves to torch."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``input @ weight.T + bias``, (..., in) to (..., out)."""
        if (
            input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and input.numel()
        ):
            product: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return super().forward(input)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401 - torch's context
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        rows, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_rows else None,
            _product(flat.t(), rows.reshape(-1, rows.shape[-1]).t()) if of_weight else None,
            flat.sum(0) if of_bias else None,
        )


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # noqa: SLF001
    return product


def _count_operations(
    _rows: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object
) -> int:
    """Operations of a product by oneDNN, which torch's counter would take for none."""
    return 2 * math.prod(out_shape) * weight[1]


if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_count_operations)  # noqa: SLF001
