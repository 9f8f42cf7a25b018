from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from embed_pipeline import tables
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.training import loss as loss_module
from embed_pipeline.training.task import TrainingError
from embed_pipeline.training.train import finetune, stored_task, train_in_processes, work_folder
from embed_pipeline_tests.training import small


def filled(table: tables.Table, rows: list[dict[str, object]]) -> pl.DataFrame:
    """Rows of ``table`` with a plain value in every column that is not given."""

    def plain(column: tables.Column) -> object:
        if column.nullable or column.values:
            return None if column.nullable else column.values[0]
        return {pl.String: "", pl.Int64: 1, pl.Float64: 0.5}.get(column.dtype, [])  # type: ignore[call-overload]

    return table.frame([{c.name: row.get(c.name, plain(c)) for c in table.columns} for row in rows])


def store(root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The small task as stored tables, and the settings that read them, in the environment too."""
    dev = small.dev()
    frames = {
        tables.TRAINING_EXAMPLES: small.examples(),
        tables.CORPUS: filled(tables.CORPUS, [{"segment_id": k, "text": v} for k, v in small.passages().items()]),
        tables.QA_DATASET: filled(
            tables.QA_DATASET,
            [{"qa_id": q, "question": text, "segment_ids": list(dev.qrels[q])} for q, text in dev.queries.items()],
        ),
        tables.DATASET_SPLIT: filled(tables.DATASET_SPLIT, [{"qa_id": q, "split": "dev"} for q in dev.queries]),
    }
    (root / "tables").mkdir(parents=True)
    for table, frame in frames.items():
        frame.write_parquet(root / "tables" / f"{table.name}.parquet")
    chosen = {
        "PATHS__STORE": root,
        "EMBEDDING__MODEL": model,
        "EMBEDDING__PRECISION": "fp32",
        "EMBEDDING__DEVICE": "cpu",
        "TRAINING__EPOCHS": 2,
        "TRAINING__BATCH_SIZE": 2,
        "TRAINING__EVALUATIONS_PER_EPOCH": 2,
        "TRAINING__LEARNING_RATE": 1e-3,
        "TRAINING__PROCESSES": 2,
        "FORGETTING__QUESTIONS": 0,
    }
    for name, value in chosen.items():
        monkeypatch.setenv(f"EMBED_PIPELINE_{name}", str(value))
    return load_settings()


def test_two_processes_train_and_what_they_trained_is_taken_up(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gradients are cached, so that they are averaged between the processes from within the backward pass.
    monkeypatch.setenv("EMBED_PIPELINE_TRAINING__MICRO_BATCH_SIZE", "1")
    settings = store(tmp_path / "store", tiny_model, monkeypatch)
    train_in_processes(settings)
    winner = work_folder(settings) / f"winner-{settings.seed}"
    assert (winner / "model.safetensors").exists()

    def never(*_: object) -> torch.Tensor:
        raise AssertionError("trained again")

    monkeypatch.setattr(loss_module, "info_nce", never)
    task = stored_task(settings)
    assert len(task.documents) == len(task.corpus[0])
    result = finetune(
        small.examples(),
        small.passages(),
        small.dev(),
        task.corpus,
        settings,
        output=tmp_path / "tuned",
        work=work_folder(settings),
    )
    # Sixteen examples in batches of two, over two processes, twice.
    assert result.steps == 8
    assert [step for step, _ in result.dev_curve] == [0, 2, 4, 6, 8]
    losses = [loss for _, loss in result.loss_curve]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert load_file(tmp_path / "tuned" / "model.safetensors")
    assert (work_folder(settings) / f"winner-{settings.seed}").exists(), "for another adapter"


def test_a_failing_process_and_a_missing_table_are_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = store(tmp_path / "store", tiny_model, monkeypatch)
    (tmp_path / "store" / "tables" / "corpus.parquet").unlink()
    with pytest.raises(TrainingError, match=r"corpus was never materialized"):
        stored_task(settings)
    with pytest.raises(TrainingError, match="training in 2 processes ended with status 1"):
        train_in_processes(settings)
