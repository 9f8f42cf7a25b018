from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.search import BM25
from embed_pipeline.settings import Settings
from embed_pipeline.training import linear_adapter, loss, selection
from embed_pipeline.training.linear_adapter import append_adapter, fit_adapter, remove_adapter, set_adapter
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


SENTENCES = [sentence for text in TEXTS for sentence in text.split("\n\n")]


def cosines_of(encoder: Encoder) -> np.ndarray:
    return encoder.encode(SENTENCES, "query") @ encoder.encode(TEXTS, "passage").T


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def z_scores(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)


def teacher_of(encoder: Encoder) -> np.ndarray:
    """The teacher's scores of every text for every sentence, spread as widely as the cosines, written once more."""
    questions, vectors = encoder.encode(SENTENCES, "query"), encoder.encode(TEXTS, "passage")
    near = np.argsort(-(vectors @ vectors.T - 9 * np.eye(len(TEXTS))), axis=1)[:, :5]
    smooth = unit(vectors + 0.5 * vectors[near].mean(axis=1))
    words = np.stack([BM25(TEXTS).scores(sentence) for sentence in SENTENCES])
    words = z_scores(words + 0.5 * words[:, near].mean(axis=2))
    found = 0.65 * z_scores(questions @ smooth.T) + 0.35 * words
    found[np.arange(len(SENTENCES)), np.arange(len(SENTENCES)) // 2] = -np.inf
    moved = questions + 0.6 * smooth[np.argsort(-found, axis=1)[:, :3]].mean(axis=1)
    taught = 0.65 * z_scores(moved @ smooth.T) + 0.35 * words
    return taught * (questions @ vectors.T).std(axis=1).mean() / taught.std(axis=1).mean()


def divergence(taught: np.ndarray, cosines: np.ndarray) -> float:
    """Mean KL over all sentences, the text that each stands in left out."""
    others = np.array([[place for place in range(len(TEXTS)) if place != row // 2] for row in range(len(SENTENCES))])

    def log_softmax(scores: np.ndarray) -> np.ndarray:
        own = np.take_along_axis(scores, others, axis=1) / 0.05
        return own - np.log(np.exp(own).sum(axis=1, keepdims=True))

    teacher, student = log_softmax(taught), log_softmax(cosines)
    return float((np.exp(teacher) * (teacher - student)).sum(axis=1).mean())


def test_the_map_brings_the_ranking_of_other_texts_to_the_teachers(tiny_model: Path) -> None:
    settings = small.settings(tiny_model)
    base = encoder(tiny_model, settings)
    cosines = cosines_of(base)
    taught = teacher_of(base)
    matrix = fit_adapter(base, TEXTS, IDS, dense_weight=0.65, seed=17)
    assert matrix.shape == (32, 32)
    assert np.array_equal(matrix, fit_adapter(base, TEXTS, IDS, dense_weight=0.65, seed=17))
    layer = append_adapter(base.backend.model)
    np.testing.assert_allclose(cosines_of(base), cosines, atol=1e-5)
    set_adapter(layer, matrix, 1.0)
    assert divergence(taught, cosines_of(base)) < 0.9 * divergence(taught, cosines)


def test_a_layer_is_a_row_times_identity_and_share_of_the_map_and_can_be_taken_out(tiny_model: Path) -> None:
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


def test_a_decoder_without_a_normalisation_takes_the_map_at_its_end(tmp_path: Path) -> None:
    folder = small.write_tiny_decoder(tmp_path / "decoder")
    model = load_model(folder, small.settings(folder).embedding)
    append_adapter(model)
    assert type(model[-1]).__name__ == "Dense"
    remove_adapter(model)
    assert type(model[-1]).__name__ == "Pooling"


def test_a_sentences_own_documents_are_not_ranked_and_one_that_all_have_is_not_asked() -> None:
    common = "This line stands in every single one of them."
    texts = [f"{common}\n\n{text}" for text in [*TEXTS, TEXTS[0]]]
    # The last two segments are of one document.
    kin = np.array([*range(12), 11])
    asked, own = linear_adapter.asked_sentences(texts, kin, np.random.default_rng(0))
    assert common not in asked
    places = dict(zip(asked, own, strict=True))
    assert places[TEXTS[0].split("\n\n")[0]].tolist() == [0, 11, 12]
    assert places[TEXTS[1].split("\n\n")[0]].tolist() == [1]
    assert places[TEXTS[11].split("\n\n")[0]].tolist() == [11, 12]
    draw = np.random.default_rng(0)
    questions, vectors = (unit(draw.normal(size=(count, 8))).astype(np.float32) for count in (len(asked), 13))
    taught = linear_adapter._taught(asked, texts, (questions, vectors), own, kin, dense_weight=0.65)
    for row, places_left_out in zip(taught, own, strict=True):
        assert np.flatnonzero(np.isnan(row)).tolist() == places_left_out.tolist()


def test_headings_are_asked_without_their_marks() -> None:
    texts = ["## How a stack of many values grows\n\nIt does.", "Nothing to be seen in this one, but a sentence."]
    asked, _ = linear_adapter.asked_sentences(texts, np.arange(2), np.random.default_rng(0))
    assert asked == ["How a stack of many values grows", "Nothing to be seen in this one, but a sentence."]


def test_segments_of_few_documents_are_each_of_their_own() -> None:
    documents = [str(place // 2) for place in range(2 * linear_adapter.LEAST_DOCUMENTS)]
    assert linear_adapter._kin(documents).tolist() == [int(document) for document in documents]
    assert linear_adapter._kin(documents[2:]).tolist() == list(range(len(documents) - 2))


def test_the_teacher_smooths_by_neighbours_and_asks_again_from_what_it_found(tiny_model: Path) -> None:
    base = encoder(tiny_model, small.settings(tiny_model))
    encoded = base.encode(SENTENCES, "query"), base.encode(TEXTS, "passage")
    own = [np.array([row // 2]) for row in range(len(SENTENCES))]
    taught = linear_adapter._taught(SENTENCES, TEXTS, encoded, own, np.arange(12), dense_weight=0.65)
    others = np.isfinite(taught)
    assert others.sum() == taught.size - len(SENTENCES)
    np.testing.assert_allclose(taught[others], teacher_of(base)[others], atol=1e-4)


def test_neighbours_are_of_other_documents() -> None:
    equal = np.ones((8, 4), np.float32) / 2
    near = linear_adapter._neighbours(equal, np.array([0, 0, 0, 1, 1, 2, 3, 4]))
    assert near[0].tolist() == near[2].tolist() == [3, 4, 5, 6, 7]
    assert near[5].tolist() == [0, 1, 2, 3, 4]
    assert linear_adapter._neighbours(np.eye(2, dtype=np.float32), np.arange(2)).tolist() == [[1], [0]]


def test_large_corpora_are_sampled(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_adapter, "MAX_SENTENCES", 5)
    monkeypatch.setattr(linear_adapter, "MAX_PASSAGES", 6)
    base = encoder(tiny_model, small.settings(tiny_model))
    matrix = fit_adapter(base, TEXTS, IDS, dense_weight=0.65, seed=17, dimensions=(8,))
    assert np.isfinite(matrix).all()
    assert np.abs(matrix).max() > 0


def test_a_corpus_without_sentences_is_refused(tiny_model: Path) -> None:
    base = encoder(tiny_model, small.settings(tiny_model))
    with pytest.raises(TrainingError, match=r"of 2 segments none has one that not all have; turn it off"):
        fit_adapter(base, ["a b", "a c"], ["1", "2"], dense_weight=0.65, seed=17)


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


def test_by_default_half_the_adapter_follows_generated_questions(tiny_model: Path, tmp_path: Path) -> None:
    folder, share = adapted(tiny_model, tmp_path, "auto")
    assert share == 0.5
    assert (folder / "2_Dense").exists()


def test_by_default_a_corpus_without_sentences_is_left_without_an_adapter(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(linear_adapter, "_LEAST_WORDS", 41)
    folder, share = adapted(tiny_model, tmp_path, "auto")
    assert share == 0
    assert not (folder / "2_Dense").exists()
    assert "left without a linear adapter" in caplog.text


@pytest.mark.parametrize(("kept_from", "share"), [(4, 0.5 * SHARES[3]), (100, 0.0)])
def test_no_more_of_the_map_is_kept_than_the_bound_on_forgetting_bears(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kept_from: int, share: float
) -> None:
    calls: list[int] = []

    def general(model: object) -> float:
        # The base and the tuned weights are scored first; then the shares, largest first.
        calls.append(len(model))  # type: ignore[arg-type]
        return 0.5 if len(calls) <= 2 or len(calls) - 2 >= kept_from else 0.3

    monkeypatch.setattr(selection, "_general", lambda *_: general)
    folder, kept = adapted(tiny_model, tmp_path, 0.5, max_loss=0.1)
    assert kept == pytest.approx(share)
    assert (folder / "2_Dense").exists() == (share > 0)
    assert set(calls[2:]) == {4}
