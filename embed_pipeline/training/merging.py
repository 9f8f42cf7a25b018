"""Tuned weights mixed with the base's, where tuning forgot too much of what the base knew.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embed_pipeline.training.weights import State, mix, put

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the tuned weights that are tried, the largest first."""

Measure = Callable[["SentenceTransformer"], float]


@dataclass(frozen=True)
class Kept:
    """What came of the check against forgetting.

    Attributes:
        share: share of the tuned weights in the model; 1: nothing was mixed in; 0: no share kept both bounds, and
            the tuned weights are left as they are for the check to refuse.
        before: nDCG@10 of the base on the general questions.
        after: nDCG@10 of the model on them.
    """

    share: float
    before: float
    after: float


def keep_general(
    model: SentenceTransformer,
    base: State,
    *,
    general: Measure,
    before: float,
    max_forgetting: float,
    dev: tuple[Measure, float] | None,
) -> Kept:
    """Mix ``model`` with its base at the largest share of :data:`SHARES` that keeps both bounds.

    The bounds: on the general questions the loss is at most ``max_forgetting``, and on dev the model is no worse
    than the base. Weights that keep the first bound as they are are left alone.

    Args:
        model: the tuned model, without adapters; changed in place.
        base: weights of the base under the same names.
        general: nDCG@10 of a model on the general questions.
        before: the same of the base.
        max_forgetting: greatest loss, absolute.
        dev: nDCG@10 of a model on the dev questions, and that of the base; None: there are none.
    """
    tuned = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    first = general(model)
    if before - first <= max_forgetting:
        return Kept(1.0, before, first)
    for share in SHARES[1:]:
        put(model, mix(base, tuned, share))
        after = general(model)
        if before - after > max_forgetting:
            continue
        if dev is None or dev[0](model) >= dev[1]:
            logger.warning(
                "general questions: nDCG@10 fell from %.4f to %.4f; %.0f %% of the tuned weights give %.4f",
                before,
                first,
                100 * share,
                after,
            )
            return Kept(share, before, after)
    put(model, tuned)
    logger.warning("no mixture of tuned and base weights keeps both bounds; the tuned weights stay as they are")
    return Kept(0.0, before, first)
