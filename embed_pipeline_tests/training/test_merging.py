from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding
from embed_pipeline.training.selection import ForgettingOutcome, limit_forgetting


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
