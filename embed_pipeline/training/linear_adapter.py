"""A linear map after pooling that learns the corpus's own vocabulary from its sentences; it needs no questions.

Every sentence and heading is a query, a teacher ranks all segments of *other* documents for it, and the map is fitted
so that the model's ranking becomes the teacher's. The sentence's own document is left out: with it, the map learns
only to find the same words again (docs/tuning.md). Vectors are computed once and only the map is trained, so every
step sees the whole corpus, and the fit takes a minute or two.

The teacher is the hybrid of BM25 and the model, with two aids that a search can use and a bi-encoder cannot: a
segment's scores are smoothed by those of its nearest segments (Kurland and Lee 2004), and the query is moved towards
the segments found first and asked again (pseudo-relevance feedback; Rocchio 1971).

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.products import inner_products
from embed_pipeline.embedding.search import BM25, hybrid_scores, top_indices
from embed_pipeline.progress import progress
from embed_pipeline.text.languages import AUTO
from embed_pipeline.text.markdown import replace_headings
from embed_pipeline.text.words import sentences
from embed_pipeline.training.loss import follow_distribution
from embed_pipeline.training.task import LEAST_DOCUMENTS, TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Sides = Literal["both", "query"]
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Together they limit the teacher's scores to 512 MB.
MAX_SENTENCES, MAX_QUESTIONS, MAX_PASSAGES = 12_000, 4_000, 8_000
# How far above all others the teacher puts a question's sources, on the scale of cosines.
_SOURCE_LEAD = 0.02
_LEAST_WORDS, _MOST_WORDS = 6, 40
# The teacher: how many nearest segments smooth a segment, how many of the first hits move a query, and the weight of
# their mean.
_NEIGHBOURS, _NEIGHBOUR_WEIGHT = 5, 0.5
_FEEDBACK_HITS, _FEEDBACK_WEIGHT = 3, 0.6
# The fit. The temperature is higher than that of the contrastive loss, because a ranking of many passages is followed
# here, not a single passage found.
_TEMPERATURE = 0.05
_STEPS, _BATCH_QUERIES, _LEARNING_RATE, _L2_PENALTY = 600, 256, 1e-3, 1e-3


@dataclass(frozen=True)
class Teaching:
    """Sentences of a corpus, its passages, and how the teacher ranks these for those.

    Attributes:
        sentences: sentences and headings, as queries.
        vectors: unit vectors of the sentences and of the passages, as the model to be taught gives them.
        scores: float32 (sentences, passages), on the scale of cosines, NaN where a passage is not ranked.
        questions: how many of the sentences, the last ones, are questions, whose sources are ranked first.
        device: where the model computes.
    """

    sentences: list[str]
    vectors: tuple[Floats, Floats]
    scores: Floats
    device: torch.device
    questions: int = 0

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        texts: Sequence[str],
        documents: Sequence[str],
        *,
        dense_weight: float,
        generator: np.random.Generator,
        language: str = AUTO,
        questions: Mapping[str, Collection[str]] = MappingProxyType({}),
    ) -> Teaching:
        """Have the teacher rank ``texts`` for their own sentences, and for questions.

        Args:
            encoder: the model that is to be taught.
            texts: texts of all segments; of a larger corpus, a sample of 8,000, and of 12,000 of its sentences.
            documents: the document of each segment.
            dense_weight: share of the dense z-score in the hybrid.
            generator: of the samples.
            language: ``corpus.language``.
            questions: question to the texts that answer it; those with none among ``texts`` are passed over, and of
                more than 4,000 a sample is used.

        Raises:
            TrainingError: no segment has a sentence of 6 to 40 words that another has not.
        """
        sampled = np.sort(generator.permutation(len(texts))[:MAX_PASSAGES])
        passages = [texts[place] for place in sampled]
        groups = number_documents([documents[place] for place in sampled])
        queries, own = sentence_queries(passages, groups, generator)
        place = {text: index for index, text in enumerate(passages)}
        answered = [
            (question, found)
            for question, answers in questions.items()
            if (found := [place[answer] for answer in answers if answer in place])
        ]
        sources = dict(answered[at] for at in np.sort(generator.permutation(len(answered))[:MAX_QUESTIONS]))
        queries, own = [*queries, *sources], [*own, *[np.empty(0, np.int64)] * len(sources)]
        query_vectors = encoder.encode(queries, "query", label="Encoding sentences")
        passage_vectors = encoder.encode(passages, "passage", label="Encoding segments for the adapter")
        vectors = (query_vectors, passage_vectors)
        scores = teacher_scores(queries, passages, vectors, own, groups, dense_weight=dense_weight, language=language)
        for row, found in enumerate(sources.values(), len(queries) - len(sources)):
            scores[row, found] = np.maximum(scores[row, found], scores[row].max() + _SOURCE_LEAD)
        return cls(queries, vectors, scores, torch.device(encoder.backend.device), len(sources))


def fit_adapter(teaching: Teaching, *, generator: np.random.Generator, dimensions: Sequence[int] = ()) -> Floats:
    """Fit the map to the teacher's rankings.

    Args:
        teaching: what the teacher ranks, of which the sentences are used.
        generator: of the order of the batches.
        dimensions: shorter lengths that vectors may be cut to; the divergence is the mean over all lengths.

    Returns:
        float32 (d, d), what is added to the identity: a vector ``v`` of either side becomes ``v + v @ map``.
    """
    lengths = sorted({*dimensions, teaching.vectors[1].shape[1]})
    count = len(teaching.sentences) - teaching.questions
    arrays = (teaching.vectors[0][:count], teaching.vectors[1], teaching.scores[:count])
    tensors = (torch.from_numpy(array).to(teaching.device) for array in arrays)
    return _fit(*tensors, lengths=lengths, generator=generator)


def number_documents(documents: Sequence[str]) -> Integers:
    """A number for each segment, equal for those of one document; with few documents, another for each segment."""
    numbers = {document: number for number, document in enumerate(dict.fromkeys(documents))}
    if len(numbers) < LEAST_DOCUMENTS:
        return np.arange(len(documents))
    return np.array([numbers[document] for document in documents])


def sentence_queries(
    passages: Sequence[str], groups: Integers, generator: np.random.Generator
) -> tuple[list[str], list[Integers]]:
    """Distinct sentences and headings, and for each the positions of the segments that are not ranked for it.

    Args:
        passages: the segments.
        groups: a number for each, equal for those of one document.
        generator: chooses where there are more than 12,000 sentences.

    Raises:
        TrainingError: there is no sentence that can be used.
    """
    found: dict[str, set[int]] = {}
    for text, group in zip(passages, groups.tolist(), strict=True):
        for sentence in dict.fromkeys(sentences(replace_headings(text, keep=True))):
            if _LEAST_WORDS <= len(sentence.split()) <= _MOST_WORDS:
                found.setdefault(sentence, set()).add(group)
    # A sentence that every document has leaves no other document to rank.
    all_groups = len(np.unique(groups))
    usable = [sentence for sentence, of_groups in found.items() if len(of_groups) < all_groups]
    if not usable:
        message = (
            f"adapter.share learns from sentences of {_LEAST_WORDS} to {_MOST_WORDS} words, and none of "
            f"{len(passages)} segments has one that the others lack; set it to 0, or add documents of running text"
        )
        raise TrainingError(message)
    chosen = [usable[place] for place in np.sort(generator.permutation(len(usable))[:MAX_SENTENCES])]
    return chosen, [np.flatnonzero(np.isin(groups, list(found[sentence]))) for sentence in chosen]


def teacher_scores(
    queries: Sequence[str],
    passages: Sequence[str],
    encoded: tuple[Floats, Floats],
    own: Sequence[Integers],
    groups: Integers,
    *,
    dense_weight: float,
    language: str = AUTO,
) -> Floats:
    """The teacher's scores, float32 (queries, passages), NaN at a query's own segments.

    They are stretched so that a query's scores spread as widely as its cosines do, on average.

    Args:
        queries: the sentences.
        passages: the segments.
        encoded: unit vectors of both.
        own: for each query, the positions of the segments that are not ranked for it.
        groups: a number for each segment, equal for those of one document.
        dense_weight: share of the dense z-score in the hybrid.
        language: ``corpus.language``.
    """
    query_vectors, vectors = encoded
    bm25, neighbours = BM25(passages, language), _nearest_of_other_documents(vectors, groups)
    smoothed = _unit(_smooth(vectors, neighbours))
    scores = np.empty((len(queries), len(passages)), np.float32)
    spreads = np.empty((len(queries), 2))
    with progress("Ranking segments for sentences", len(queries), "sentence") as bar:
        for row, (query, vector) in enumerate(zip(queries, query_vectors, strict=True)):
            lexical = _smooth(bm25.scores(query), neighbours)
            first_pass = hybrid_scores(smoothed @ vector, lexical, dense_weight)
            moved = _move_towards_hits(vector, first_pass, smoothed, own[row])
            scores[row] = hybrid_scores(smoothed @ moved, lexical, dense_weight)
            spreads[row] = (vectors @ vector).std(), scores[row].std()
            scores[row, own[row]] = np.nan
            bar.advance()
    of_cosines, of_scores = spreads.mean(axis=0)
    scores *= np.float32(of_cosines / max(of_scores, float(np.finfo(np.float32).tiny)))
    return scores


def _nearest_of_other_documents(vectors: Floats, groups: Integers) -> Integers:
    """Positions of each segment's nearest segments of other documents, (n, up to 5)."""
    width = min(_NEIGHBOURS, len(vectors) - int(np.unique(groups, return_counts=True)[1].max()))
    nearest = np.empty((len(vectors), width), np.int64)
    for row, vector in enumerate(vectors):
        nearest[row] = top_indices(np.where(groups == groups[row], -np.inf, vectors @ vector), width)
    return nearest


def _smooth(values: Floats, neighbours: Integers) -> Floats:
    """Each segment's value, a score or a vector, with the weighted mean of its neighbours' values added."""
    smoothed: Floats = values + _NEIGHBOUR_WEIGHT * values[neighbours].mean(axis=1)
    return smoothed


def _move_towards_hits(query: Floats, scores: Floats, passages: Floats, own: Integers) -> Floats:
    """The query's vector with the weighted mean of the vectors of its first hits added, its own segments left out."""
    ranked = scores.copy()
    ranked[own] = -np.inf
    first = top_indices(ranked, min(_FEEDBACK_HITS, len(ranked) - len(own)))
    moved: Floats = query + _FEEDBACK_WEIGHT * passages[first].mean(axis=0)
    return moved


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _fit(
    queries: Tensor,
    passages: Tensor,
    target: Tensor,
    *,
    lengths: Sequence[int],
    generator: np.random.Generator,
) -> Floats:
    width = passages.shape[1]
    matrix = nn.Parameter(torch.zeros(width, width, device=passages.device))
    optimizer = torch.optim.Adam([matrix], lr=_LEARNING_RATE)
    with progress("Fitting the linear adapter", _STEPS, "step") as bar:
        for batch in _query_batches(len(queries), generator):
            asked, searched = (rows + inner_products(rows, matrix.T) for rows in (queries[batch], passages))
            loss = torch.stack([_divergence(asked, searched, target[batch], length) for length in lengths]).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss + _L2_PENALTY * matrix.square().sum())
            optimizer.step()
            bar.advance()
    fitted: Floats = matrix.detach().cpu().numpy()
    return fitted


def _query_batches(count: int, generator: np.random.Generator) -> Iterator[Tensor]:
    for _ in range(_STEPS):
        yield torch.from_numpy(generator.choice(count, min(count, _BATCH_QUERIES), replace=False))


def _divergence(queries: Tensor, passages: Tensor, target: Tensor, length: int) -> Tensor:
    """Mean KL(teacher, student) over each query's passages, its own left out, with vectors cut to ``length``."""
    cut = nn.functional.normalize(queries[:, :length], dim=1), nn.functional.normalize(passages[:, :length], dim=1)
    return follow_distribution(inner_products(*cut) / _TEMPERATURE, target, _TEMPERATURE)


def append_adapter(model: SentenceTransformer, sides: Sides = "both") -> nn.Linear:
    """Put an identity map before the normalisation that every model ends with, and return its linear layer.

    Args:
        model: the model; with ``sides`` ``query``, one whose sides were split.
        sides: who is mapped.
    """
    from sentence_transformers.sentence_transformer.modules import Dense

    width = model.get_embedding_dimension()
    layer = Dense(width, width, bias=False, activation_function=nn.Identity(), init_weight=torch.eye(width))
    layers, place = _place(model, sides)
    layers.insert(place, layer.to(model.device))
    linear: nn.Linear = layer.linear
    return linear


def set_adapter(layer: nn.Linear, matrix: Floats, share: float, sides: Sides = "both") -> None:
    """Set the layer of :func:`append_adapter` to the identity plus ``share`` of the map.

    The query side alone gets the map and its transpose after it: the inner products with passages that stay are then
    those of both sides mapped.
    """
    weight = torch.eye(len(matrix)) + share * torch.from_numpy(matrix).T
    with torch.no_grad():
        layer.weight.copy_(weight if sides == "both" else weight.T @ weight)


def remove_adapter(model: SentenceTransformer, sides: Sides = "both") -> None:
    """Remove the layer of :func:`append_adapter`."""
    layers, place = _place(model, sides)
    del layers[place - 1]


def _place(model: SentenceTransformer, sides: Sides) -> tuple[nn.Sequential, int]:
    """Where a layer is inserted: last on the queries' way, or before the normalisation that all texts go through."""
    if sides == "both":
        return model, len(model) - 1
    way: nn.Sequential = model[0].sub_modules["query"]
    return way, len(way)
