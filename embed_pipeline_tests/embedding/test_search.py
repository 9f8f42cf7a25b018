"""Exact search against brute force and against faiss, and BM25."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_pipeline.embedding.search import BM25, Hits, search, top_indices


def brute_force(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = (queries.astype(np.float64) @ corpus.astype(np.float64).T).astype(np.float32)
    positions = np.broadcast_to(np.arange(len(corpus)), scores.shape)
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def assert_faiss_agrees(hits: Hits, queries: np.ndarray, corpus: np.ndarray) -> None:
    """The same passages in the same places as faiss finds, but for scores that fp32 cannot tell apart."""
    scores, indices = faiss.knn(queries, corpus, hits.indices.shape[1], metric=faiss.METRIC_INNER_PRODUCT)
    longest = np.linalg.norm(queries, axis=1).max() * np.linalg.norm(corpus, axis=1).max()
    np.testing.assert_allclose(hits.scores, scores, rtol=0, atol=1e-6 * longest)
    rows, places = np.nonzero(hits.indices != indices)
    assert len(rows) < 0.01 * indices.size
    theirs = np.einsum("nd,nd->n", queries[rows].astype(np.float64), corpus[indices[rows, places]])
    np.testing.assert_allclose(hits.scores[rows, places], theirs, rtol=0, atol=1e-6 * longest)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 90), st.integers(1, 6)),
    k=st.integers(1, 100),
    whole=st.booleans(),
)
def test_equals_brute_force_ties_included(seed, shape, k, whole):
    rng = np.random.default_rng(seed)
    queries_count, corpus_count, dimensions = shape
    draw = (lambda n: rng.integers(-1, 2, (n, dimensions))) if whole else (lambda n: rng.normal(size=(n, dimensions)))
    queries, corpus = (draw(n).astype(np.float32) for n in (queries_count, corpus_count))
    hits = search(queries, corpus, k)
    scores, indices = brute_force(queries, corpus, k)
    np.testing.assert_array_equal(hits.indices, indices)
    np.testing.assert_array_equal(hits.scores, scores)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), k=st.integers(1, 100), whole=st.booleans())
def test_a_corpus_in_a_file_is_searched_tile_by_tile_with_the_same_result(seed, k, whole):
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(-1, 2, (n, 6))) if whole else (lambda n: rng.normal(size=(n, 6)))
    queries, corpus = (draw(n).astype(np.float32) for n in (9, 700))
    with tempfile.TemporaryFile() as stream, pytest.MonkeyPatch.context() as patch:
        stored = np.memmap(stream, np.float32, "w+", shape=corpus.shape)
        stored[:] = corpus
        for name in ("_TILE_BYTES", "_PRODUCT_BYTES"):
            patch.setattr(f"embed_pipeline.embedding.search.{name}", 4_096)
        hits = search(queries, stored, k)
    scores, indices = brute_force(queries, corpus, k)
    np.testing.assert_array_equal(hits.indices, indices)
    np.testing.assert_array_equal(hits.scores, scores)


def test_more_copies_than_candidates_come_in_corpus_order():
    rng = np.random.default_rng(3)
    corpus = rng.normal(size=(600, 8)).astype(np.float32)
    corpus[100:500] = corpus[599] * 2
    hits = search(np.ascontiguousarray(corpus[599:]), corpus, 7)
    assert hits.indices.tolist() == [list(range(100, 107))]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["as drawn", "best last", "best first"])
@pytest.mark.parametrize(("count", "passages", "k"), [(60, 210_000, 20), (1_200, 4_000, 2_000)])
def test_faiss_finds_the_same_over_several_tiles_and_blocks(order, count, passages, k):
    """210,000 passages are four tiles of 60 queries; 1,200 queries of which 2,000 hits are wanted are two blocks."""
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(count, 16)).astype(np.float32)
    corpus = rng.normal(size=(passages, 16)).astype(np.float32)
    if order != "as drawn":
        by_score = np.argsort(corpus @ queries[0])
        corpus = np.ascontiguousarray(corpus[by_score if order == "best last" else by_score[::-1]])
        queries = queries[0] + 0.1 * queries
    assert_faiss_agrees(search(queries, corpus, k), queries, corpus)


def test_k_beyond_the_corpus_gives_the_corpus():
    corpus = np.eye(3, dtype=np.float32)
    assert search(corpus, corpus, 10).indices.shape == (3, 3)
    assert search(corpus, corpus[:0], 10).indices.shape == (3, 0)
    assert search(corpus[:0], corpus, 2).scores.shape == (0, 2)


MEASURE = """
from pathlib import Path
import numpy as np
from embed_pipeline.embedding.search import search

def resident(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

rng = np.random.default_rng(5)
queries, corpus = (rng.normal(size=(n, 16)).astype(np.float32) for n in (3_000, 40_000))
search(queries[:8], corpus[:64], 4)  # loads the libraries
Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present level
before = resident("VmRSS")
search(queries, corpus, 100)
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the high-water mark from Linux's /proc")
def test_memory_stays_bounded():
    """All scores at once would be 480 MB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 256 * 2**20


def test_overlap_is_the_mean_share_of_common_passages():
    indices = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    others = np.array([[3, 2, 1, 0], [4, 9, 8, 5]])
    scores = np.zeros(indices.shape, dtype=np.float32)
    assert Hits(scores, indices).overlap(Hits(scores, others)) == 0.75


def test_rank_of():
    corpus = np.eye(3, dtype=np.float32)
    hits = search(corpus[:1], corpus, 2)
    assert (hits.rank_of(0, 0), hits.rank_of(0, 1), hits.rank_of(0, 2)) == (1, 2, None)


@pytest.mark.parametrize(
    ("queries", "corpus", "k", "message"),
    [
        (np.ones((1, 2), np.float64), np.ones((1, 2), np.float32), 1, "queries must be a float32 matrix, got float64"),
        (np.ones((1, 2), np.float32), np.ones(2, np.float32), 1, r"corpus must be .* shape \(2,\)"),
        (np.ones((1, 2), np.float32), np.ones((1, 3), np.float32), 1, "queries have 2 dimensions, corpus has 3"),
        (np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 0, "k is 0"),
        (np.ones((1, 2), np.float32), np.full((1, 2), np.nan, np.float32), 1, "corpus has values that are not finite"),
        (np.ones((1, 2), np.float32), np.ones((2, 4), np.float32).T[:2].T, 1, "contiguous"),
    ],
)
def test_bad_input_is_named(queries, corpus, k, message):
    with pytest.raises(ValueError, match=message):
        search(queries, corpus, k)


def test_top_indices_prefers_lower_positions():
    scores = np.array([1, 3, 2, 3, 2, 2], np.float32)
    assert top_indices(scores, 4).tolist() == [1, 3, 2, 4]
    assert top_indices(scores, 9).tolist() == [1, 3, 2, 4, 5, 0]


def test_bm25_finds_words_and_pads():
    texts = ["a cat sat on a mat", "dogs chase cats", "python generator", "python generator", "the"]
    index = BM25(texts)
    hits = index.search(["generator in python", "cat", "zebra", "the"], 3)
    assert hits.indices.tolist() == [[2, 3, -1], [0, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    assert hits.scores[0, 0] == hits.scores[0, 1] > 0
    assert hits.scores[2].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(index.scores("generator in python")[[2, 3]], hits.scores[0, :2])
    assert index.scores("nothing known").shape == (5,)


@pytest.mark.parametrize("language", ["en", "de"])
def test_an_index_of_the_queries_words_alone_gives_the_same_scores(language):
    rng = np.random.default_rng(6)
    words = [f"term{number}" for number in range(60)]
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(1, 40, 200)]
    queries = [" ".join(rng.choice(words[:20], 4)) for _ in range(10)] + ["unknown", "term1 term1 unheard"]
    whole, part = BM25(texts, language), BM25(texts, language, queries)
    for query in queries:
        np.testing.assert_array_equal(part.scores(query), whole.scores(query))
    np.testing.assert_array_equal(part.search(queries, 9).indices, whole.search(queries, 9).indices)
    with pytest.raises(ValueError, match="'term50' is none of the queries that the index was made for"):
        part.scores("term50")


def test_bm25_refuses_nothing():
    with pytest.raises(ValueError, match="at least one text"):
        BM25([])
    with pytest.raises(ValueError, match="k is 0"):
        BM25(["word"]).search(["word"], 0)
