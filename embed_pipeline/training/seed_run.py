"""One run with one seed: model, loss and trainer put together, from the last checkpoint to the winning weights."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from embed_pipeline import machine
from embed_pipeline.embedding.families import TASKS, is_routed, padding_side_of, route_of
from embed_pipeline.embedding.models import torch_device
from embed_pipeline.embedding.packing import is_packed
from embed_pipeline.settings import Settings, Training
from embed_pipeline.training.checkpoints import (
    is_whole_checkpoint,
    latest_checkpoint,
    seal_checkpoint,
    step_of_checkpoint,
)
from embed_pipeline.training.distillation import score_candidates
from embed_pipeline.training.loss import MaskedInfoNCE, MicroBatches
from embed_pipeline.training.prepared_model import (
    check_base,
    compile_layers,
    is_checkpointed,
    load_plain_base,
    prepare_model,
)
from embed_pipeline.training.supervisor import DevMeasure, Supervisor, best_step, dev_curve, loss_curve, stalled
from embed_pipeline.training.task import (
    Schedule,
    TrainingError,
    TrainingTask,
    is_first_process,
    learning_rate,
    world_size,
)
from embed_pipeline.training.trainer import ContrastiveTrainer
from embed_pipeline.training.training_batches import Collator, ShuffledBatches
from embed_pipeline.training.weights import save_model

# Large on a GPU, which finishes a small batch before the next kernels are queued.
_MICRO_BATCH_TOKENS = {"cpu": 4_096, "cuda": 131_072}
_LOADER_PROCESSES = 2
_NO_ROW_LIMIT = 1_000_000
_LEAST_LOGGED_LOSSES, _MOST_STEPS_BETWEEN_LOGS = 50, 10
RESULT_FILE = "seed.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeedResult:
    """What one seed's training did.

    Attributes:
        seed: the seed.
        learning_rate: peak learning rate.
        steps: optimizer steps done, those before a resumption included.
        loss_curve: step and loss of every logged step.
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


def winner_folder(task: TrainingTask, seed: int) -> Path:
    """Where a seed's winning weights lie once it is trained."""
    return task.work / f"winner-{seed}"


def train_seed(task: TrainingTask, seed: int) -> SeedResult:
    """Train one seed, unless that is done already; its winning weights are then in :func:`winner_folder`.

    Every process of a distributed training calls it; the first one writes.

    Raises:
        TrainingError: the loss or a weight stops being finite, or a single text does not fit in memory; it names
            the step and the last good checkpoint.
        ModelError: the base cannot be loaded, or not be saved faithfully.
    """
    target = winner_folder(task, seed)
    if is_whole_checkpoint(target):
        logger.info("seed %d is trained already: %s", seed, target)
        return _read_result(target)
    if not task.settings.training.contrastive:
        return _keep_base(task, seed, target)
    # Steps and batches depend on the number of processes, so checkpoints do too.
    work = task.work / f"seed-{seed}-of-{world_size()}"
    checkpoint = latest_checkpoint(work)
    if checkpoint is None and is_first_process():
        check_base(task.settings, task.work / "base")
    trainer, supervisor = build_trainer(task, task.schedule, seed, work)
    started = time.monotonic()
    try:
        _train_from(checkpoint, trainer, supervisor)
    finally:
        supervisor.close()
    seconds = time.monotonic() - started
    result = _seed_result(task, trainer, seed, checkpoint, seconds)
    mean = supervisor.measure_mean(trainer.state) if task.settings.training.average_weights else None
    if trainer.is_world_process_zero():
        if mean is not None and result.dev_ndcg_10 is not None and mean > result.dev_ndcg_10:
            result = replace(result, averaged=True, dev_ndcg_10=mean)
        _write_winner(trainer, work, target, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _keep_base(task: TrainingTask, seed: int, target: Path) -> SeedResult:
    """Write the base's weights as the winning ones, without a training step."""
    started = time.monotonic()
    embedding = task.settings.embedding
    model = load_plain_base(task.settings)
    measure = DevMeasure.of(task)
    dev = measure(model, embedding) if measure else None
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
        _write_result(target, result)
    return result


def build_trainer(
    task: TrainingTask, schedule: Schedule, seed: int, work: Path
) -> tuple[ContrastiveTrainer, Supervisor]:
    """The trainer of one seed, and its supervisor.

    Args:
        task: what is trained.
        schedule: batch size and passes.
        seed: of the batches' order.
        work: folder of this seed's checkpoints.

    Raises:
        TrainingError: there are fewer examples than processes, or a setting does not fit the model.
    """
    settings, training = task.settings, task.settings.training
    if len(task.examples) < world_size():
        message = (
            f"{len(task.examples)} training examples are too few for {world_size()} processes; "
            f"set training.processes to {len(task.examples)} or fewer"
        )
        raise TrainingError(message)
    teacher_scores = score_candidates(task.examples, task.corpus[1], settings)
    model = prepare_model(settings)
    collator = Collator(
        task.examples,
        model,
        max_tokens=None if training.max_text_tokens == "auto" else training.max_text_tokens,
        teacher_scores=teacher_scores,
    )
    rate = learning_rate(machine.width(model), training, labelled=task.examples.labelled)
    arguments = _arguments(schedule, rate, settings, seed, work)
    if is_routed(model):
        # The loss routes by itself; the trainer only wants to be told that somebody does.
        arguments.router_mapping = {"question": TASKS["query"], "passage": TASKS["passage"]}
    precision = machine.training_precision(training, arguments.device)
    compile_layers(model, training, schedule.steps, bf16=precision == "bf16")
    embedding = settings.embedding.model_copy(update={"precision": precision})
    measure = DevMeasure.of(task)
    batches = ShuffledBatches(len(task.examples), schedule.batch_size, seed, processes=arguments.world_size)
    supervisor = Supervisor(
        work=work,
        every=max(1, math.ceil(len(batches) / arguments.world_size / training.evaluations_per_epoch)),
        measure=(lambda current: measure(current, embedding)) if measure else None,
        record=task.record,
    )
    uncached = _uncached_tokens(model, precision, arguments.device)
    micro = MicroBatches(
        rows=_NO_ROW_LIMIT if training.micro_batch_size == "auto" else training.micro_batch_size,
        tokens=min(_MICRO_BATCH_TOKENS[arguments.device.type], uncached),
        padded_left=padding_side_of(model) == "left",
        packed=is_packed(model),
    )
    trainer = ContrastiveTrainer(
        batches=batches,
        uncached_tokens=uncached,
        work=work,
        load_base=lambda: load_plain_base(settings),
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"index": list(range(len(task.examples)))}),
        loss=_loss(model, training, micro, bf16=precision == "bf16"),
        data_collator=collator,
        callbacks=[supervisor],
    )
    trainer.remove_callback(PrinterCallback)
    supervisor.trainer = trainer
    return trainer, supervisor


def _arguments(
    schedule: Schedule, rate: float, settings: Settings, seed: int, work: Path
) -> SentenceTransformerTrainingArguments:
    training, on_gpu = settings.training, torch_device(settings.embedding) == "cuda"
    return SentenceTransformerTrainingArguments(
        output_dir=str(work),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size,
        learning_rate=rate,
        weight_decay=training.weight_decay,
        warmup_steps=math.ceil(schedule.warmup_steps / world_size()),
        lr_scheduler_type="linear",
        seed=seed,
        data_seed=seed,
        use_cpu=not on_gpu,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=_steps_between_logs(schedule.steps) if on_gpu else 1,
        logging_nan_inf_filter=False,
        # A GPU would wait while the next batch is collated.
        dataloader_num_workers=_LOADER_PROCESSES if on_gpu else 0,
        dataloader_persistent_workers=on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        # A pooling layer that sentence-transformers leaves out gets no gradient; no buffer changes while training.
        ddp_find_unused_parameters=True,
        ddp_broadcast_buffers=False,
    )


def _steps_between_logs(steps: int) -> int:
    """Steps between two logged losses: reading one waits for the GPU, which then idles."""
    return min(max(1, steps // _LEAST_LOGGED_LOSSES), _MOST_STEPS_BETWEEN_LOGS)


def _uncached_tokens(model: SentenceTransformer, precision: machine.Precision, device: torch.device) -> int:
    """Tokens whose activations fit in memory; checkpointed layers keep their inputs alone."""
    tokens = machine.activation_tokens(model, precision, device)
    return tokens * machine.CHECKPOINTED_FACTOR if is_checkpointed(model) else tokens


def _loss(model: SentenceTransformer, training: Training, micro: MicroBatches, *, bf16: bool) -> MaskedInfoNCE:
    ways = {task: route_of(model, kind) for kind, task in TASKS.items()}
    return MaskedInfoNCE(
        model,
        temperature=training.loss_temperature,
        micro=micro,
        cached=training.micro_batch_size != "auto",
        bf16=bf16,
        dimensions=training.matryoshka_dimensions,
        routed=is_routed(model),
        trained=[task for task, way in ways.items() if any(weight.requires_grad for weight in way.parameters())],
        teacher_weight=training.teacher_weight if training.teacher else 0.0,
    )


def _train_from(checkpoint: Path | None, trainer: ContrastiveTrainer, supervisor: Supervisor) -> None:
    """Train from ``checkpoint``, unless training had ended there."""
    if checkpoint is None:
        trainer.train()
        return
    logger.info("training continues from %s", checkpoint)
    supervisor.resume(checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    if stalled(dev_curve(state)):
        trainer.state = state
        return
    trainer.train(resume_from_checkpoint=str(checkpoint))


def _seed_result(
    task: TrainingTask, trainer: ContrastiveTrainer, seed: int, checkpoint: Path | None, seconds: float
) -> SeedResult:
    state = trainer.state
    measurements = dev_curve(state)
    best = best_step(measurements)
    resumed_from = step_of_checkpoint(checkpoint) if checkpoint else None
    passes = (state.global_step - (resumed_from or 0)) / len(trainer.get_train_dataloader())
    return SeedResult(
        seed=seed,
        learning_rate=trainer.args.learning_rate,
        steps=state.global_step,
        loss_curve=loss_curve(state),
        dev_curve=measurements,
        best_step=state.global_step if best is None else best,
        averaged=False,
        dev_ndcg_10=None if best is None else dict(measurements)[best],
        seconds=seconds,
        examples_trained=passes * len(task.examples),
        precision="bf16" if trainer.loss.bf16 else "fp32",
        device=machine.describe(trainer.args.device),
        resumed_from=resumed_from,
    )


def _write_winner(trainer: ContrastiveTrainer, work: Path, target: Path, result: SeedResult) -> None:
    """Write the winning weights and the result to ``target``, and remove the checkpoints."""
    shutil.rmtree(target, ignore_errors=True)
    if not result.averaged and result.dev_ndcg_10 is not None:
        if result.best_step == 0:
            logger.warning("no step beat the base model on the dev questions; the base's weights are kept")
        trainer.restore_weights(work / f"best-{result.best_step}")
    trainer.write_model(target)
    _write_result(target, result)
    shutil.rmtree(work)


def _write_result(target: Path, result: SeedResult) -> None:
    (target / RESULT_FILE).write_text(json.dumps(asdict(result)), encoding="utf-8")
    seal_checkpoint(target)


def _read_result(target: Path) -> SeedResult:
    values = json.loads((target / RESULT_FILE).read_text(encoding="utf-8"))
    curves = {name: [tuple(point) for point in values[name]] for name in ("loss_curve", "dev_curve")}
    return SeedResult(**{**values, **curves})
