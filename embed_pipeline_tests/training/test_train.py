"""A fine-tuning, in one process and in several: it repeats itself, resumes, and names what went wrong."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.training import loss as loss_module
from embed_pipeline.training import supervisor as dev_module
from embed_pipeline.training.record import TrainingResult
from embed_pipeline.training.supervisor import best_step
from embed_pipeline.training.task import TrainingError, TrainingTask
from embed_pipeline.training.train import finetune, stored_task, train_in_processes, work_folder
from embed_pipeline.training.weights import RunningMean
from embed_pipeline_tests.training import small


def train(
    folder: Path,
    settings: Settings,
    *,
    with_dev: bool = True,
    stop_at: int | None = None,
    steps: list[int] | None = None,
) -> tuple[TrainingResult, dict[str, torch.Tensor]]:
    def record(step: int, figures: dict[str, float]) -> None:
        if steps is not None and "loss" in figures:
            steps.append(step)
        if step == stop_at and "loss" in figures:
            raise KeyboardInterrupt

    result = finetune(
        small.examples(),
        small.passages(),
        small.dev() if with_dev else None,
        small.corpus(),
        settings,
        output=folder / "tuned",
        work=folder / "work",
        record=record,
    )
    return result, load_file(folder / "tuned" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_training_lowers_the_loss_repeats_itself_and_keeps_the_best_weights(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, epochs=4)
    first, weights = train(tmp_path / "a", settings)
    second, repeated = train(tmp_path / "b", settings)
    assert same(weights, repeated)
    assert first.loss_curve == second.loss_curve
    losses = [loss for _, loss in first.loss_curve]
    assert (first.steps, len(losses)) == (16, 16)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert [step for step, _ in first.dev_curve] == list(range(0, first.steps + 1, 2))
    assert first.best_step == best_step(first.dev_curve)
    embedding = settings.embedding
    measure = dev_module.DevMeasure(small.dev(), small.corpus(), seed=settings.seed)
    tuned = Encoder.load(tmp_path / "a" / "tuned", embedding).backend.model
    assert measure(tuned, embedding) == pytest.approx(dict(first.dev_curve)[first.best_step])
    assert {path.name for path in (tmp_path / "a" / "work").iterdir()} == {"training.json", f"winner-{settings.seed}"}


def test_the_adapter_alone_needs_no_examples(tiny_model: Path, tmp_path: Path) -> None:
    nothing = small.examples().clear()
    for contrastive in (False, True):
        settings = small.settings(tiny_model, share=0.5, contrastive=contrastive)
        task = partial(
            TrainingTask.of, nothing, small.passages(), None, small.corpus(), settings, work=tmp_path / "work"
        )
        if contrastive:
            with pytest.raises(TrainingError, match="there are no training examples"):
                task()
        else:
            assert len(task().examples) == 0


@pytest.mark.slow
def test_the_seed_changes_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, epochs=1)
    _, weights = train(tmp_path / "a", settings, with_dev=False)
    _, other = train(tmp_path / "b", settings.model_copy(update={"seed": 18}), with_dev=False)
    assert not same(weights, other)


@pytest.mark.slow
@pytest.mark.parametrize(("stop_at", "checkpoint", "with_dev"), [(1, None, False), (5, 4, True), (8, 6, False)])
def test_killed_training_resumes_to_the_same_loss_and_weights(
    tiny_model: Path, tmp_path: Path, *, stop_at: int, checkpoint: int | None, with_dev: bool
) -> None:
    settings = small.settings(tiny_model)
    whole, weights = train(tmp_path / "a", settings, with_dev=with_dev)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", settings, with_dev=with_dev, stop_at=stop_at)
    assert not (tmp_path / "b" / "tuned").exists()
    done: list[int] = []
    resumed, again = train(tmp_path / "b", settings, with_dev=with_dev, steps=done)
    assert done == list(range((checkpoint or 0) + 1, whole.steps + 1))
    assert resumed.resumed_from == checkpoint
    assert resumed.steps == whole.steps
    assert resumed.dev_curve == whole.dev_curve
    assert resumed.final_loss == pytest.approx(whole.final_loss, abs=1e-6)
    assert same(weights, again)


@pytest.mark.slow
def test_the_mean_of_the_later_steps_outlives_a_kill(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, evaluations_per_epoch=4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, settings, with_dev=False, stop_at=8)
    [checkpoint] = (tmp_path / "work").glob("seed-*/checkpoint-7")
    # Measured at every step; steps 5, 6 and 7 are of the second half.
    kept = RunningMean.load(checkpoint / "mean.safetensors")
    assert kept.count == 3
    weights = load_file(checkpoint / "model.safetensors")
    name, mean = next(iter(kept.value().items()))
    assert mean.shape == weights[name.removeprefix("0.model.")].shape


@pytest.mark.slow
def test_a_checkpoint_of_other_examples_or_settings_is_not_taken_up(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, small.settings(tiny_model), with_dev=False, stop_at=5)
    result, _ = train(tmp_path, small.settings(tiny_model, learning_rate=2e-3), with_dev=False)
    assert result.resumed_from is None


class OnGpu(torch.Tensor):
    """A number that says it is on a GPU, where it is read late."""

    is_cuda = True


class Arrival:
    """In place of a CUDA event: notes that it was asked for, and that it was waited for."""

    seen: ClassVar[list[str]] = []

    def record(self) -> None:
        self.seen.append("record")

    def synchronize(self) -> None:
        self.seen.append("synchronize")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [(torch.Tensor, 6), (OnGpu, 7)])
def test_a_loss_that_is_nan_stops_with_the_step_and_the_last_good_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[torch.Tensor], step: int
) -> None:
    info_nce, calls = loss_module.info_nce, []

    def broken(logits: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (info_nce(logits, relations) * (torch.nan if len(calls) == step else 1.0)).as_subclass(kind)

    monkeypatch.setattr(loss_module, "info_nce", broken)
    monkeypatch.setattr(torch.cuda, "Event", Arrival)
    monkeypatch.setattr(Arrival, "seen", [])
    good = (step - 1) // 2 * 2
    expected = rf"the loss is nan at step {step}; the last good checkpoint is .*checkpoint-{good}$"
    with pytest.raises(TrainingError, match=expected):
        train(tmp_path, small.settings(tiny_model), with_dev=False)
    assert len(calls) == step + (kind is OnGpu)
    # A loss is waited for when the next one has been sent.
    assert Arrival.seen == (["record", *["record", "synchronize"] * step] if kind is OnGpu else [])
    assert not (tmp_path / "tuned").exists()


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_gradients(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small.settings(tiny_model)
    plain, _ = train(tmp_path / "a", settings, with_dev=False)
    encode, sizes = loss_module.MaskedInfoNCE._encode, []

    def limited(self: loss_module.MaskedInfoNCE, parts: list[loss_module.Features]) -> torch.Tensor:
        if sum(len(part["input_ids"]) for part in parts) > 2:
            raise torch.OutOfMemoryError
        sizes.append(max(len(part["input_ids"]) for part in parts))
        return encode(self, parts)

    monkeypatch.setattr(loss_module.MaskedInfoNCE, "_encode", limited)
    halved, _ = train(tmp_path / "b", settings, with_dev=False)
    assert max(sizes) == 2
    assert [loss for _, loss in halved.loss_curve] == pytest.approx([loss for _, loss in plain.loss_curve], abs=1e-4)


@pytest.mark.slow
def test_out_of_memory_with_a_single_text_is_an_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, parts: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loss_module.MaskedInfoNCE, "_encode", full)
    monkeypatch.setattr(loss_module.MaskedInfoNCE, "_encode_cached", full)
    with pytest.raises(TrainingError, match="out of memory at step 1 with a single text; no checkpoint"):
        train(tmp_path, small.settings(tiny_model), with_dev=False)


@pytest.mark.slow
def test_prompts_are_saved_with_the_tuned_model(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, epochs=1)
    prefixed = settings.model_copy(
        update={
            "embedding": settings.embedding.model_copy(
                update={"query_prefix": "query: ", "passage_prefix": "passage: "}
            )
        }
    )
    train(tmp_path, prefixed, with_dev=False)
    encoder = Encoder.load(tmp_path / "tuned", settings.embedding)
    assert (encoder.backend.query_prefix, encoder.backend.passage_prefix) == ("query: ", "passage: ")


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_failing_process_and_a_missing_table_are_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = store(tmp_path / "store", tiny_model, monkeypatch)
    (tmp_path / "store" / "tables" / "corpus.parquet").unlink()
    with pytest.raises(TrainingError, match=r"corpus was never materialized"):
        stored_task(settings)
    with pytest.raises(TrainingError, match="training in 2 processes ended with status 1"):
        train_in_processes(settings)
