from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.training import loss as loss_module
from embed_pipeline.training import supervisor as dev_module
from embed_pipeline.training.record import TrainingResult
from embed_pipeline.training.supervisor import best_step, stalled
from embed_pipeline.training.task import TrainingError, TrainingTask
from embed_pipeline.training.train import finetune
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


def test_the_seed_changes_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, epochs=1)
    _, weights = train(tmp_path / "a", settings, with_dev=False)
    _, other = train(tmp_path / "b", settings.model_copy(update={"seed": 18}), with_dev=False)
    assert not same(weights, other)


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


def test_out_of_memory_with_a_single_text_is_an_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, parts: object) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loss_module.MaskedInfoNCE, "_encode", full)
    monkeypatch.setattr(loss_module.MaskedInfoNCE, "_encode_cached", full)
    with pytest.raises(TrainingError, match="out of memory at step 1 with a single text; no checkpoint"):
        train(tmp_path, small.settings(tiny_model), with_dev=False)


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


def test_the_base_wins_only_where_it_beats_every_step_and_stalling_is_counted_from_the_best() -> None:
    assert best_step([(0, 0.5), (2, 0.5), (4, 0.5)]) == 2
    assert best_step([(0, 0.6), (2, 0.5), (4, 0.55)]) == 0
    assert best_step([]) is None
    curve = [(0, 0.1), (2, 0.5), (4, 0.4), (6, 0.4), (8, 0.4), (10, 0.4)]
    assert stalled(curve)
    assert not stalled(curve[:-1])
