"""A linear map after pooling that teaches the corpus's own words, from its sentences alone: no question is needed.

Every sentence and heading is asked as a question, a teacher ranks all segments of *other* documents for it, and the map
is fitted so that the model's own ranking becomes the teacher's. Without its own document: with it, nothing is learnt
but to find the same words again (docs/tuning.md). Since vectors are computed once and only the map is trained, every
step sees the whole corpus, and the fit takes a minute or two.

The teacher is the hybrid of BM25 and the model, with what search can use and a bi-encoder cannot: a segment's scores
are smoothed by those of the nearest segments (Kurland and Lee 2004), and the question is moved towards the segments
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
from embed_pipeline.embedding.search import BM25, hybrid_scores, top_indices
from embed_pipeline.progress import progress
from embed_pipeline.synthesis.words import sentences
from embed_pipeline.text.markdown import replace_headings
from embed_pipeline.training.errors import TrainingError
from embed_pipeline.training.loss import follow_distribution
from embed_pipeline.training.policy import LEAST_DOCUMENTS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Together they bound the teacher's scores to 384 MB.
MAX_SENTENCES, MAX_PASSAGES = 12_000, 8_000
_LEAST_WORDS, _MOST_WORDS = 6, 40
# Softer than the contrastive loss: a ranking of many passages is followed, not a single one found.
_TEMPERATURE = 0.05
_STEPS, _BATCH, _RATE, _DECAY = 600, 256, 1e-3, 1e-3
# How many nearest segments smooth a segment, and how many found first move a question; their mean's weight beside it.
_NEIGHBOURS, _NEIGHBOUR_WEIGHT = 5, 0.5
_FEEDBACK, _FEEDBACK_WEIGHT = 3, 0.6


def fit_adapter(
    encoder: Encoder,
    texts: Sequence[str],
    documents: Sequence[str],
    *,
    dense_weight: float,
    seed: int,
    dimensions: Sequence[int] = (),
) -> Floats:
    """Fit the map to the teacher's rankings of ``texts``.

    Args:
        encoder: the model that is adapted.
        texts: texts of all segments; of a larger corpus, a seeded sample of 8,000, and of 12,000 of its sentences.
        documents: the document of each segment.
        dense_weight: share of the dense z-score in the hybrid.
        seed: of the samples and of the batches' order.
        dimensions: shorter lengths that vectors may be cut to; the divergence is the mean over all lengths.

    Returns:
        float32 (d, d), what is added to the identity: a vector ``v`` becomes ``v + v @ map``.

    Raises:
        TrainingError: no segment has a sentence of 6 to 40 words that another has not.
    """
    draw = np.random.default_rng(seed)
    kept = np.sort(draw.permutation(len(texts))[:MAX_PASSAGES])
    passages = [texts[place] for place in kept]
    kin = _kin([documents[place] for place in kept])
    asked, own = asked_sentences(passages, kin, draw)
    questions = encoder.encode(asked, "query", label="encode sentences")
    vectors = encoder.encode(passages, "passage", label="encode segments for the adapter")
    taught = _taught(asked, passages, (questions, vectors), own, kin, dense_weight=dense_weight)
    lengths = sorted({*dimensions, vectors.shape[1]})
    parts = (torch.from_numpy(array).to(encoder.model.device) for array in (questions, vectors, taught))
    return _fit(*parts, lengths=lengths, draw=draw)


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


def asked_sentences(
    passages: Sequence[str], kin: Integers, draw: np.random.Generator
) -> tuple[list[str], list[Integers]]:
    """Distinct sentences and headings, and for each the places that are not ranked for it.

    Args:
        passages: the segments.
        kin: a number for each, equal for those of one document.
        draw: chooses among more than 12,000.

    Raises:
        TrainingError: there is none.
    """
    found: dict[str, set[int]] = {}
    for text, group in zip(passages, kin.tolist(), strict=True):
        for sentence in dict.fromkeys(sentences(replace_headings(text, keep=True))):
            if _LEAST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
                found.setdefault(sentence, set()).add(group)
    # A sentence of every document has no other to rank.
    most = len(np.unique(kin))
    every = [sentence for sentence, groups in found.items() if len(groups) < most]
    if not every:
        message = (
            f"training.linear_adapter learns from sentences of {_LEAST_WORDS} to {_MOST_WORDS} words, and of "
            f"{len(passages)} segments none has one that not all have; turn it off, or add documents of running text"
        )
        raise TrainingError(message)
    chosen = [every[place] for place in np.sort(draw.permutation(len(every))[:MAX_SENTENCES])]
    return chosen, [np.flatnonzero(np.isin(kin, list(found[sentence]))) for sentence in chosen]


def _kin(documents: Sequence[str]) -> Integers:
    """A number for each segment, equal for those of one document; with few documents, another for each."""
    numbers = {document: number for number, document in enumerate(dict.fromkeys(documents))}
    if len(numbers) < LEAST_DOCUMENTS:
        return np.arange(len(documents))
    return np.array([numbers[document] for document in documents])


def _taught(
    asked: Sequence[str],
    passages: Sequence[str],
    encoded: tuple[Floats, Floats],
    own: Sequence[Integers],
    kin: Integers,
    *,
    dense_weight: float,
) -> Floats:
    """The teacher's scores, float32 (sentences, passages), as widely spread as the cosines; NaN at a sentence's own.

    Args:
        asked: the sentences.
        passages: the segments.
        encoded: unit vectors of both.
        own: for each sentence, the places that are not ranked.
        kin: a number for each segment, equal for those of one document.
        dense_weight: share of the dense z-score in the hybrid.
    """
    questions, vectors = encoded
    lexical, near = BM25(passages), _neighbours(vectors, kin)
    smooth = _unit(vectors + _NEIGHBOUR_WEIGHT * vectors[near].mean(axis=1))
    taught = np.empty((len(asked), len(passages)), np.float32)
    spreads = np.empty((len(asked), 2))
    with progress("rank segments for sentences", len(asked), "sentences") as bar:
        for row, (sentence, question) in enumerate(zip(asked, questions, strict=True)):
            words = lexical.scores(sentence)
            words += _NEIGHBOUR_WEIGHT * words[near].mean(axis=1)
            found = hybrid_scores(smooth @ question, words, dense_weight)
            found[own[row]] = -np.inf
            first = smooth[top_indices(found, min(_FEEDBACK, len(found) - len(own[row])))]
            moved = question + _FEEDBACK_WEIGHT * first.mean(axis=0)
            taught[row] = hybrid_scores(smooth @ moved, words, dense_weight)
            spreads[row] = (vectors @ question).std(), taught[row].std()
            taught[row, own[row]] = np.nan
            bar.advance()
    wanted, taught_wide = spreads.mean(axis=0)
    taught *= np.float32(wanted / max(taught_wide, float(np.finfo(np.float32).tiny)))
    return taught


def _neighbours(vectors: Floats, kin: Integers) -> Integers:
    """Places of each vector's nearest others of another kin, (n, up to 5)."""
    width = min(_NEIGHBOURS, len(vectors) - int(np.unique(kin, return_counts=True)[1].max()))
    near = np.empty((len(vectors), width), np.int64)
    for row, vector in enumerate(vectors):
        near[row] = top_indices(np.where(kin == kin[row], -np.inf, vectors @ vector), width)
    return near


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _fit(
    questions: Tensor, passages: Tensor, taught: Tensor, *, lengths: Sequence[int], draw: np.random.Generator
) -> Floats:
    width = passages.shape[1]
    matrix = nn.Parameter(torch.zeros(width, width, device=passages.device))
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
    fitted: Floats = matrix.detach().cpu().numpy()
    return fitted


def _batches(count: int, draw: np.random.Generator) -> Iterator[Tensor]:
    for _ in range(_STEPS):
        yield torch.from_numpy(draw.choice(count, min(count, _BATCH), replace=False))


def _divergence(questions: Tensor, passages: Tensor, taught: Tensor, length: int) -> Tensor:
    """Mean KL(teacher, student) over each sentence's passages but for its own, vectors cut to ``length``."""
    cut = nn.functional.normalize(questions[:, :length], dim=1), nn.functional.normalize(passages[:, :length], dim=1)
    return follow_distribution(cut[0] @ cut[1].T / _TEMPERATURE, taught, _TEMPERATURE)
