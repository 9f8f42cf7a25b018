"""Fine-tune the base encoder on the training examples."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from embed_pipeline.embedding.models import torch_device
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.settings import Settings
from embed_pipeline.training import checkpoints
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.launch import is_first_process
from embed_pipeline.training.record import TrainingResult, read_record
from embed_pipeline.training.task import Task

if TYPE_CHECKING:
    from embed_pipeline.training.seed_run import SeedResult

__all__ = ["TrainingError", "TrainingResult", "finetune", "read_record", "train_seeds"]


def finetune(
    examples: pl.DataFrame,
    passages: Mapping[str, str],
    dev: QuerySet | None,
    corpus: tuple[Sequence[str], Sequence[str]],
    settings: Settings,
    *,
    output: Path,
    work: Path,
    documents: Sequence[str] = (),
    record: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainingResult:
    """Fine-tune ``settings.embedding.model`` and write the best weights, with their prompts, to ``output``.

    The result depends on the inputs, the seed and the machine alone. A run that was killed goes on from its last
    checkpoint in ``work`` and ends in the same weights; so does one whose seeds were trained by
    ``torchrun -m embed_pipeline.training`` in the same ``work``. The trained weights stay in ``work``: the same
    training picks them up, and only chooses, adapts and writes again; another one removes them.

    Where the weights that win on dev have forgotten more of the general questions than
    ``forgetting.max_loss``, they are mixed with the base's (:mod:`embed_pipeline.training.merging`).

    Args:
        examples: table ``training_examples``.
        passages: segment id to text, for every segment that an example names.
        dev: questions for choosing the checkpoint, answered by segments; None or empty: the last weights win.
        corpus: ids and texts of all segments, searched for the dev questions.
        settings: groups ``embedding``, ``training`` and ``evaluation``, and the seed.
        output: folder of the tuned sentence-transformers model; written last.
        work: folder of checkpoints and trained weights, of one training at a time.
        documents: the document of each segment, for the linear adapter; empty: each segment is one of its own.
        record: called with the step and its figures: ``loss``, ``grad_norm``, ``learning_rate``, ``dev_ndcg_10``.

    Raises:
        TrainingError: an example names an unknown segment, a setting does not fit the model, the loss or a weight
            stops being finite, or a single text does not fit in memory; it names the step and the last good checkpoint.
        ModelError: the base model or the teacher cannot be loaded.
    """
    task = Task.of(examples, passages, dev, corpus, settings, work=work, documents=documents, record=record)
    seeds = train_seeds(task)
    from embed_pipeline.training.selection import select

    result = select(task, seeds, output)
    for unfinished in work.glob("seed-*"):
        shutil.rmtree(unfinished)
    return result


def train_seeds(task: Task) -> list[SeedResult]:
    """Train every seed, or take up those that are trained; every process of a distributed training calls it.

    Args:
        task: what is trained; the winning weights of each seed stay in its ``work``.

    Raises:
        TrainingError: as :func:`finetune`.
    """
    from embed_pipeline.training.build import world_size
    from embed_pipeline.training.seed_run import train_seed

    if is_first_process():
        checkpoints.prepare(task.work, task.fingerprint)
    if world_size() > 1:
        from accelerate import PartialState  # type: ignore[import-untyped]  # accelerate ships no types

        # Nobody looks into the folder before the first process has prepared it.
        PartialState(cpu=torch_device(task.settings.embedding) == "cpu").wait_for_everyone()
    first = task.settings.seed
    return [train_seed(task, seed) for seed in range(first, first + task.settings.training.num_runs)]
