"""Model, loss and trainer as the settings want them.

Imports torch and transformers: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import PrinterCallback

from embed_pipeline import machine
from embed_pipeline.embedding.models import load_model, max_tokens_of, torch_device
from embed_pipeline.embedding.packing import is_packed
from embed_pipeline.settings import Settings, Training
from embed_pipeline.training.adapters import add_adapters
from embed_pipeline.training.attention import choose_attention
from embed_pipeline.training.batches import Collator, ShuffledBatches
from embed_pipeline.training.compiling import compile_layers
from embed_pipeline.training.dev import DevMeasure
from embed_pipeline.training.dimensions import declare_dimensions
from embed_pipeline.training.dropout import turn_off_dropout
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.loss import MaskedInfoNCE, MicroBatches
from embed_pipeline.training.policy import Plan, learning_rate
from embed_pipeline.training.supervisor import Supervisor
from embed_pipeline.training.task import Task
from embed_pipeline.training.teacher import taught_scores
from embed_pipeline.training.trainer import ContrastiveTrainer

# A GPU has done a small batch's work before the next kernels are asked for.
_MICRO_TOKENS = {"cpu": 4_096, "cuda": 131_072}
_LOADERS = 2
_NO_ROW_LIMIT = 1_000_000
_LEAST_IN_CURVE = 50
_MOST_STEPS_A_LOG = 10


def world_size() -> int:
    """Processes of this training, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def prepare_model(settings: Settings) -> SentenceTransformer:
    """The base model as it is trained: no dropout, cuts declared, attention chosen, adapters in place.

    Raises:
        TrainingError: a setting does not fit the model.
        ModelError: the base model cannot be loaded.
    """
    training = settings.training
    device = torch_device(settings.embedding)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model = load_model(settings.embedding.model, settings.embedding, device)
    turn_off_dropout(model)
    declare_dimensions(model, training.matryoshka_dimensions)
    bf16 = machine.training_precision(training, torch.device(device)) == "bf16"
    choose_attention(model, training, device, bf16=bf16)
    if training.lora_rank:
        add_adapters(model, training.lora_rank)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def build_trainer(task: Task, schedule: Plan, seed: int, work: Path) -> tuple[ContrastiveTrainer, Supervisor]:
    """The trainer of one seed, and what supervises it.

    Args:
        task: what is trained.
        schedule: batch and passes.
        seed: of the batches' order.
        work: folder of this seed's checkpoints.

    Raises:
        TrainingError: there are fewer examples than processes, or a setting does not fit the model.
    """
    settings, training = task.settings, task.settings.training
    if len(task.examples) < world_size():
        message = f"{len(task.examples)} training examples cannot be dealt out to {world_size()} processes"
        raise TrainingError(message)
    taught = taught_scores(task.examples, task.corpus[1], settings)
    model = prepare_model(settings)
    limit = max_tokens_of(model)
    collator = Collator(
        task.examples,
        model.tokenizer,
        prefixes=(model.prompts.get("query") or "", model.prompts.get("document") or ""),
        max_tokens=limit if training.max_text_tokens == "auto" else min(limit, training.max_text_tokens),
        taught=taught,
    )
    rate = learning_rate(machine.width(model), training, labelled=task.examples.labelled)
    arguments = _arguments(schedule, rate, settings, seed, work)
    precision = machine.training_precision(training, arguments.device)
    compile_layers(model, training, schedule.steps, bf16=precision == "bf16")
    embedding = settings.embedding.model_copy(update={"precision": precision})
    measure = DevMeasure(task.dev, task.corpus, seed=settings.seed) if task.dev else None
    batches = ShuffledBatches(len(task.examples), schedule.batch_size, seed, processes=arguments.world_size)
    supervisor = Supervisor(
        work=work,
        every=max(1, math.ceil(len(batches) / arguments.world_size / training.evaluations_per_epoch)),
        measure=(lambda current: measure(current, embedding)) if measure else None,
        record=task.record,
    )
    uncached = _uncached_tokens(model, training, precision, arguments.device)
    micro = MicroBatches(
        rows=_NO_ROW_LIMIT if training.micro_batch_size == "auto" else training.micro_batch_size,
        tokens=min(_MICRO_TOKENS[arguments.device.type], uncached),
        padded_left=model.tokenizer.padding_side == "left",
        packed=is_packed(model),
    )
    trainer = ContrastiveTrainer(
        batches=batches,
        uncached_tokens=uncached,
        work=work,
        load_base=lambda: plain_base(settings),
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
    schedule: Plan, rate: float, settings: Settings, seed: int, work: Path
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
        logging_steps=_steps_a_log(schedule.steps) if on_gpu else 1,
        logging_nan_inf_filter=False,
        # A GPU would wait while the next batch is put together.
        dataloader_num_workers=_LOADERS if on_gpu else 0,
        dataloader_persistent_workers=on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        # A pooling layer that sentence-transformers leaves out gets no gradient; no buffer changes while training.
        ddp_find_unused_parameters=True,
        ddp_broadcast_buffers=False,
    )


def _steps_a_log(steps: int) -> int:
    """Steps between two losses that are read: for each the GPU is waited for, and then has nothing to do."""
    return min(max(1, steps // _LEAST_IN_CURVE), _MOST_STEPS_A_LOG)


def _loss(model: SentenceTransformer, training: Training, micro: MicroBatches, *, bf16: bool) -> MaskedInfoNCE:
    return MaskedInfoNCE(
        model,
        temperature=training.loss_temperature,
        micro=micro,
        cached=training.micro_batch_size != "auto",
        bf16=bf16,
        dimensions=training.matryoshka_dimensions,
        teacher_weight=training.teacher_weight if training.teacher else 0.0,
    )


def _uncached_tokens(
    model: SentenceTransformer, training: Training, precision: machine.Precision, device: torch.device
) -> int:
    """Tokens whose activations fit in memory; checkpointed layers keep their inputs alone."""
    tokens = machine.activation_tokens(model, precision, device)
    return tokens * machine.CHECKPOINTED_FACTOR if training.gradient_checkpointing else tokens


def plain_base(settings: Settings) -> SentenceTransformer:
    """The base model anew, with the cuts declared and no adapters: what carries folded-in weights to disk."""
    base = load_model(settings.embedding.model, settings.embedding, device="cpu")
    declare_dimensions(base, settings.training.matryoshka_dimensions)
    return base
