"""Fine-tune the base encoder on the training examples, in one process or one for each GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.models import torch_device
from embed_pipeline.evaluation.query_sets import QuerySet, generated_set
from embed_pipeline.settings import Settings
from embed_pipeline.storage import read_table, table_path
from embed_pipeline.text.passages import passages_by_id
from embed_pipeline.training.checkpoints import prepare_work
from embed_pipeline.training.record import TrainingResult
from embed_pipeline.training.task import TrainingError, TrainingTask, is_first_process, world_size

if TYPE_CHECKING:
    from embed_pipeline.training.seed_run import SeedResult

_MODULE = "embed_pipeline.training"


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

    The result depends only on the inputs, the seed and the machine. A run that was killed continues from its last
    checkpoint in ``work`` and ends with the same weights; so does one whose seeds were trained by
    ``torchrun -m embed_pipeline.training`` in the same ``work``. The trained weights stay in ``work``: the same
    training reuses them, and only selects, adapts and writes again; another training removes them.

    Where the weights that win on dev have forgotten more of the general questions than
    ``forgetting.max_loss``, they are mixed with the base's (:mod:`embed_pipeline.training.selection`).

    Args:
        examples: table ``training_examples``.
        passages: segment id to its text as it is embedded, for every segment that an example names.
        dev: questions for choosing the checkpoint, answered by segments; None or empty: the last weights win.
        corpus: ids and such texts of all segments, searched for the dev questions.
        settings: groups ``embedding``, ``training``, ``adapter``, ``forgetting`` and ``evaluation``, and the seed.
        output: folder of the tuned sentence-transformers model; written last.
        work: folder of checkpoints and trained weights, of one training at a time.
        documents: the document of each segment, for the linear adapter; empty: each segment is a document.
        record: called with the step and its figures: ``loss``, ``grad_norm``, ``learning_rate``, ``dev_ndcg_10``.

    Raises:
        TrainingError: an example names an unknown segment, a setting does not fit the model, the loss or a weight
            stops being finite, or a single text does not fit in memory; it names the step and the last good checkpoint.
        ModelError: the base model or the teacher cannot be loaded.
        EvaluationError: this machine has too few general questions to check forgetting by.
    """
    task = TrainingTask.of(examples, passages, dev, corpus, settings, work=work, documents=documents, record=record)
    seeds = train_seeds(task)
    from embed_pipeline.training.selection import select

    result = select(task, seeds, output)
    for unfinished in work.glob("seed-*"):
        shutil.rmtree(unfinished)
    return result


def train_seeds(task: TrainingTask) -> list[SeedResult]:
    """Train every seed that is not trained yet; every process of a distributed training calls this.

    Args:
        task: what is trained; the winning weights of each seed stay in its ``work``.

    Raises:
        TrainingError: as :func:`finetune`.
    """
    from embed_pipeline.training.seed_run import train_seed

    if is_first_process():
        prepare_work(task.work, task.fingerprint)
    if world_size() > 1:
        from accelerate import PartialState  # type: ignore[import-untyped]  # accelerate ships no types

        # The first process prepares the folder before the others read it.
        PartialState(cpu=torch_device(task.settings.embedding) == "cpu").wait_for_everyone()
    first = task.settings.seed
    return [train_seed(task, seed) for seed in range(first, first + task.settings.training.num_runs)]


def work_folder(settings: Settings) -> Path:
    """Where the training of the stored tables keeps its checkpoints and finished seeds."""
    return settings.paths.store / "models" / "finetuned_model" / ".work"


def stored_task(settings: Settings) -> TrainingTask:
    """The training that the tables in the store hold, as the asset ``finetuned_model`` reads them.

    Raises:
        TrainingError: a table was never materialized, or what it holds cannot be trained on.
    """
    corpus = _read_stored(settings, tables.CORPUS)
    passages = passages_by_id(corpus, settings.embedding.context)
    dev = generated_set(_read_stored(settings, tables.QA_DATASET), _read_stored(settings, tables.DATASET_SPLIT), "dev")
    return TrainingTask.of(
        _read_stored(settings, tables.TRAINING_EXAMPLES),
        passages,
        dev,
        (list(passages), list(passages.values())),
        settings,
        work=work_folder(settings),
        documents=corpus["document_id"].to_list(),
    )


def train_in_processes(settings: Settings) -> None:
    """Train the stored tables in ``training.processes`` processes, under torchrun; their output is passed through.

    Raises:
        TrainingError: a process failed; its log says why.
    """
    count = settings.training.processes
    options = ["--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", _MODULE]
    # With the base that was chosen.
    environment = os.environ | settings.as_environment(["embedding"])
    done = subprocess.run(command, check=False, env=environment)  # noqa: S603 - this very interpreter and module
    if done.returncode:
        message = f"training in {count} processes ended with status {done.returncode}; the log above says why"
        raise TrainingError(message)


def _read_stored(settings: Settings, table: tables.Table) -> pl.DataFrame:
    path = table_path(settings.paths.root, table.name)
    try:
        return read_table(path, table)
    except FileNotFoundError as error:
        message = f"{table.name} was never materialized ({path} is missing); materialize it first"
        raise TrainingError(message) from error
