"""Fine-tune the base encoder on the training examples."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from embed_pipeline.embedding.encoder import max_tokens_of
from embed_pipeline.embedding.models import load_model, resolve_model, torch_device
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.settings import Settings
from embed_pipeline.tables import content_hash
from embed_pipeline.training import checkpoints, hardware
from embed_pipeline.training.batches import Collator, Examples, ShuffledBatches, number_examples
from embed_pipeline.training.dev import DevMeasure
from embed_pipeline.training.dropout import turn_off_dropout
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.policy import Plan, plan

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from embed_pipeline.training.trainer import ContrastiveTrainer, Supervisor

logger = logging.getLogger(__name__)

_MICRO_TOKENS = {"cpu": 4_096, "cuda": 65_536}
_NO_ROW_LIMIT = 1_000_000

__all__ = ["TrainingError", "TrainingResult", "finetune"]


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tuning did, for run records.

    Attributes:
        examples: training examples.
        batch_size: examples in a batch, on each process.
        epochs: passes over the examples that were planned.
        learning_rate: peak learning rate.
        small_data: whether the rules for few examples set batch and passes.
        steps: optimizer steps done, those before a resumption included.
        final_loss: loss of the last step.
        loss_curve: step and loss, every step.
        dev_curve: step and dev nDCG@10, the base at step 0; empty without dev questions.
        best_step: step whose weights won; 0: no step beat the base on dev, and the weights are the base's.
        seconds: time in this process, dev measurements included.
        examples_per_second: examples trained on in this process, over that time.
        precision: ``bf16`` or ``fp32``.
        device: the device in words.
        resumed_from: step of the checkpoint that this process started from; None: from the start.
    """

    examples: int
    batch_size: int
    epochs: float
    learning_rate: float
    small_data: bool
    steps: int
    final_loss: float
    loss_curve: list[tuple[int, float]]
    dev_curve: list[tuple[int, float]]
    best_step: int
    seconds: float
    examples_per_second: float
    precision: str
    device: str
    resumed_from: int | None


def finetune(
    examples: pl.DataFrame,
    passages: Mapping[str, str],
    dev: QuerySet | None,
    corpus: tuple[Sequence[str], Sequence[str]],
    settings: Settings,
    *,
    output: Path,
    work: Path,
    record: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Fine-tune ``settings.embedding.model`` and write the best weights, with their prompts, to ``output``.

    The result depends on the inputs, the seed and the machine alone. A run that was killed goes on from its last
    checkpoint in ``work`` and ends in the same weights; ``work`` is removed once ``output`` is written.

    Args:
        examples: table ``training_examples``.
        passages: segment id to text, for every segment that an example names.
        dev: questions for choosing the checkpoint, answered by segments; None or empty: the last weights win.
        corpus: ids and texts of all segments, searched for the dev questions.
        settings: groups ``embedding`` and ``training``, and the seed.
        output: folder of the tuned sentence-transformers model; written last.
        work: folder of checkpoints, of this training only.
        record: called with the step and its figures: ``loss``, ``grad_norm``, ``learning_rate``, ``dev_ndcg_10``.

    Raises:
        TrainingError: an example names an unknown segment, the loss or a weight stops being finite, or a single text
            does not fit in memory; it names the step and the last good checkpoint.
        ModelError: the base model cannot be loaded.
    """
    from embed_pipeline.training.trainer import best_step, dev_curve, loss_curve

    numbered = number_examples(examples, passages)
    schedule = plan(len(numbered), settings.training)
    # The other processes of a distributed run read the folder after they have met this one.
    if os.environ.get("RANK", "0") == "0":
        checkpoints.prepare(work, _fingerprint(examples, numbered, dev, settings))
    model = load_model(settings.embedding.model, settings.embedding, device="cpu")
    turn_off_dropout(model)
    trainer, supervisor = _build(model, numbered, schedule, settings, dev=dev, corpus=corpus, work=work, record=record)
    checkpoint = checkpoints.latest(work)
    started = time.monotonic()
    try:
        _run(trainer, checkpoint)
    finally:
        supervisor.close()
    seconds = time.monotonic() - started
    losses, measured = loss_curve(trainer.state), dev_curve(trainer.state)
    best = best_step(measured)
    if trainer.is_world_process_zero():
        _write(trainer, work, output, best)
    resumed_from = checkpoints.step_of(checkpoint) if checkpoint else None
    steps = trainer.state.global_step
    return TrainingResult(
        examples=len(numbered),
        batch_size=schedule.batch_size,
        epochs=schedule.epochs,
        learning_rate=schedule.learning_rate,
        small_data=schedule.small_data,
        steps=steps,
        final_loss=losses[-1][1],
        loss_curve=losses,
        dev_curve=measured,
        best_step=steps if best is None else best,
        seconds=seconds,
        examples_per_second=(steps - (resumed_from or 0))
        * len(numbered)
        / len(trainer.get_train_dataloader())
        / seconds,
        precision="bf16" if trainer.loss.bf16 else "fp32",
        device=hardware.describe(trainer.args.device),
        resumed_from=resumed_from,
    )


def _fingerprint(examples: pl.DataFrame, numbered: Examples, dev: QuerySet | None, settings: Settings) -> str:
    """Hash of all that decides the result, so that no other training's checkpoint is taken up."""
    held_out = [dev.queries, dev.qrels] if dev else []
    parts = [
        content_hash(examples.sort("example_id")),
        numbered.passages,
        held_out,
        settings.digest("training", "embedding"),
        resolve_model(settings.embedding.model),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _build(
    model: SentenceTransformer,
    numbered: Examples,
    schedule: Plan,
    settings: Settings,
    *,
    dev: QuerySet | None,
    corpus: tuple[Sequence[str], Sequence[str]],
    work: Path,
    record: Callable[[int, dict[str, float]], None] | None,
) -> tuple[ContrastiveTrainer, Supervisor]:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainingArguments
    from transformers import PrinterCallback

    from embed_pipeline.training.loss import MaskedInfoNCE, MicroBatches
    from embed_pipeline.training.trainer import ContrastiveTrainer, Supervisor

    training = settings.training
    limit = max_tokens_of(model)
    prefixes = model.prompts.get("query") or "", model.prompts.get("document") or ""
    longest = min(limit, training.max_tokens) if training.max_tokens else limit
    collator = Collator(numbered, model.tokenizer, prefixes=prefixes, max_tokens=longest)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=schedule.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=math.ceil(schedule.warmup_steps / int(os.environ.get("WORLD_SIZE", "1"))),
        lr_scheduler_type="linear",
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=torch_device(settings.embedding) == "cpu",
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    precision = hardware.training_precision(settings.embedding, arguments.device)
    embedding = settings.embedding.model_copy(update={"precision": precision})
    loss = MaskedInfoNCE(
        model,
        temperature=training.temperature,
        micro=MicroBatches(training.micro_batch_size or _NO_ROW_LIMIT, _MICRO_TOKENS[arguments.device.type]),
        cached=training.micro_batch_size > 0,
        bf16=precision == "bf16",
    )
    measure = DevMeasure(dev, corpus, seed=settings.seed) if dev else None
    batches = ShuffledBatches(len(numbered), schedule.batch_size, settings.seed)
    every = max(1, math.ceil(len(batches) / arguments.world_size / training.evaluations_per_epoch))
    supervisor = Supervisor(
        work=work,
        every=every,
        measure=(lambda current: measure(current, embedding)) if measure else None,
        record=record,
    )
    trainer = ContrastiveTrainer(
        batches=batches,
        uncached_tokens=hardware.activation_tokens(model, precision, arguments.device),
        work=work,
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"index": list(range(len(numbered)))}),
        loss=loss,
        data_collator=collator,
        callbacks=[supervisor],
    )
    trainer.remove_callback(PrinterCallback)
    supervisor.trainer = trainer
    return trainer, supervisor


def _run(trainer: ContrastiveTrainer, checkpoint: Path | None) -> None:
    """Train from ``checkpoint``, unless training had already ended there."""
    from transformers import TrainerState
    from transformers.trainer import TRAINER_STATE_NAME

    from embed_pipeline.training.trainer import dev_curve, stalled

    if checkpoint is None:
        trainer.train()
        return
    logger.info("training goes on from %s", checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if stalled(dev_curve(state)):
        trainer.state = state
        return
    trainer.train(resume_from_checkpoint=str(checkpoint))


def _write(trainer: ContrastiveTrainer, work: Path, output: Path, best: int | None) -> None:
    """Write the winning weights to ``output`` and remove what only the training needed."""
    if best is None:
        trainer.model.save_pretrained(str(output), create_model_card=False)
    else:
        if best == 0:
            logger.warning("no step beat the base model on the dev questions; the base's weights are kept")
        folder = work / f"best-{best}"
        if not checkpoints.is_whole(folder):
            message = f"the best weights in {folder} are not whole; remove {work} and train again"
            raise TrainingError(message)
        shutil.copytree(folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(checkpoints.SEAL))
    shutil.rmtree(work)
