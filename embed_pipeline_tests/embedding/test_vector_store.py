"""Vectors of a whole call and of a batch are kept: read back bit for bit, never those of another model or call."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.settings import Embedding
from embed_pipeline.storage import StorageError
from embed_pipeline_tests.tiny import write_tiny_model

TEXTS = [f"the value of object {n} is a statement " * (1 + n % 5) for n in range(80)]
CPU = Embedding(device="cpu")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "vectors"


def counted(encoder: Encoder) -> list[int]:
    """Sizes of the batches that the encoder computes from now on."""
    sizes: list[int] = []
    begin = encoder.backend.begin
    encoder.backend.begin = lambda rows: (sizes.append(len(rows)), begin(rows))[1]
    return sizes


def test_the_same_call_is_read_back_bit_for_bit(tiny_model, store):
    first = Encoder.load(tiny_model, CPU, store).encode(TEXTS, "passage")
    again = Encoder.load(tiny_model, CPU, store)
    sizes = counted(again)
    assert np.array_equal(again.encode([*TEXTS, TEXTS[3]], "passage"), [*first, first[3]])
    assert sizes == []


@pytest.mark.parametrize("change", ["text", "order", "prefix", "precision", "weights"])
def test_another_call_is_computed(tiny_model, store, tmp_path, change):
    Encoder.load(tiny_model, CPU, store).encode(TEXTS, "query")
    model, embedding, texts = tiny_model, CPU, list(TEXTS)
    if change == "text":
        texts[0] += "and more"
    elif change == "order":
        texts.reverse()
    elif change == "prefix":
        embedding = Embedding(device="cpu", query_prefix="what is ")
    elif change == "precision":
        embedding = Embedding(device="cpu", precision="bf16")
    else:
        model = write_tiny_model(tmp_path / "other", seed=1)
    encoder = Encoder.load(model, embedding, store)
    sizes = counted(encoder)
    vectors = encoder.encode(texts, "query")
    assert sum(sizes) == len(texts)
    assert np.array_equal(vectors, Encoder.load(model, embedding).encode(texts, "query"))


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"x" * 300, lambda b: b[:-4] + b"\xff\xff\xff\x7f"])
def test_a_damaged_file_is_not_used(tiny_model, store, damage):
    vectors = Encoder.load(tiny_model, CPU, store).encode(TEXTS, "passage")
    [path] = store.glob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(Encoder.load(tiny_model, CPU, store).encode(TEXTS, "passage"), vectors)
    assert np.array_equal(np.load(path), vectors)


@pytest.mark.slow
def test_only_the_calls_used_last_are_kept(tiny_model, store):
    encoder = Encoder.load(tiny_model, CPU, store)
    for n in range(20):
        encoder.encode([f"{text} {n}" for text in TEXTS], "passage")
    assert len(list(store.glob("*.npy"))) == 16


def test_small_calls_are_not_kept(tiny_model, store):
    Encoder.load(tiny_model, CPU, store).encode(TEXTS[:10], "query")
    assert not store.exists()


BATCHES = {hash(text): f"batch {number // 30}" for number, text in enumerate(TEXTS)}


def by_batch(model, store) -> Encoder:
    return Encoder(TorchBackend.load(model, CPU), store=store, batches=BATCHES)


def test_of_a_corpus_that_has_grown_the_new_batch_alone_is_computed(tiny_model, store):
    before = by_batch(tiny_model, store).encode(TEXTS[:60], "passage")
    grown = by_batch(tiny_model, store)
    sizes = counted(grown)
    # In another order, with a passage of no batch among them.
    asked = ["a passage of a label", *reversed(TEXTS)]
    vectors = grown.encode(asked, "passage")
    assert sum(sizes) == 20 + 1
    assert np.array_equal(vectors[::-1][:60], before)
    assert np.array_equal(by_batch(tiny_model, None).encode(asked, "passage"), vectors)


def test_many_vectors_lie_in_a_file_that_ends_with_them(tiny_model, store, monkeypatch):
    asked = ["a passage of a label", *TEXTS, *TEXTS[:9]]
    held = by_batch(tiny_model, store).encode(asked, "passage")
    assert not isinstance(held, np.memmap)
    monkeypatch.setattr("embed_pipeline.embedding.vector_store._LEAST_MAPPED", 1)
    for texts in (asked, TEXTS):
        vectors = by_batch(tiny_model, store).encode(texts, "passage")
        assert isinstance(vectors, np.memmap)
        assert np.array_equal(vectors, held[[asked.index(text) for text in texts]])
    assert {path.suffix for path in store.rglob("*") if path.is_file()} == {".npy"}


def test_a_full_disk_is_said_before_vectors_are_computed(tiny_model, store, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("embed_pipeline.embedding.vector_store._LEAST_MAPPED", 1)
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match=r"No space left on device: .*; free space there"):
        by_batch(tiny_model, store).encode(TEXTS, "passage")


def test_of_a_batch_that_has_changed_nothing_is_taken_over(tiny_model, store):
    by_batch(tiny_model, store).encode(TEXTS, "passage")
    changed = by_batch(tiny_model, store)
    sizes = counted(changed)
    vectors = changed.encode(TEXTS[1:], "passage")
    assert sum(sizes) == 29
    assert np.array_equal(vectors, by_batch(tiny_model, None).encode(TEXTS[1:], "passage"))


def test_batches_are_kept_for_thirty_days_and_queries_are_no_batch(tiny_model, store):
    by_batch(tiny_model, store).encode(TEXTS, "query")
    assert not (store / "batches").exists()
    by_batch(tiny_model, store).encode(TEXTS[:60], "passage")
    old, used = sorted((store / "batches").glob("*.npy"))
    for path, days in ((old, 31), (used, 29)):
        os.utime(path, (time.time() - days * 86400,) * 2)
    by_batch(tiny_model, store).encode(TEXTS[60:], "passage")
    assert not old.exists()
    assert used.exists()
