"""sentence-transformers' trainer under our loss, batches and checkpoints.

Imports torch and transformers: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

from embed_pipeline.training.checkpoints import is_whole_checkpoint, latest_checkpoint, seal_checkpoint
from embed_pipeline.training.loss import MaskedInfoNCE
from embed_pipeline.training.task import TrainingError
from embed_pipeline.training.training_batches import ShuffledBatches
from embed_pipeline.training.weights import has_adapters, load_weights, save_model, trainable_weights

logger = logging.getLogger(__name__)

_ADAPTERS_FILE = "adapters.safetensors"


class ContrastiveTrainer(SentenceTransformerTrainer):  # type: ignore[misc]  # sentence-transformers is not typed here
    """The trainer with our batch order, a guard against NaN and running out of memory, and lean checkpoints."""

    def __init__(
        self,
        *,
        batches: ShuffledBatches,
        uncached_tokens: int,
        work: Path,
        load_base: Callable[[], SentenceTransformer],
        **options: Any,  # noqa: ANN401 - the parent's options
    ) -> None:
        """Pass ``options`` to the parent, and keep the rest.

        Args:
            batches: the batch order.
            uncached_tokens: a batch of more tokens, padding included where it is computed, gets gradient caching.
            work: folder of the checkpoints.
            load_base: loads the base model without adapters.
            options: what ``SentenceTransformerTrainer`` takes.
        """
        self._batches = batches
        self._uncached_tokens = uncached_tokens
        self._work = work
        self._load_base = load_base
        self._pending: _PendingLoss | None = None
        super().__init__(**options)

    def get_batch_sampler(self, *_: object, **__: object) -> ShuffledBatches:
        """Return our batch order, whatever the arguments say."""
        return self._batches

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add none: it looks the base model up on the hub, and the release writes a better card."""

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run one batch forward and backward; out of memory, run it again in smaller micro-batches.

        Raises:
            TrainingError: the loss is not finite, or not even a single text fits in memory.
        """
        loss_function = self._loss_function()
        always_cached = loss_function.cached
        loss_function.cached = always_cached or loss_function.micro.tokens_of(inputs) > self._uncached_tokens
        while True:
            try:
                loss: torch.Tensor = super().training_step(model, dict(inputs), num_items_in_batch)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._shrink(loss_function, inputs["label"].shape[-2], error)
                always_cached = True
            model.zero_grad(set_to_none=True)
        loss_function.cached = always_cached
        self._check_finite(loss)
        return loss

    def _check_finite(self, loss: torch.Tensor) -> None:
        """Raise where a loss is not finite; on a GPU that of the step before, which is there without waiting for it.

        No weights that such a step has changed are kept: the supervisor checks them before it writes any.
        """
        arrived: _PendingLoss | None = _PendingLoss.of(self.state.global_step + 1, loss)
        if loss.is_cuda:
            arrived, self._pending = self._pending, arrived
        if arrived is not None and not math.isfinite(number := arrived.number()):
            message = f"the loss is {number} at step {arrived.step}; {self.last_good()}"
            raise TrainingError(message)

    def last_good(self) -> str:
        """The last whole checkpoint, in words."""
        folder = latest_checkpoint(self._work)
        return f"the last good checkpoint is {folder}" if folder else "no checkpoint had been written"

    def _loss_function(self) -> MaskedInfoNCE:
        if not isinstance(self.loss, MaskedInfoNCE):
            message = f"the loss is a {type(self.loss).__name__}, expected MaskedInfoNCE"
            raise TrainingError(message)
        return self.loss

    def _shrink(self, loss_function: MaskedInfoNCE, rows: int, error: Exception) -> None:
        micro = loss_function.micro
        if loss_function.cached:
            if min(micro.rows, rows) <= 1:
                message = f"out of memory at step {self.state.global_step + 1} with a single text; {self.last_good()}"
                raise TrainingError(message) from error
            micro.rows = max(1, min(micro.rows, rows) // 2)
        loss_function.cached = True
        logger.warning("out of memory: gradient caching with at most %d texts at once", micro.rows)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def write_model(self, folder: Path) -> None:
        """Write the present model, adapters folded in: a whole model that needs nothing else."""
        save_model(self.model, folder, self._load_base() if has_adapters(self.model) else None)

    def save_weights(self, folder: Path) -> None:
        """Write the present weights for :meth:`restore_weights`, adapters alone where there are some, and seal them."""
        shutil.rmtree(folder, ignore_errors=True)
        self._save(str(folder))
        seal_checkpoint(folder)

    def restore_weights(self, folder: Path) -> None:
        """Go back to weights that :meth:`save_weights` wrote.

        Raises:
            TrainingError: they are not whole.
        """
        if not is_whole_checkpoint(folder):
            message = f"the weights in {folder} are not whole; remove {self._work} and train again"
            raise TrainingError(message)
        self._load_from_checkpoint(str(folder))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - the parent's signature
        folder = Path(output_dir or self.args.output_dir)
        if has_adapters(self.model):
            from safetensors.torch import save_file

            folder.mkdir(parents=True, exist_ok=True)
            save_file(trainable_weights(self.model), folder / _ADAPTERS_FILE)
        else:
            self.model.save_pretrained(str(folder), create_model_card=False)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        if has_adapters(self.model):
            from safetensors.torch import load_file

            load_weights(self.model, load_file(Path(checkpoint_path) / _ADAPTERS_FILE))
        else:
            super()._load_from_checkpoint(checkpoint_path)


@dataclass(frozen=True)
class _PendingLoss:
    """The loss of a step, on its way from the GPU."""

    step: int
    value: torch.Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, step: int, loss: torch.Tensor) -> _PendingLoss:
        # Copied after the work that is queued on the GPU now. Reading the number a step later would wait for that
        # step's work as well.
        value = loss.detach().to("cpu", non_blocking=loss.is_cuda)
        if not loss.is_cuda:
            return cls(step, value, None)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no annotation here
        arrived.record()
        return cls(step, value, arrived)

    def number(self) -> float:
        if self.arrived is not None:
            self.arrived.synchronize()
        return float(self.value)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
