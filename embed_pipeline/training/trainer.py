"""sentence-transformers' trainer under our loss, batches and checkpoints.

Imports torch and transformers: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from embed_pipeline.progress import Bar, progress
from embed_pipeline.training import checkpoints
from embed_pipeline.training.batches import ShuffledBatches
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.loss import MaskedInfoNCE

logger = logging.getLogger(__name__)

DEV_METRIC = "dev_ndcg_10"
PATIENCE = 4
"""Dev measurements without a better one after which training stops."""

Record = Callable[[int, dict[str, float]], None]


class ContrastiveTrainer(SentenceTransformerTrainer):  # type: ignore[misc]  # sentence-transformers is not typed here
    """The trainer with our batch order, a guard against NaN and running out of memory, and lean checkpoints."""

    def __init__(self, *, batches: ShuffledBatches, uncached_tokens: int, work: Path, **options: Any) -> None:  # noqa: ANN401 - the parent's options
        """Take the parent's ``options``, and what is ours.

        Args:
            batches: the batch order.
            uncached_tokens: a batch of more tokens than this, padding included, gets gradient caching.
            work: folder of the checkpoints.
            options: what ``SentenceTransformerTrainer`` takes.
        """
        self._batches = batches
        self._uncached_tokens = uncached_tokens
        self._work = work
        super().__init__(**options)

    def get_batch_sampler(self, *_: object, **__: object) -> ShuffledBatches:
        """Our batch order, whatever the arguments say."""
        return self._batches

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """No model card: its callback looks the base model up on the hub, and the release writes a better one."""

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """One batch forward and backward; out of memory, again in smaller micro-batches.

        Raises:
            TrainingError: the loss is not finite, or not even a single text fits in memory.
        """
        loss_function = self._loss_function()
        always_cached = loss_function.cached
        tokens = sum(mask.numel() for name, mask in inputs.items() if name.endswith("_attention_mask"))
        loss_function.cached = always_cached or tokens > self._uncached_tokens
        while True:
            try:
                loss: torch.Tensor = super().training_step(model, dict(inputs), num_items_in_batch)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                self._shrink(loss_function, len(inputs["label"]), error)
                always_cached = True
            model.zero_grad(set_to_none=True)
        loss_function.cached = always_cached
        if not torch.isfinite(loss):
            message = f"the loss is {loss.item()} at step {self.state.global_step + 1}; {self.last_good()}"
            raise TrainingError(message)
        return loss

    def last_good(self) -> str:
        """The last whole checkpoint, in words."""
        folder = checkpoints.latest(self._work)
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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - the parent's signature
        self.model.save_pretrained(output_dir or self.args.output_dir, create_model_card=False)


class Supervisor(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Measures dev nDCG@10, keeps the best weights, asks for checkpoints, stops early and shows progress."""

    def __init__(
        self, *, work: Path, every: int, measure: Callable[[SentenceTransformer], float] | None, record: Record | None
    ) -> None:
        """Prepare.

        Args:
            work: folder of checkpoints and best weights.
            every: steps between measurements and checkpoints.
            measure: dev nDCG@10 of a model; None: nothing is measured and the last weights win.
            record: called with the step and figures of every step and measurement.
        """
        self.trainer: ContrastiveTrainer | None = None
        self._work = work
        self._every = every
        self._measure = measure
        self._record = record
        self._bar: Bar | None = None
        self._shown = ExitStack()

    def on_train_begin(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        **_: object,
    ) -> None:
        """Measure the base, the candidate of step 0."""
        if state.global_step == 0:
            self._evaluate(state)
        self._bar = self._shown.enter_context(progress("train", state.max_steps, "steps"))
        self._bar.done = state.global_step

    def on_step_end(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> TrainerControl:
        """Measure and ask for a checkpoint when due; stop when nothing has improved for long."""
        if self._bar is not None:
            self._bar.advance(note=self._note(state))
        if state.global_step % self._every == 0 or state.global_step >= state.max_steps:
            self._evaluate(state)
            control.should_save = True
            control.should_training_stop = control.should_training_stop or stalled(dev_curve(state))
        return control

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any],
        **_: object,
    ) -> None:
        """Hand the figures on."""
        if self._record is not None:
            figures = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
            self._record(state.global_step, figures)

    def on_save(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        **_: object,
    ) -> None:
        """Seal the checkpoint, then drop what it makes obsolete."""
        # Every process writes a part of it.
        self._owner().accelerator.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        newest = self._work / f"checkpoint-{state.global_step}"
        checkpoints.seal(newest)
        best = best_step(dev_curve(state), trained_only=True)
        for folder in self._work.glob("checkpoint-*"):
            if folder != newest:
                shutil.rmtree(folder)
        for folder in self._work.glob("best-*"):
            if checkpoints.step_of(folder) not in {0, best}:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Take the progress off the screen."""
        self._shown.close()

    def _evaluate(self, state: TrainerState) -> None:
        trainer = self._owner()
        if not all(bool(torch.isfinite(weight).all()) for weight in trainer.model.parameters()):
            message = f"a weight is not finite at step {state.global_step}; {trainer.last_good()}"
            raise TrainingError(message)
        if self._measure is None:
            return
        value = self._measure(trainer.model)
        # Not through trainer.log, which would take the step's own log for written.
        state.log_history.append({DEV_METRIC: value, "step": state.global_step})
        if self._record is not None:
            self._record(state.global_step, {DEV_METRIC: value})
        logger.info("step %d: dev nDCG@10 %.4f", state.global_step, value)
        if state.global_step in {0, best_step(dev_curve(state), trained_only=True)} and state.is_world_process_zero:
            folder = self._work / f"best-{state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            trainer.model.save_pretrained(str(folder), create_model_card=False)
            checkpoints.seal(folder)

    def _owner(self) -> ContrastiveTrainer:
        if self.trainer is None:
            message = "the supervisor has no trainer"
            raise TrainingError(message)
        return self.trainer

    @staticmethod
    def _note(state: TrainerState) -> str:
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        return f"loss {losses[-1]:.3f}" if losses else ""


def dev_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Step and dev nDCG@10 of every measurement so far."""
    return [(int(entry["step"]), float(entry[DEV_METRIC])) for entry in state.log_history if DEV_METRIC in entry]


def loss_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Step and loss of every step so far."""
    return [(int(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]


def best_step(curve: list[tuple[int, float]], *, trained_only: bool = False) -> int | None:
    """Step of the best measurement, the earlier of equals; the base (step 0) only where it beats all of them."""
    trained = [(value, -step) for step, value in curve if step]
    best = max(trained, default=None)
    base = [value for step, value in curve if not step]
    if base and not trained_only and (best is None or base[0] > best[0]):
        return 0
    return -best[1] if best else None


def stalled(curve: list[tuple[int, float]]) -> bool:
    """True after ``PATIENCE`` measurements in a row that did not beat the best before them."""
    best = best_step(curve, trained_only=True)
    return best is not None and sum(step > best for step, _ in curve) >= PATIENCE


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
