"""The released model itself on torch, in fp32 or half precision: for GPUs, and for processors that multiply bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.encoder import embedding_dimensions, max_tokens_of
from embed_pipeline.embedding.forward import Precision, prepare_for_inference, unit_vectors
from embed_pipeline.embedding.models import ModelError, load_model
from embed_pipeline.settings import Embedding


class TorchBackend(Backend):
    """A sentence-transformers folder on torch, read with the tokenizer, limits and prefixes of its export."""

    runtime = "torch"

    def __init__(
        self,
        model: Path,
        onnx_folder: Path,
        precision: Precision,
        *,
        device: str | None = None,
        threads: int = 0,
        batch_tokens: int = 0,
    ) -> None:
        """Load ``model``; it is never trusted to bring code of its own.

        Args:
            model: the sentence-transformers folder with safetensors.
            onnx_folder: its export, for ``tokenizer.json`` and ``embedding_config.json``.
            precision: arithmetic of the matrix products.
            device: torch device; None: a GPU where there is one.
            threads: of one inference on a CPU; 0: as many as torch takes. It holds for all of torch in this process.
            batch_tokens: tokens in one batch of :meth:`encode`, padding included; 0: what suits the hardware.

        Raises:
            ModelError: a file is missing or cannot be read, or the model is another than the one exported.
        """
        super().__init__(onnx_folder, batch_tokens)
        import torch

        from embed_pipeline.embedding.packing import is_packed

        self._model = load_model(model, Embedding(), device)
        found = (embedding_dimensions(self._model), max_tokens_of(self._model))
        if found != (self.dimensions, self.max_tokens):
            message = (
                f"{model} has {found[0]} dimensions and reads {found[1]} tokens, its export {self.dimensions} "
                f"and {self.max_tokens}"
            )
            raise ModelError(message)
        prepare_for_inference(self._model, precision)
        self._precision: Precision = precision
        self.on_gpu = self._model.device.type == "cuda"
        self.computes_padding = not is_packed(self._model)
        if threads:
            torch.set_num_threads(threads)

    def _run(
        self,
        tokens: NDArray[np.int64],
        mask: NDArray[np.int64],
        *,
        alone: bool,  # noqa: ARG002 - torch has one pool of threads for all
    ) -> NDArray[np.float32]:
        found = unit_vectors(self._model, tokens, mask, dimensions=self.dimensions, precision=self._precision)
        vectors: NDArray[np.float32] = found.cpu().numpy()
        return vectors
