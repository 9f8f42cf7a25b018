"""What a release asks of an index, and whether a sample of it is the base's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.release.existing_index import check_index, keeps_passages, read_sample, steps
from embed_pipeline.release.manifest import Manifest, ModelFacts, ReleaseError
from embed_pipeline.settings import Embedding
from embed_pipeline_tests.tiny import write_tiny_model

TEXTS = ["the value of a class", "a list of numbers", "the python statement"]
FACTS = ModelFacts(dimensions=32, max_tokens=64, query_prefix="query: ", passage_prefix="", base_model="tiny")


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Encoder:
    return Encoder.load(tiny_model, Embedding(device="cpu"))


def write(path: Path, vectors: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, texts=np.array(TEXTS), vectors=vectors)
    else:
        pl.DataFrame({"text": TEXTS, "vector": vectors.tolist()}).write_parquet(path)
    return path


@pytest.mark.parametrize("name", ["sample.parquet", "sample.npz"])
def test_the_base_s_own_vectors_are_known_at_any_length_and_in_half_precision(
    base: Encoder, tmp_path: Path, name: str
) -> None:
    vectors = (7 * base.encode(TEXTS, "passage")).astype(np.float16)
    found = check_index(*read_sample(write(tmp_path / name, vectors)), base)
    assert found.texts == 3
    assert found.least_cosine > 0.9999
    assert not found.others


def test_vectors_of_another_model_are_named_the_furthest_first(base: Encoder, tmp_path: Path) -> None:
    vectors = base.encode(TEXTS, "passage")
    vectors[0], vectors[2] = -vectors[0], 0
    found = check_index(*read_sample(write(tmp_path / "sample.parquet", vectors)), base)
    assert found.others == [TEXTS[0], TEXTS[2]]
    with pytest.raises(ReleaseError, match="vectors of 16 dimensions, the base model of 32"):
        check_index(TEXTS, vectors[:, :16], base)


def test_what_is_no_sample_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.parquet").write_text("hello")
    pl.DataFrame({"text": ["a"], "embedding": [[1.0]]}).write_parquet(tmp_path / "named.parquet")
    np.savez(tmp_path / "short.npz", texts=np.array(TEXTS), vectors=np.ones((2, 4)))
    with pytest.raises(ReleaseError, match="is no sample of an index"):
        read_sample(tmp_path / "notes.parquet")
    with pytest.raises(ReleaseError, match="is no sample of an index"):
        read_sample(tmp_path / "named.parquet")
    with pytest.raises(ReleaseError, match=r"3 texts and vectors of shape \(2, 4\)"):
        read_sample(tmp_path / "short.npz")


def test_a_release_says_whether_an_index_stays_valid() -> None:
    kept, new = (Manifest(version="v1", model=FACTS, files={}, passage_vectors=whose) for whose in ("base", "own"))
    assert "filled with tiny stays valid" in steps(kept)[0]
    assert "embed every passage again with release v1" in steps(new)[0]
    assert "'query: ' before each" in steps(kept)[1]


def test_another_model_does_not_keep_the_passages(base: Encoder, tmp_path: Path) -> None:
    other = Encoder.load(write_tiny_model(tmp_path / "other", seed=5), Embedding(device="cpu"))
    assert keeps_passages(base, base)
    assert not keeps_passages(base, other)
