"""Choosing the weights: by dev, and by what was forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding, Settings
from embed_pipeline.training import selection
from embed_pipeline.training.record import read_record
from embed_pipeline.training.seed_run import winner_folder
from embed_pipeline.training.selection import ForgettingOutcome, limit_forgetting, select
from embed_pipeline.training.supervisor import DevMeasure
from embed_pipeline.training.task import TrainingTask
from embed_pipeline.training.train import finetune, train_seeds
from embed_pipeline_tests.training import small


def task(work: Path, settings: Settings) -> TrainingTask:
    return TrainingTask.of(small.examples(), small.passages(), small.dev(), small.corpus(), settings, work=work)


def measure(folder: Path, settings: Settings) -> float:
    from embed_pipeline.embedding.models import load_model

    dev = DevMeasure(small.dev(), small.corpus(), seed=settings.seed)
    return dev(load_model(folder, settings.embedding), settings.embedding)


@pytest.mark.slow
def test_several_seeds_give_the_best_of_them_or_their_mean(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, num_runs=3)
    given = task(tmp_path / "work", settings)
    seeds = train_seeds(given)
    folders = [winner_folder(given, seed.seed) for seed in seeds]
    own = [measure(folder, settings) for folder in folders]
    assert own == pytest.approx([seed.dev_ndcg_10 for seed in seeds])
    result = select(given, seeds, tmp_path / "tuned")
    assert result.seed_dev_ndcg_10 == pytest.approx(own)
    states = [load_file(folder / "model.safetensors") for folder in folders]
    mean = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    written = load_file(tmp_path / "tuned" / "model.safetensors")
    together = result.weights == "mean of seeds"
    for name, tensor in written.items():
        best = states[own.index(max(own))]
        torch.testing.assert_close(tensor, mean[name] if together else best[name], atol=1e-6, rtol=0)
    assert result.dev_ndcg_10 is not None
    assert result.dev_ndcg_10 >= max(own)
    assert measure(tmp_path / "tuned", settings) == pytest.approx(result.dev_ndcg_10)


@pytest.mark.slow
def test_the_mean_of_the_later_steps_wins_only_where_it_does_better_on_dev(tiny_model: Path, tmp_path: Path) -> None:
    values = {}
    for average in (True, False):
        settings = small.settings(tiny_model, epochs=4, evaluations_per_epoch=4, average_weights=average)
        work = tmp_path / str(average)
        [seed] = train_seeds(task(work, settings))
        values[average] = seed
        assert measure(winner_folder(task(work, settings), seed.seed), settings) == pytest.approx(seed.dev_ndcg_10)
    assert not values[False].averaged
    better = (values[True].dev_ndcg_10 or 0.0) > (values[False].dev_ndcg_10 or 0.0)
    assert values[True].averaged == better


@pytest.mark.slow
def test_a_model_that_forgot_is_mixed_with_its_base_and_the_record_says_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The general questions are those of the base's own making: whatever is learnt, some of them are lost.
    ids, texts = small.corpus()
    from embed_pipeline.evaluation.query_sets import QuerySet

    asked = QuerySet("general", dict(zip(ids, texts, strict=True)), {name: {name: 1} for name in ids})
    monkeypatch.setattr(selection, "general_set", lambda questions: (asked, (ids, texts)))
    calls = []
    limit = selection.limit_forgetting

    def watched(*args: object, **options: object) -> object:
        calls.append(options)
        return limit(*args, **{**options, "before": 2.0, "max_loss": 1.05})  # type: ignore[arg-type]

    monkeypatch.setattr(selection, "limit_forgetting", watched)
    settings = small.settings(tiny_model, learning_rate=5e-2, average_weights=False)
    settings = settings.model_copy(update={"forgetting": settings.forgetting.model_copy(update={"questions": 24})})
    given = task(tmp_path / "work", settings)
    seeds = train_seeds(given)
    result = select(given, seeds, tmp_path / "tuned")
    assert calls[0]["dev"][1] == seeds[0].dev_curve[0][1]  # type: ignore[index]
    record = read_record(tmp_path / "tuned")
    assert (record["tuned_share"], record["general_after"]) == (result.tuned_share, result.general_after)
    base = load_file(tiny_model / "model.safetensors")
    tuned = load_file(winner_folder(given, seeds[0].seed) / "model.safetensors")
    share = result.tuned_share or 1.0
    for name, tensor in load_file(tmp_path / "tuned" / "model.safetensors").items():
        torch.testing.assert_close(tensor, base[name] + share * (tuned[name] - base[name]), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_general_questions_are_scored_before_and_after(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, epochs=1)
    settings = settings.model_copy(update={"forgetting": settings.forgetting.model_copy(update={"questions": 20})})
    result = finetune(
        small.examples(),
        small.passages(),
        small.dev(),
        small.corpus(),
        settings,
        output=tmp_path / "tuned",
        work=tmp_path / "work",
    )
    assert result.general_before is not None
    assert result.general_after is not None
    assert 0 < result.general_before <= 1
    record = read_record(tmp_path / "tuned")
    assert (record["general_before"], record["general_after"]) == (result.general_before, result.general_after)


def mixed(
    folder: Path, *, max_loss: float, dev: float | None = 0.0, dev_slope: float = 1.0
) -> tuple[ForgettingOutcome, float]:
    """A model whose every weight is 1 above the base's; the general figure is 0.9 less the share, dev rises by it."""
    base, model = (load_model(folder, Embedding(device="cpu")) for _ in range(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)

    def share_of(current: SentenceTransformer) -> float:
        first, origin = next(current.parameters()), next(base.parameters())
        return float((first - origin).mean().detach())

    outcome = limit_forgetting(
        model,
        base.state_dict(),
        general=lambda current: 0.9 - share_of(current),
        before=0.9,
        max_loss=max_loss,
        dev=(lambda current: dev_slope * share_of(current), dev) if dev is not None else None,
    )
    return outcome, share_of(model)


def test_what_stays_within_the_bound_is_left_alone(tiny_model: Path) -> None:
    outcome, share = mixed(tiny_model, max_loss=1.01)
    assert (outcome.share, outcome.after) == (1.0, pytest.approx(-0.1, abs=1e-5))
    assert share == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("dev", [0.0, None])
def test_the_largest_share_within_the_bound_is_taken(tiny_model: Path, dev: float | None) -> None:
    outcome, share = mixed(tiny_model, max_loss=0.35, dev=dev)
    assert outcome == ForgettingOutcome(0.3, 0.9, pytest.approx(0.6, abs=1e-5))
    assert share == pytest.approx(0.3, abs=1e-5)


def test_where_no_share_keeps_both_bounds_the_tuned_weights_stay(tiny_model: Path) -> None:
    outcome, share = mixed(tiny_model, max_loss=0.35, dev_slope=-1.0)
    assert outcome.share == 0.0
    assert share == pytest.approx(1.0, abs=1e-5)
    assert mixed(tiny_model, max_loss=0.05)[0].share == 0.0
