"""The linear adapter: its teacher, its fit, its layer, and how much of it a training keeps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Settings
from embed_pipeline.training import linear_adapter, loss, selection
from embed_pipeline.training.linear_adapter import (
    Teaching,
    append_adapter,
    fit_adapter,
    number_documents,
    remove_adapter,
    sentence_queries,
    set_adapter,
    teacher_scores,
)
from embed_pipeline.training.prepared_model import split_sides
from embed_pipeline.training.record import read_record
from embed_pipeline.training.selection import SHARES
from embed_pipeline.training.task import TrainingError
from embed_pipeline.training.train import finetune
from embed_pipeline_tests.training import small

WORDS = small.TOPICS
TEXTS = [
    f"The {WORDS[i]} of a {WORDS[(i + 1) % 12]} is what the {WORDS[(i + 2) % 12]} does.\n\n"
    f"How does python value a {WORDS[i]} and the {WORDS[(i + 5) % 12]} number {i}?"
    for i in range(12)
]

IDS = [f"t{place}" for place in range(len(TEXTS))]


def encoder(folder: Path, settings: Settings) -> Encoder:
    return Encoder.of(load_model(folder, settings.embedding), settings.embedding)


def fitted(
    model: Encoder, texts: Sequence[str], documents: Sequence[str], weight: float, dimensions: Sequence[int] = ()
) -> np.ndarray:
    generator = np.random.default_rng(17)
    teaching = Teaching.of(model, texts, documents, dense_weight=weight, generator=generator)
    return fit_adapter(teaching, generator=generator, dimensions=dimensions)


def at_angles(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane; the question of :func:`scores_of` is the one at 0 degrees."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def scores_of(
    vectors: np.ndarray, texts: Sequence[str] = (), asked: str = "unknown", weight: float = 1.0, own: Sequence[int] = ()
) -> list[float]:
    """The teacher's scores of passages, each of another document; by default they share no word with the sentence."""
    texts = texts or [f"first{i} second{i} third{i}" for i in range(len(vectors))]
    encoded = at_angles(0), vectors
    positions = [np.array(own, np.int64)]
    [scores] = teacher_scores([asked], texts, encoded, positions, np.arange(len(texts)), dense_weight=weight)
    return scores.tolist()


def test_the_teacher_counts_words_and_spreads_its_scores_as_widely_as_the_cosines() -> None:
    # BM25 finds the first and the last, alike: z-scores of 1/sqrt(2), -sqrt(2), 1/sqrt(2). The cosines 1, -1/2, -1/2
    # deviate by 1/sqrt(2).
    texts = ["alpha beta", "gamma delta", "alpha epsilon"]
    found = scores_of(at_angles(0, 120, 240), texts, "alpha", weight=0.0, own=[0])
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx([-1, 0.5])


def test_the_teacher_prefers_the_passage_whose_neighbours_answer_too() -> None:
    found = scores_of(at_angles(40, -40, 30, 32, 34, 36, 38, -50, -52, -54, -56, -58, 0, 3, -3))
    assert found[0] > found[1] + 0.01


def test_the_teacher_prefers_the_passage_that_is_like_those_found_first() -> None:
    # All five are neighbours of each other: smoothing alone puts the second of the far two before the first.
    found = scores_of(at_angles(60, -60, 8, 10, 12))
    assert found[0] > found[1] + 0.01


class Wordless:
    """A model whose vectors know nothing of the words: random, another for every text and kind."""

    def __init__(self) -> None:
        self.backend = SimpleNamespace(device="cpu")

    def encode(self, texts: Sequence[str], kind: str, label: str | None = None) -> np.ndarray:
        seeds = [zlib.crc32(f"{kind} {text}".encode()) for text in texts]
        return unit(np.stack([np.random.default_rng(seed).normal(size=32) for seed in seeds])).astype(np.float32)


@pytest.mark.slow
def test_the_map_brings_a_sentence_to_the_other_document_that_shares_its_words() -> None:
    # Document 12 + i has the words of document i in another order.
    words = [f"alpha{i} beta{i} gamma{i} delta{i} epsilon{i} zeta{i}" for i in range(12)]
    texts = [*words, *(" ".join(reversed(text.split())) for text in words)]
    documents = [str(place) for place in range(24)]
    model = Wordless()
    matrix = fitted(model, texts, documents, 0.0)  # type: ignore[arg-type]  # an encoder of its own
    assert np.array_equal(matrix, fitted(model, texts, documents, 0.0))  # type: ignore[arg-type]  # the same

    def found(added: np.ndarray) -> int:
        """Documents whose sentence finds the other one of its words first among all others."""
        questions, passages = (unit(v + v @ added) for v in (model.encode(texts, k) for k in ("query", "passage")))
        cosines = questions @ passages.T
        np.fill_diagonal(cosines, -1)
        return sum(cosines[place].argmax() == (place + 12) % 24 for place in range(24))

    assert found(np.zeros_like(matrix)) <= 3
    assert found(matrix) >= 20


def test_a_new_layer_changes_nothing(tiny_model: Path) -> None:
    base = encoder(tiny_model, small.settings(tiny_model))
    vectors = base.encode(TEXTS, "passage")
    append_adapter(base.backend.model)
    np.testing.assert_allclose(base.encode(TEXTS, "passage"), vectors, atol=1e-5)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_layer_is_a_row_times_identity_and_share_of_the_map_and_can_be_removed(tiny_model: Path) -> None:
    settings = small.settings(tiny_model)
    plain = encoder(tiny_model, settings)
    vectors = plain.encode(TEXTS, "passage")
    matrix = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    layer = append_adapter(plain.backend.model)
    set_adapter(layer, matrix, 0.5)
    expected = vectors + 0.5 * vectors @ matrix
    mapped = plain.encode(TEXTS, "passage")
    np.testing.assert_allclose(mapped, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    remove_adapter(plain.backend.model)
    np.testing.assert_array_equal(plain.encode(TEXTS, "passage"), vectors)


def test_on_the_query_side_alone_a_layer_gives_the_inner_products_of_both_sides_mapped(tiny_model: Path) -> None:
    settings = small.settings(tiny_model)
    plain, split = encoder(tiny_model, settings), split_sides(load_model(tiny_model, settings.embedding))
    queries, passages = (plain.encode(TEXTS, kind) for kind in ("query", "passage"))
    matrix = 0.1 * np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    set_adapter(append_adapter(split, "query"), matrix, 0.5, "query")
    tuned = Encoder.of(split, settings.embedding)
    np.testing.assert_allclose(tuned.encode(TEXTS, "passage"), passages, atol=1e-6)
    mapped = [vectors + 0.5 * vectors @ matrix for vectors in (queries, passages)]
    found = tuned.encode(TEXTS, "query") @ passages.T
    scale = (mapped[0] @ mapped[1].T) / found
    assert scale.min() > 0
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1], scale.shape), rtol=1e-3)


def test_the_map_goes_before_the_normalisation_that_a_decoder_gets(tmp_path: Path) -> None:
    folder = small.write_tiny_decoder(tmp_path / "decoder")
    model = load_model(folder, small.settings(folder).embedding)
    append_adapter(model)
    assert [type(module).__name__ for module in model][-3:] == ["Pooling", "Dense", "Normalize"]
    remove_adapter(model)
    assert [type(module).__name__ for module in model][-2:] == ["Pooling", "Normalize"]


def test_a_sentences_own_documents_are_not_ranked_and_one_that_all_have_is_not_asked() -> None:
    common = "This line occurs in every single one of them."
    texts = [f"{common}\n\n{text}" for text in [*TEXTS, TEXTS[0]]]
    # The last two segments are of one document.
    groups = np.array([*range(12), 11])
    asked, own = sentence_queries(texts, groups, np.random.default_rng(0))
    assert common not in asked
    places = dict(zip(asked, own, strict=True))
    assert places[TEXTS[0].split("\n\n")[0]].tolist() == [0, 11, 12]
    assert places[TEXTS[1].split("\n\n")[0]].tolist() == [1]
    assert places[TEXTS[11].split("\n\n")[0]].tolist() == [11, 12]
    draw = np.random.default_rng(0)
    questions, vectors = (unit(draw.normal(size=(count, 8))).astype(np.float32) for count in (len(asked), 13))
    target = teacher_scores(asked, texts, (questions, vectors), own, groups, dense_weight=0.65)
    for row, places_left_out in zip(target, own, strict=True):
        assert np.flatnonzero(np.isnan(row)).tolist() == places_left_out.tolist()


def test_headings_are_asked_without_their_marks() -> None:
    texts = ["## How a stack of many values grows\n\nIt does.", "Nothing to be seen in this one, but a sentence."]
    asked, _ = sentence_queries(texts, np.arange(2), np.random.default_rng(0))
    assert asked == ["How a stack of many values grows", "Nothing to be seen in this one, but a sentence."]


def test_segments_of_few_documents_are_each_of_their_own() -> None:
    documents = [str(place // 2) for place in range(2 * linear_adapter.LEAST_DOCUMENTS)]
    assert number_documents(documents).tolist() == [int(document) for document in documents]
    assert number_documents(documents[2:]).tolist() == list(range(len(documents) - 2))


def test_neighbours_are_of_other_documents() -> None:
    equal = np.ones((8, 4), np.float32) / 2
    near = linear_adapter._nearest_of_other_documents(equal, np.array([0, 0, 0, 1, 1, 2, 3, 4]))
    assert near[0].tolist() == near[2].tolist() == [3, 4, 5, 6, 7]
    assert near[5].tolist() == [0, 1, 2, 3, 4]
    assert linear_adapter._nearest_of_other_documents(np.eye(2, dtype=np.float32), np.arange(2)).tolist() == [[1], [0]]


@pytest.mark.slow
def test_large_corpora_are_sampled(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_adapter, "MAX_SENTENCES", 5)
    monkeypatch.setattr(linear_adapter, "MAX_PASSAGES", 6)
    base = encoder(tiny_model, small.settings(tiny_model))
    matrix = fitted(base, TEXTS, IDS, 0.65, dimensions=(8,))
    assert np.isfinite(matrix).all()
    assert np.abs(matrix).max() > 0


def test_a_corpus_without_sentences_is_refused(tiny_model: Path) -> None:
    base = encoder(tiny_model, small.settings(tiny_model))
    with pytest.raises(TrainingError, match=r"none of 2 segments has one that the others lack; set it to 0"):
        fitted(base, ["a b", "a c"], ["1", "2"], 0.65)


def adapted(
    model: Path,
    tmp_path: Path,
    wanted: float | str = 1.0,
    *,
    contrastive: bool = True,
    rate: float = 1e-3,
    **forgetting: object,
) -> tuple[Path, float | None]:
    """A tuned folder of a training with the adapter, and the share that was kept."""
    settings = small.settings(model, epochs=1, share=wanted, contrastive=contrastive, learning_rate=rate)
    settings = settings.model_copy(update={"forgetting": settings.forgetting.model_copy(update=forgetting)})
    known = {**small.passages(), **dict(zip(IDS, TEXTS, strict=True))}
    corpus = (list(known), list(known.values()))
    result = finetune(
        small.examples(),
        small.passages(),
        small.dev(),
        corpus,
        settings,
        output=tmp_path / "tuned",
        work=tmp_path / "work",
        documents=list(known),
    )
    record = read_record(tmp_path / "tuned")
    assert (record["adapter_share"], record["general_after"]) == (result.adapter_share, result.general_after)
    return tmp_path / "tuned", result.adapter_share


@pytest.mark.slow
def test_a_training_writes_a_model_with_the_map_that_sentence_transformers_loads(
    tiny_model: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder, share = adapted(tiny_model, tmp_path)
    assert share == 1.0
    model = SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Dense", "Normalize"]
    weight = model[2].linear.weight
    assert not torch.allclose(weight, torch.eye(32))
    assert np.linalg.norm(model.encode(TEXTS), axis=1) == pytest.approx(np.ones(12), abs=1e-5)


@pytest.mark.slow
def test_the_adapter_alone_leaves_the_bases_weights_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder, share = adapted(tiny_model, tmp_path, contrastive=False)
    record = read_record(folder)
    assert (share, record["steps"], record["epochs"], record["final_loss"]) == (1.0, 0, 0.0, None)
    assert record["dev_curve"][0][0] == 0
    assert record["dev_ndcg_10"] is not None
    tuned, base = (SentenceTransformer(str(path), device="cpu") for path in (folder, tiny_model))
    for name, weight in base[0].state_dict().items():
        assert torch.equal(tuned[0].state_dict()[name], weight), name
    assert not torch.allclose(tuned[2].linear.weight, torch.eye(32))


@pytest.mark.slow
def test_another_share_takes_the_trained_weights_and_another_training_does_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a step was trained")

    folder, _ = adapted(tiny_model, tmp_path, 0.0)
    weights, record = load_file(folder / "model.safetensors"), read_record(folder)
    assert not (folder / "2_Dense").exists()
    monkeypatch.setattr(loss, "info_nce", never)
    folder, share = adapted(tiny_model, tmp_path, 0.5)
    assert share == 0.5
    assert (folder / "2_Dense").exists()
    assert read_record(folder)["loss_curve"] == record["loss_curve"]
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name
    with pytest.raises(AssertionError, match="a step was trained"):
        adapted(tiny_model, tmp_path, 0.5, rate=2e-3)


@pytest.mark.slow
def test_by_default_half_the_adapter_follows_generated_questions(tiny_model: Path, tmp_path: Path) -> None:
    folder, share = adapted(tiny_model, tmp_path, "auto")
    assert share == 0.5
    assert (folder / "2_Dense").exists()


@pytest.mark.slow
def test_by_default_a_corpus_without_sentences_is_left_without_an_adapter(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(linear_adapter, "_LEAST_WORDS", 41)
    folder, share = adapted(tiny_model, tmp_path, "auto")
    assert share == 0
    assert not (folder / "2_Dense").exists()
    assert "linear adapter: the model is left without it" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("kept_from", "share"), [(4, 0.5 * SHARES[3]), (100, 0.0)])
def test_no_more_of_the_map_is_kept_than_the_bound_on_forgetting_bears(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kept_from: int, share: float
) -> None:
    calls: list[int] = []

    def general(model: object) -> float:
        # The base and the tuned weights are scored first; then the shares, largest first.
        calls.append(len(model))  # type: ignore[arg-type]
        return 0.5 if len(calls) <= 2 or len(calls) - 2 >= kept_from else 0.3

    monkeypatch.setattr(selection, "_general_measure", lambda *_: general)
    folder, kept = adapted(tiny_model, tmp_path, 0.5, max_loss=0.1)
    assert kept == pytest.approx(share)
    assert (folder / "2_Dense").exists() == (share > 0)
    assert set(calls[2:]) == {4}
