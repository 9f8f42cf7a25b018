"""Reading a training's history: its loss, its dev measurements, and which of them is best."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainerState

DEV_METRIC = "dev_ndcg_10"
PATIENCE = 4
"""Dev measurements without a better one after which training stops."""


def dev_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Step and dev nDCG@10 of every measurement so far."""
    return [(int(entry["step"]), float(entry[DEV_METRIC])) for entry in state.log_history if DEV_METRIC in entry]


def loss_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Step and loss of every step so far."""
    return [(int(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]


def best_step(curve: list[tuple[int, float]], *, trained_only: bool = False) -> int | None:
    """Step of the best measurement, the earlier of equals; the base (step 0) only where it beats all of them."""
    trained = [(value, -step) for step, value in curve if step]
    best = max(trained, default=None)
    base = [value for step, value in curve if not step]
    if base and not trained_only and (best is None or base[0] > best[0]):
        return 0
    return -best[1] if best else None


def stalled(curve: list[tuple[int, float]]) -> bool:
    """True after ``PATIENCE`` measurements in a row that did not beat the best before them."""
    best = best_step(curve, trained_only=True)
    return best is not None and sum(step > best for step, _ in curve) >= PATIENCE
