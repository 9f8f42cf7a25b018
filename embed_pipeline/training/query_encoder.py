"""The query's encoder learns from the linear adapter's teacher, while passages keep the vectors that they have.

A sentence of the corpus is a query, and the encoder follows the teacher's ranking of the passages of other documents
(Hinton et al. 2015); questions are queries too, where there are any, and their sources come first in the ranking. The
passages' vectors are fixed, so that a step encodes a few sentences and still sees the whole corpus, and an index that
is filled with the base's vectors stays valid (docs/tuning.md).

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from embed_pipeline.embedding.families import features_of, route_of
from embed_pipeline.embedding.products import inner_products
from embed_pipeline.embedding.token_batches import pad_rows
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.progress import progress
from embed_pipeline.training.linear_adapter import Teaching
from embed_pipeline.training.loss import follow_distribution
from embed_pipeline.training.prepared_model import turn_off_dropout

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_SENTENCES = 6_000
_SENTENCES_A_QUESTION, _MOST_TIMES = 3, 4
"""Questions are repeated until there is one for so many sentences, at most so often."""
_EPOCHS, _BATCH, _LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP = 2, 64, 5e-5, 0.01, 0.1
_TEMPERATURE = 0.05
_POOL = 16
"""Batches' worth of sentences that are sorted by length together, so that a batch has little padding."""


def follow_teacher(model: SentenceTransformer, teaching: Teaching, generator: np.random.Generator) -> None:
    """Train the weights of the queries' way until it ranks the passages as the teacher does.

    Args:
        model: a model whose sides were split; changed in place.
        teaching: what the teacher ranks, with this model's vectors; of more than 6,000 sentences, a sample is used, and
            all questions.
        generator: of the sample and of the order of the batches.
    """
    count = len(teaching.sentences) - teaching.questions
    sampled = np.sort(generator.permutation(count)[:MAX_SENTENCES])
    wanted = round(len(sampled) / (_SENTENCES_A_QUESTION * max(1, teaching.questions)))
    asked = np.arange(count, len(teaching.sentences)).repeat(min(max(1, wanted), _MOST_TIMES))
    chosen = np.concatenate([sampled, asked])
    way, side = route_of(model, "query"), TorchBackend(model, "fp32").of_kind("query")
    rows = side.tokenize([side.query_prefix + teaching.sentences[place] for place in chosen], truncate=True)
    is_left = side.config.padding_side == "left"
    passages = torch.from_numpy(teaching.vectors[1]).to(teaching.device)
    batches = list(_batches([len(row) for row in rows], generator))
    optimizer = torch.optim.AdamW(
        [weight for weight in way.parameters() if weight.requires_grad], lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    rise = _WARM_UP * len(batches)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (len(batches) - step) / (len(batches) - rise))
    )
    way.train()
    turn_off_dropout(way)
    with progress("Training the query encoder", len(batches), "step") as bar:
        for batch in batches:
            padded = pad_rows([rows[place] for place in batch], side.config.pad_token_id, left=is_left)
            vectors = way(features_of(way, *padded))["sentence_embedding"]
            scores = torch.from_numpy(teaching.scores[chosen[batch]]).to(teaching.device)
            loss = follow_distribution(inner_products(vectors.float(), passages) / _TEMPERATURE, scores, _TEMPERATURE)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            rate.step()
            bar.advance(note=f"loss {loss.item():.3f}")
    model.eval()


def _batches(lengths: Sequence[int], generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Places in batches of like lengths, in a new order in each pass."""
    for _ in range(_EPOCHS):
        order = generator.permutation(len(lengths))
        pools = np.array_split(order, max(1, len(order) // (_POOL * _BATCH)))
        ordered = np.concatenate([pool[np.argsort(np.asarray(lengths)[pool], kind="stable")] for pool in pools])
        batches = np.array_split(ordered, max(1, len(ordered) // _BATCH))
        yield from (batches[place] for place in generator.permutation(len(batches)))
