"""A linear map after pooling that teaches the corpus's own words, from its sentences alone: no question is needed.

Every sentence is asked as a question, a teacher ranks all *other* segments for it, and the map is fitted so that the
model's own ranking becomes the teacher's. Without the segment that the sentence stands in: with it, nothing is learnt
but to find the same words again (docs/tuning.md). Since vectors are computed once and only the map is trained, every
step sees the whole corpus, and the fit takes a minute at most.

The teacher is the hybrid of BM25 and the model, with what search can use and a bi-encoder cannot: a segment's scores
are smoothed by those of its nearest segments (Kurland and Lee 2004), and the question is moved towards the segments
found first and asked again (Rocchio 1971).

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.search import BM25, Indices, hybrid_scores, search, top_indices
from embed_pipeline.progress import progress
from embed_pipeline.synthesis.words import sentences
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.loss import follow_distribution

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Floats = NDArray[np.float32]

_TINY = float(np.finfo(np.float32).tiny)
# Together they bound the teacher's scores to 128 MB.
MAX_SENTENCES, MAX_PASSAGES = 4_000, 8_000
_LEAST_WORDS, _MOST_WORDS = 6, 40
# Softer than the contrastive loss: a ranking of many passages is followed, not a single one found.
_TEMPERATURE = 0.05
_STEPS, _BATCH, _RATE, _DECAY = 600, 256, 1e-3, 1e-3
# How many nearest segments smooth a segment, and how many found first move a question; their mean's weight beside it.
_NEIGHBOURS, _NEIGHBOUR_WEIGHT = 5, 0.5
_FEEDBACK, _FEEDBACK_WEIGHT = 3, 0.6


def fit_adapter(
    encoder: Encoder, texts: Sequence[str], *, dense_weight: float, seed: int, dimensions: Sequence[int] = ()
) -> Floats:
    """Fit the map to the teacher's rankings of ``texts``.

    Args:
        encoder: the model that is adapted.
        texts: texts of all segments; of a larger corpus, a seeded sample of 8,000, and of 4,000 of its sentences.
        dense_weight: share of the dense z-score in the hybrid.
        seed: of the samples and of the batches' order.
        dimensions: shorter lengths that vectors may be cut to; the divergence is the mean over all lengths.

    Returns:
        float32 (d, d), what is added to the identity: a vector ``v`` becomes ``v + v @ map``.

    Raises:
        TrainingError: no segment has a sentence of 6 to 40 words that another has not.
    """
    draw = np.random.default_rng(seed)
    passages = [texts[place] for place in np.sort(draw.permutation(len(texts))[:MAX_PASSAGES])]
    asked, own = asked_sentences(passages, draw)
    questions = encoder.encode(asked, "query", label="encode sentences")
    vectors = encoder.encode(passages, "passage", label="encode segments for the adapter")
    taught = _taught(asked, passages, (questions, vectors), own, dense_weight)
    lengths = sorted({*dimensions, vectors.shape[1]})
    return _fit(torch.from_numpy(questions), torch.from_numpy(vectors), torch.from_numpy(taught), lengths, draw)


def append_adapter(model: SentenceTransformer) -> nn.Linear:
    """Put an identity map after pooling, before the normalisation where there is one; the layer, for its weights."""
    from sentence_transformers.sentence_transformer.modules import Dense

    width = model.get_embedding_dimension()
    layer = Dense(width, width, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(width))
    model.insert(_place(model), layer.to(model.device))
    linear: nn.Linear = layer.linear
    return linear


def remove_adapter(model: SentenceTransformer) -> None:
    """Take the layer of :func:`append_adapter` out again."""
    del model[_place(model) - 1]


def _place(model: SentenceTransformer) -> int:
    """Where in the model's chain a map after pooling goes."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    return len(model) - isinstance(model[-1], Normalize)


def set_adapter(layer: nn.Linear, matrix: Floats, share: float) -> None:
    """Give the layer of :func:`append_adapter` so much of the map: 0 is the identity."""
    with torch.no_grad():
        layer.weight.copy_(torch.eye(len(matrix)) + share * torch.from_numpy(matrix).T)


def asked_sentences(texts: Sequence[str], draw: np.random.Generator) -> tuple[list[str], list[list[int]]]:
    """Distinct sentences, and for each the numbers of all texts that it stands in."""
    found: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        for sentence in dict.fromkeys(sentences(text)):
            if _LEAST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
                found.setdefault(sentence, []).append(place)
    # A sentence of every text has no other to rank.
    found = {sentence: places for sentence, places in found.items() if len(places) < len(texts)}
    if not found:
        message = (
            f"training.linear_adapter learns from sentences of {_LEAST_WORDS} to {_MOST_WORDS} words, and of "
            f"{len(texts)} segments none has one that not all have; turn it off, or add documents of running text"
        )
        raise TrainingError(message)
    every = list(found)
    chosen = [every[place] for place in np.sort(draw.permutation(len(every))[:MAX_SENTENCES])]
    return chosen, [found[sentence] for sentence in chosen]


def _taught(
    asked: Sequence[str],
    passages: Sequence[str],
    encoded: tuple[Floats, Floats],
    own: Sequence[Sequence[int]],
    dense_weight: float,
) -> Floats:
    """The teacher's scores, float32 (sentences, passages), as widely spread as the cosines; -inf at a sentence's own.

    Args:
        asked: the sentences.
        passages: the segments.
        encoded: unit vectors of both.
        own: for each sentence, the places of the segments that it stands in.
        dense_weight: share of the dense z-score in the hybrid.
    """
    questions, vectors = encoded
    lexical, near = BM25(passages), _neighbours(vectors)
    smooth = _unit(vectors + _NEIGHBOUR_WEIGHT * vectors[near].mean(axis=1))
    taught = np.empty((len(asked), len(passages)), np.float32)
    spread = 0.0
    with progress("rank segments for sentences", len(asked), "sentences") as bar:
        for row, (sentence, question) in enumerate(zip(asked, questions, strict=True)):
            words = lexical.scores(sentence)
            words += _NEIGHBOUR_WEIGHT * words[near].mean(axis=1)
            found = hybrid_scores(smooth @ question, words, dense_weight)
            found[own[row]] = -np.inf
            first = smooth[top_indices(found, min(_FEEDBACK, len(found) - len(own[row])))]
            taught[row] = hybrid_scores(
                smooth @ (question + _FEEDBACK_WEIGHT * first.mean(axis=0)), words, dense_weight
            )
            spread += float((vectors @ question).std()) / len(asked)
            bar.advance()
    taught *= spread / max(float(taught.std(axis=1).mean()), _TINY)
    for row, among in enumerate(own):
        taught[row, among] = -np.inf
    return taught


def _neighbours(vectors: Floats) -> Indices:
    """Places of each vector's nearest others, int64 (n, up to 5)."""
    found = search(vectors, vectors, _NEIGHBOURS + 1).indices
    itself = found == np.arange(len(vectors))[:, None]
    # Where as many others are as near as it is itself, it may not be among them: any one is left out.
    itself[~itself.any(axis=1), -1] = True
    others: Indices = found[~itself].reshape(len(vectors), -1)
    return others


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _fit(
    questions: Tensor, passages: Tensor, taught: Tensor, lengths: Sequence[int], draw: np.random.Generator
) -> Floats:
    width = passages.shape[1]
    # What the loss leaves out, it takes as NaN.
    taught = taught.masked_fill(torch.isinf(taught), torch.nan)
    matrix = nn.Parameter(torch.zeros(width, width))
    optimizer = torch.optim.Adam([matrix], lr=_RATE)
    with progress("fit the linear adapter", _STEPS, "steps") as bar:
        for batch in _batches(len(questions), draw):
            asked, target = questions[batch], taught[batch]
            mapped = asked + asked @ matrix, passages + passages @ matrix
            loss = torch.stack([_divergence(*mapped, target, length) for length in lengths]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss + _DECAY * matrix.square().sum())
            optimizer.step()
            bar.advance()
    fitted: Floats = matrix.detach().numpy()
    return fitted


def _batches(count: int, draw: np.random.Generator) -> Iterator[Tensor]:
    for _ in range(_STEPS):
        yield torch.from_numpy(draw.choice(count, min(count, _BATCH), replace=False))


def _divergence(questions: Tensor, passages: Tensor, taught: Tensor, length: int) -> Tensor:
    """Mean KL(teacher, student) over each sentence's passages but for its own, vectors cut to ``length``."""
    cut = nn.functional.normalize(questions[:, :length], dim=1), nn.functional.normalize(passages[:, :length], dim=1)
    return follow_distribution(cut[0] @ cut[1].T / _TEMPERATURE, taught, _TEMPERATURE)
