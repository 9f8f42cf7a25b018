"""One seed's training, from its last checkpoint to its winning weights.

Imports torch and transformers: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from embed_pipeline import machine
from embed_pipeline.embedding.models import torch_device
from embed_pipeline.training import checkpoints
from embed_pipeline.training.build import build_trainer, plain_base, world_size
from embed_pipeline.training.curves import best_step, dev_curve, loss_curve, stalled
from embed_pipeline.training.dev import DevMeasure
from embed_pipeline.training.launch import is_first_process
from embed_pipeline.training.supervisor import Supervisor
from embed_pipeline.training.task import Task
from embed_pipeline.training.trainer import ContrastiveTrainer
from embed_pipeline.training.weights import save_model

logger = logging.getLogger(__name__)

RESULT_FILE = "seed.json"


@dataclass(frozen=True)
class SeedResult:
    """What one seed's training did.

    Attributes:
        seed: the seed.
        learning_rate: peak learning rate.
        steps: optimizer steps done, those before a resumption included.
        loss_curve: step and loss, every step.
        dev_curve: step and dev nDCG@10, the base at step 0; empty without dev questions.
        best_step: step whose weights won; 0: the base's.
        averaged: whether the mean of the later steps' weights won over that step.
        dev_ndcg_10: of the winning weights; None without dev questions.
        seconds: time in this process, dev measurements included.
        examples_trained: examples trained on in this process, repeats included, all processes together.
        precision: ``bf16`` or ``fp32``.
        device: the device in words.
        resumed_from: step of the checkpoint that this process started from; None: from the start.
    """

    seed: int
    learning_rate: float
    steps: int
    loss_curve: list[tuple[int, float]]
    dev_curve: list[tuple[int, float]]
    best_step: int
    averaged: bool
    dev_ndcg_10: float | None
    seconds: float
    examples_trained: float
    precision: str
    device: str
    resumed_from: int | None


def winner_folder(task: Task, seed: int) -> Path:
    """Where a seed's winning weights lie once it is through."""
    return task.work / f"winner-{seed}"


def train_seed(task: Task, seed: int) -> SeedResult:
    """Train, or take up what another process has finished; the winning weights are in :func:`winner_folder` after it.

    Every process of a distributed training calls it; the first one writes.

    Raises:
        TrainingError: the loss or a weight stops being finite, or a single text does not fit in memory; it names
            the step and the last good checkpoint.
    """
    target = winner_folder(task, seed)
    if checkpoints.is_whole(target):
        logger.info("seed %d is trained already: %s", seed, target)
        return _read(target)
    if not task.settings.training.contrastive:
        return _leave(task, seed, target)
    # Steps and batches depend on the number of processes, so checkpoints do too.
    work = task.work / f"seed-{seed}-of-{world_size()}"
    trainer, supervisor = build_trainer(task, task.plan, seed, work)
    checkpoint = checkpoints.latest(work)
    started = time.monotonic()
    try:
        _run(trainer, supervisor, checkpoint)
    finally:
        supervisor.close()
    seconds = time.monotonic() - started
    result = _result(task, trainer, seed, checkpoint, seconds)
    averages = task.settings.training.average_weights
    mean = supervisor.measure_mean(trainer.state) if averages else None
    if trainer.is_world_process_zero():
        if mean is not None and result.dev_ndcg_10 is not None and mean > result.dev_ndcg_10:
            result = replace(result, averaged=True, dev_ndcg_10=mean)
        _write(trainer, work, target, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _leave(task: Task, seed: int, target: Path) -> SeedResult:
    """The base's weights as the winning ones, after no step."""
    started = time.monotonic()
    embedding = task.settings.embedding
    model = plain_base(task.settings)
    dev = DevMeasure(task.dev, task.corpus, seed=task.settings.seed)(model, embedding) if task.dev else None
    result = SeedResult(
        seed=seed,
        learning_rate=0.0,
        steps=0,
        loss_curve=[],
        dev_curve=[] if dev is None else [(0, dev)],
        best_step=0,
        averaged=False,
        dev_ndcg_10=dev,
        seconds=time.monotonic() - started,
        examples_trained=0.0,
        precision="bf16" if embedding.precision == "bf16" else "fp32",
        device=machine.describe(torch.device(torch_device(embedding))),
        resumed_from=None,
    )
    if is_first_process():
        save_model(model, target)
        _seal(target, result)
    return result


def _run(trainer: ContrastiveTrainer, supervisor: Supervisor, checkpoint: Path | None) -> None:
    """Train from ``checkpoint``, unless training had already ended there."""
    if checkpoint is None:
        trainer.train()
        return
    logger.info("training goes on from %s", checkpoint)
    supervisor.resume(checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if stalled(dev_curve(state)):
        trainer.state = state
        return
    trainer.train(resume_from_checkpoint=str(checkpoint))


def _result(task: Task, trainer: ContrastiveTrainer, seed: int, checkpoint: Path | None, seconds: float) -> SeedResult:
    state = trainer.state
    measured = dev_curve(state)
    best = best_step(measured)
    resumed_from = checkpoints.step_of(checkpoint) if checkpoint else None
    passes = (state.global_step - (resumed_from or 0)) / len(trainer.get_train_dataloader())
    return SeedResult(
        seed=seed,
        learning_rate=trainer.args.learning_rate,
        steps=state.global_step,
        loss_curve=loss_curve(state),
        dev_curve=measured,
        best_step=state.global_step if best is None else best,
        averaged=False,
        dev_ndcg_10=None if best is None else dict(measured)[best],
        seconds=seconds,
        examples_trained=passes * len(task.examples),
        precision="bf16" if trainer.loss.bf16 else "fp32",
        device=machine.describe(trainer.args.device),
        resumed_from=resumed_from,
    )


def _write(trainer: ContrastiveTrainer, work: Path, target: Path, result: SeedResult) -> None:
    """Put the winning weights and the result into ``target`` and remove what only the training needed."""
    shutil.rmtree(target, ignore_errors=True)
    if not result.averaged and result.dev_ndcg_10 is not None:
        if result.best_step == 0:
            logger.warning("no step beat the base model on the dev questions; the base's weights are kept")
        trainer.take(work / f"best-{result.best_step}")
    trainer.write_model(target)
    _seal(target, result)
    shutil.rmtree(work)


def _seal(target: Path, result: SeedResult) -> None:
    (target / RESULT_FILE).write_text(json.dumps(asdict(result)), encoding="utf-8")
    checkpoints.seal(target)


def _read(target: Path) -> SeedResult:
    values = json.loads((target / RESULT_FILE).read_text(encoding="utf-8"))
    curves = {name: [tuple(point) for point in values[name]] for name in ("loss_curve", "dev_curve")}
    return SeedResult(**{**values, **curves})
