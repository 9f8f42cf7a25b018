"""Exact nearest passages by inner product, and BM25.

Candidates come from fp32 matrix products (torch, on a GPU where there is one); the few that can still be among the
best are scored again in fp64. So the result is the same on every device: the k highest scores, equal scores (as
float32) in the order of the corpus. Extra memory stays under 256 MB at any corpus size; of a corpus that lies in a file
(numpy.memmap), a tile is read at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.vector_store import release
from embed_pipeline.text.languages import AUTO, dominant_language, index_terms

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_TILE_BYTES = 32 * 1024 * 1024
# Scores of a tile: on a CPU as many as its caches hold, since they are read again at once.
_PRODUCT_BYTES = 16 * 1024 * 1024
_DEVICE_TILE_BYTES = 128 * 1024 * 1024
_INDEXED_AT_ONCE = 2_048
_NEVER_ASKED = "\0"
_QUERY_BLOCK = 16_384
# Neighbouring passages whose greatest score is compared first: most groups hold no candidate.
_GROUP = 32
# Share of a tile in groups with candidates from which on its best are found by sorting: it bounds the memory.
_CROWDED = 0.25
# Candidates beyond k, so that ties at the k-th place are usually all seen at once.
_LEAST_SLACK = 16


@dataclass(frozen=True)
class Hits:
    """The best passages of every query, best first.

    Attributes:
        scores: float32 (queries, k), descending.
        indices: int64 (queries, k), positions in the corpus; -1 where there are no more hits (BM25 only).
    """

    scores: Floats
    indices: Indices

    def rank_of(self, row: int, index: int) -> int | None:
        """Rank (from 1) of passage ``index`` among the hits of query ``row``; None: not among them."""
        found = np.flatnonzero(self.indices[row] == index)
        return int(found[0]) + 1 if len(found) else None

    def overlap(self, other: Hits) -> float:
        """Mean over the queries of the share of these passages that ``other``, of the same width, has as well."""
        pairs = zip(self.indices.tolist(), other.indices.tolist(), strict=True)
        return float(np.mean([len(set(a) & set(b)) for a, b in pairs]) / self.indices.shape[1])


def search(queries: Floats, corpus: Floats, k: int) -> Hits:
    """The ``k`` passages of highest inner product for each query, exactly.

    Args:
        queries: float32 (q, d).
        corpus: float32 (n, d), C-contiguous.
        k: passages wanted; where the corpus has fewer, all of it.

    Returns:
        Hits of width ``min(k, n)``; equal scores by lower index.

    Raises:
        ValueError: an array of another type, shape or layout, a value that is not finite, or k below 1.
    """
    _check(queries, "queries")
    _check(corpus, "corpus")
    if queries.shape[1] != corpus.shape[1]:
        message = f"queries have {queries.shape[1]} dimensions, corpus has {corpus.shape[1]}"
        raise ValueError(message)
    if k < 1:
        message = f"k is {k}, below 1"
        raise ValueError(message)
    k = min(k, len(corpus))
    if not len(queries) or not k:
        return Hits(np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64))
    tolerance = _rounding_bound(queries, corpus)
    wanted = min(len(corpus), k + max(_LEAST_SLACK, k // 8))
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    # Many queries at once, as a matrix product of few rows takes several times as long for each.
    rows = max(1, min(_QUERY_BLOCK, _TILE_BYTES // (16 * wanted)))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        lowest, candidates = _candidates(block, corpus, wanted)
        block_scores, block_indices = _rescore(block, corpus, candidates, k)
        # What is not a candidate scores at most the lowest candidate, give or take the rounding.
        unsure = (block_scores[:, -1] <= lowest + tolerance) & (wanted < len(corpus))
        for row in np.flatnonzero(unsure):
            block_scores[row], block_indices[row] = _search_row(block[row], corpus, k)
        scores[start : start + rows], indices[start : start + rows] = block_scores, block_indices
    return Hits(scores, indices)


class BM25:
    """Lexical search over ``texts`` (BM25 as Lucene computes it), by the words of their language."""

    def __init__(self, texts: Sequence[str], language: str = AUTO, queries: Sequence[str] | None = None) -> None:
        """Index ``texts``.

        Args:
            texts: at least one.
            language: ``corpus.language``; auto: the language that most of them are in.
            queries: the only ones that will be asked, so that their words alone are indexed, in a fraction of the
                memory; None: any may be.

        Raises:
            ValueError: there are no texts.
        """
        if not texts:
            message = "BM25 needs at least one text, got none"
            raise ValueError(message)
        import bm25s

        self._size = len(texts)
        self.language = dominant_language(texts) if language == AUTO else language
        self._asked = None if queries is None else set(chain.from_iterable(index_terms(queries, self.language)))
        # Words that nobody asks for are all one: they count for a text's length alone.
        numbers: dict[str, int] = {} if self._asked is None else {_NEVER_ASKED: 0}
        # As numbers the words of a corpus take a tenth of what they take as strings.
        held = [
            array("i", [self._number(term, numbers) for term in found])
            for start in range(0, len(texts), _INDEXED_AT_ONCE)
            for found in index_terms(texts[start : start + _INDEXED_AT_ONCE], self.language)
        ]
        self._index = bm25s.BM25(method="lucene")
        self._index.index((held, numbers), show_progress=False)

    def _number(self, term: str, numbers: dict[str, int]) -> int:
        return numbers.setdefault(term, len(numbers)) if self._asked is None or term in self._asked else 0

    def scores(self, query: str) -> Floats:
        """Score of every text for ``query``: float32 (n,), 0 where they share no word.

        Raises:
            ValueError: the index was made for other queries.
        """
        terms = index_terms([query], self.language)[0]
        if self._asked is not None and not self._asked.issuperset(terms):
            message = f"{query[:80]!r} is none of the queries that the index was made for; name it when it is made"
            raise ValueError(message)
        known = [term for term in terms if term in self._index.vocab_dict]
        if not known:
            return np.zeros(self._size, np.float32)
        return np.asarray(self._index.get_scores(known), dtype=np.float32)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """The ``k`` best texts for each query, equal scores by lower index.

        Returns:
            Hits of width ``min(k, n)``; after the last text that shares a word, index -1 and score 0.

        Raises:
            ValueError: k below 1.
        """
        if k < 1:
            message = f"k is {k}, below 1"
            raise ValueError(message)
        k = min(k, self._size)
        scores = np.zeros((len(queries), k), np.float32)
        indices = np.full((len(queries), k), -1, np.int64)
        for row, query in enumerate(queries):
            every = self.scores(query)
            best = top_indices(every, k)
            best = best[every[best] > 0]
            scores[row, : len(best)], indices[row, : len(best)] = every[best], best
        return Hits(scores, indices)


def hybrid_scores(dense: Floats, lexical: Floats, dense_weight: float) -> Floats:
    """The hybrid of two score rows over the same texts, float32 (n,): their z-scores, weighted."""
    return mix_standardized(standardized(dense), standardized(lexical), dense_weight)


def mix_standardized(dense: Floats, lexical: Floats, dense_weight: float) -> Floats:
    """The hybrid of two rows of z-scores, for those who mix the same rows with several weights."""
    return dense_weight * dense + (1 - dense_weight) * lexical


def standardized(scores: Floats) -> Floats:
    """Z-scores over the texts; zeros where all scores are equal."""
    spread = float(scores.std())
    centred: Floats = (scores - scores.mean()).astype(np.float32)
    return centred / np.float32(spread) if spread else np.zeros_like(centred)


def top_indices(scores: Floats, k: int) -> Indices:
    """Positions of the ``k`` highest of ``scores`` (n,), highest first, equal ones by lower position."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        pool = np.flatnonzero(scores >= threshold)
    else:
        pool = np.arange(len(scores))
    return pool[np.argsort(-scores[pool], kind="stable")][:k].astype(np.int64)


def _check(array: Floats, name: str) -> None:
    if array.ndim != 2 or array.dtype != np.float32:  # noqa: PLR2004 - a matrix has two axes
        message = f"{name} must be a float32 matrix, got {array.dtype} of shape {array.shape}"
        raise ValueError(message)
    if not array.flags.c_contiguous:
        message = f"{name} must be C-contiguous; make it so with numpy.ascontiguousarray"
        raise ValueError(message)


def _rounding_bound(queries: Floats, corpus: Floats) -> float:
    """Greatest error of an fp32 inner product of these rows, twice over (Higham 2002, eq. 3.5)."""
    longest = _longest(queries, "queries") * _longest(corpus, "corpus")
    bound: float = 2 * (queries.shape[1] + 2) * float(np.finfo(np.float32).eps) * longest
    return bound


def _longest(array: Floats, name: str) -> float:
    rows = max(1, _TILE_BYTES // (4 * array.shape[1]))
    squares = [float(np.einsum("ij,ij->i", tile, tile).max()) for _, tile in _tiles(array, rows)]
    longest = float(np.sqrt(max(squares)))
    if not np.isfinite(squares).all():
        message = f"{name} has values that are not finite"
        raise ValueError(message)
    return longest


def _tiles(array: Floats, rows: int) -> Iterator[tuple[int, Floats]]:
    """So many rows at a time, and where they start; of an array in a file, one tile is in memory."""
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]
        release(array)


def _candidates(queries: Floats, corpus: Floats, k: int) -> tuple[Floats, Indices]:
    """The lowest candidate score of each query (q,), and its k candidates (q, k), by fp32 products."""
    import torch

    from embed_pipeline.embedding.products import inner_products

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.from_numpy(queries).to(device)
    best, places = left.new_empty((len(left), 0)), left.new_empty((len(left), 0), dtype=torch.int64)
    tile_bytes = _PRODUCT_BYTES if left.device.type == "cpu" else _DEVICE_TILE_BYTES
    rows = max(1, tile_bytes // (4 * max(len(queries), corpus.shape[1])) // _GROUP) * _GROUP
    tile = left.new_empty((len(left), min(rows, len(corpus))))
    for start, part in _tiles(corpus, rows):
        right = torch.from_numpy(part).to(device)
        scores = inner_products(left, right, tile if len(right) == tile.shape[1] else None)
        found, positions = _contenders(scores, best, k)
        best, places = torch.cat([best, found], dim=1), torch.cat([places, positions + start], dim=1)
        if best.shape[1] > k:
            best, kept = best.topk(k, dim=1)
            places = places.gather(1, kept)
    return best.min(dim=1).values.cpu().numpy(), places.cpu().numpy()


def _contenders(scores: torch.Tensor, best: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a tile that may be among the k best, and their positions in it; where a row has fewer, -inf.

    Most passages of a later tile are below what is already found. So the greatest score of each group of neighbouring
    passages is compared first, and only groups above are searched. With groups of 4 and k = 2, two queries whose
    second-best scores so far (their floors) are 0.5 and 0.6, and this tile::

        scores                                  group maxima   floor
        .1 .7 .2 .6   .3 .2 .1 .4               .7   .4        .5
        .2 .1 .3 .2   .1 .9 .5 .2               .3   .9        .6

    group 0 of query 0 and group 1 of query 1 are above their floors: ``query`` is [0, 1], ``group`` is [0, 1]. Their
    members above the floor are places 1 and 3 of the first and place 1 of the second, so that ``query`` becomes
    [0, 0, 1] and ``position`` [1, 3, 5]. Query 0 has 2 hits and query 1 has 1: the hits' columns are [0, 1, 0]. The
    result, two columns wide, is scores [[.7, .6], [.9, -inf]] at positions [[1, 3], [5, 0]].

    Args:
        scores: (q, n) products of a tile.
        best: (q, up to k) best so far.
        k: how many are wanted.
    """
    import torch

    if best.shape[1] < k or scores.shape[1] % _GROUP:
        return scores.topk(min(k, scores.shape[1]), dim=1)
    floor = best.min(dim=1, keepdim=True).values
    grouped = scores.view(len(scores), -1, _GROUP)
    query, group = (grouped.amax(dim=2) > floor).nonzero(as_tuple=True)
    if len(query) * _GROUP > _CROWDED * scores.numel():
        return scores.topk(min(k, scores.shape[1]), dim=1)
    members = grouped[query, group]
    hit, place = (members > floor[query]).nonzero(as_tuple=True)
    query, position = query[hit], group[hit] * _GROUP + place
    hits = torch.bincount(query, minlength=len(scores))
    # They come query by query: the column of a hit is its place after the first hit of its query.
    first = hits.cumsum(0) - hits
    column = torch.arange(len(query), device=scores.device) - first[query]
    width = int(hits.max())
    found = scores.new_full((len(scores), width), -torch.inf)
    positions = torch.zeros((len(scores), width), dtype=torch.int64, device=scores.device)
    found[query, column], positions[query, column] = members[hit, place], position
    return found, positions


def _rescore(queries: Floats, corpus: Floats, candidates: Indices, k: int) -> tuple[Floats, Indices]:
    """The k best of each query's candidates by inner products summed in fp64, as float32."""
    scores = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    rows = max(1, _TILE_BYTES // (8 * candidates.shape[1] * corpus.shape[1]))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        passages = corpus[candidates[part]].astype(np.float64)
        products = np.matmul(passages, queries[part].astype(np.float64)[:, :, None])[:, :, 0].astype(np.float32)
        scores[part], indices[part] = _best(products, candidates[part], k)
        release(corpus)
    return scores, indices


def _best(scores: Floats, candidates: Indices, k: int) -> tuple[Floats, Indices]:
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)


def _search_row(query: Floats, corpus: Floats, k: int) -> tuple[Floats, Indices]:
    """One query against all of the corpus in fp64: for the rows with more ties than candidates."""
    wide = query.astype(np.float64)
    scores = np.empty(len(corpus), np.float32)
    rows = max(1, _TILE_BYTES // (8 * corpus.shape[1]))
    for start, tile in _tiles(corpus, rows):
        scores[start : start + rows] = tile.astype(np.float64) @ wide
    best = top_indices(scores, k)
    return scores[best], best
