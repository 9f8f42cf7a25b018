"""A sentence-transformers model on torch, in fp32 or half precision: in memory, while it trains, or from its folder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline import machine
from embed_pipeline.embedding.backend import Backend, EncoderConfig, Floats
from embed_pipeline.embedding.families import ModelError, features_of, is_routed, route_of
from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
"""Arithmetic of the matrix products; sums, norms and the vectors themselves are always fp32."""


class TorchBackend(Backend):
    """A sentence-transformers model.

    Attributes:
        model: the model, in eval mode.
        precision: arithmetic of its matrix products.
    """

    runtime = "torch"

    def __init__(
        self, model: SentenceTransformer, precision: Precision = "fp32", config: EncoderConfig | None = None
    ) -> None:
        """Compute with ``model`` as it is.

        Args:
            model: in eval mode.
            precision: arithmetic of the matrix products.
            config: of the model's export, whose tokenizer and prefixes are then used; None: the model's own.

        Raises:
            ModelError: the model is another than the one exported.
        """
        if is_routed(model):
            self.query_side = TorchBackend(route_of(model, "query"), precision)
            model = route_of(model, "passage")
        own = EncoderConfig.of(model)
        super().__init__(config or own)
        if (own.dimensions, own.max_tokens) != (self.dimensions, self.max_tokens):
            message = (
                f"the model has {own.dimensions} dimensions and reads {own.max_tokens} tokens, its export "
                f"{self.dimensions} and {self.max_tokens}"
            )
            raise ModelError(message)
        from embed_pipeline.embedding.packing import is_packed

        self.model, self.precision = model, precision
        self.device = str(model.device)
        self.computes_padding = not is_packed(model)

    @classmethod
    def load(
        cls,
        name: str | Path,
        embedding: Embedding,
        precision: Precision | None = None,
        *,
        config: EncoderConfig | None = None,
        threads: int = 0,
    ) -> TorchBackend:
        """Load ``name``, as :func:`~embed_pipeline.embedding.models.load_model` does, for inference alone.

        The products are narrowed, and on a GPU padding is left out where that is found to work; the vectors stay those
        of autocast on fp32 weights.

        Args:
            name: the model.
            embedding: device and prefixes, and whether the model is trusted to bring code of its own.
            precision: arithmetic of the matrix products; None: ``embedding.precision``.
            config: as the constructor takes it.
            threads: of one inference on a CPU; 0: as many as torch takes. It holds for all of torch in this process.

        Raises:
            ModelError: the model is missing, cannot be read, brings code of its own, or is another than the one
                exported.
        """
        model, precision = load_model(name, embedding), precision or embedding.precision
        if precision != "fp32":
            _prepare(model, _half(precision))
        if threads:
            import torch

            torch.set_num_threads(threads)
        return cls(model, precision, config)

    @cached_property
    def identity(self) -> str:
        """Weights (each parameter's name, type, shape and bytes), device, precision, products, torch's version."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        products = "onednn" if self.device == "cpu" and machine.gains_by_onednn() else "torch"
        return f"torch {torch.__version__} {products} {self.precision} {self.device} {digest.hexdigest()}"

    def _begin(
        self,
        tokens: NDArray[np.int64],
        mask: NDArray[np.int64],
        *,
        alone: bool,  # noqa: ARG002 - torch has one pool of threads for all
    ) -> Callable[[], Floats]:
        import torch

        device = self.model.device
        narrow = self.precision != "fp32"
        arithmetic = torch.autocast(device.type, dtype=_half(self.precision)) if narrow else nullcontext()
        with torch.inference_mode(), arithmetic:
            pooled = self.model(features_of(self.model, tokens, mask))["sentence_embedding"]
        vectors = torch.nn.functional.normalize(pooled[:, : self.dimensions].float(), p=2, dim=-1)
        return lambda: vectors.cpu().numpy()


def _prepare(model: SentenceTransformer, half: torch.dtype) -> None:
    import torch

    # Autocast would convert the weights of every product anew for each batch.
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.to(half)
    if model.device.type != "cuda":
        return
    from embed_pipeline.embedding.packing import PackingError, pack

    try:
        pack(model, half)
    except PackingError as error:
        logger.info("batches are computed with their padding: %s", error)


def _half(precision: Precision) -> torch.dtype:
    import torch

    return torch.float16 if precision == "fp16" else torch.bfloat16
