"""Training in several processes: one for each GPU of this machine, over the stored tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl

from embed_pipeline import tables
from embed_pipeline.evaluation.query_sets import generated_set
from embed_pipeline.settings import Settings
from embed_pipeline.storage import read_table, table_path
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.task import Task

_MODULE = "embed_pipeline.training"


def is_first_process() -> bool:
    """Whether this process writes what all of this training share, as torchrun says."""
    return os.environ.get("RANK", "0") == "0"


def work_folder(settings: Settings) -> Path:
    """Where the training of the stored tables keeps its checkpoints and finished seeds."""
    return settings.paths.store / "models" / "finetuned_model" / ".work"


def stored_task(settings: Settings) -> Task:
    """The training that the tables in the store hold, as the asset ``finetuned_model`` reads them.

    Raises:
        TrainingError: a table was never materialized, or what it holds cannot be trained on.
    """
    corpus = _read(settings, tables.CORPUS)
    dev = generated_set(_read(settings, tables.QA_DATASET), _read(settings, tables.DATASET_SPLIT), "dev")
    return Task.of(
        _read(settings, tables.TRAINING_EXAMPLES),
        dict(corpus.select("segment_id", "text").iter_rows()),
        dev,
        (corpus["segment_id"].to_list(), corpus["text"].to_list()),
        settings,
        work=work_folder(settings),
        documents=corpus["document_id"].to_list(),
    )


def train_in_processes(settings: Settings) -> None:
    """Train the stored tables in ``training.processes`` processes, under torchrun; their output is shown as it comes.

    Raises:
        TrainingError: a process failed; it has logged why.
    """
    count = settings.training.processes
    options = ["--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", _MODULE]
    done = subprocess.run(command, check=False)  # noqa: S603 - this very interpreter and module
    if done.returncode:
        message = f"training in {count} processes ended with status {done.returncode}; the log above says why"
        raise TrainingError(message)


def _read(settings: Settings, table: tables.Table) -> pl.DataFrame:
    path = table_path(settings.paths.root, table.name)
    try:
        return read_table(path, table)
    except FileNotFoundError as error:
        message = f"{table.name} is not there yet ({path}); materialize it first"
        raise TrainingError(message) from error
