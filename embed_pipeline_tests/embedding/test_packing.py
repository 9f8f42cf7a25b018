from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from embed_pipeline.embedding import packing
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.packing import PackingError, pack, token_count
from embed_pipeline.settings import Embedding
from embed_pipeline.training.loss import LENGTHS, POSITIVE, MaskedInfoNCE, MicroBatches
from embed_pipeline_tests.training import small

TEXTS = ["the value of a class", "what is the object of a statement in the language", "a", "the list"]
refuse_where_it_cannot_work = packing._check
# Torch has the kernel for CUDA alone: elsewhere the same rows go through plain attention, one by one.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, *, scale: float | None, causal: bool
) -> Tensor:
    rows = []
    for start, stop in zip(bounds.tolist(), bounds.tolist()[1:], strict=False):
        assert stop - start <= longest
        q, k, v = (tensor[start:stop].transpose(0, 1)[None] for tensor in (query, key, value))
        rows.append(nn.functional.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal))
    return torch.cat([row[0].transpose(0, 1) for row in rows])


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr(packing, "attend_rows", attend_one_by_one)
        monkeypatch.setattr(packing, "_check", lambda *_: None)


@pytest.fixture(scope="module", params=["encoder", "decoder", "roberta"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packing") / request.param
    if request.param == "decoder":
        return small.write_tiny_decoder(path)
    return tiny_model if request.param == "encoder" else small.write_tiny_roberta(path, tiny_model)


def run(model: SentenceTransformer, *, half: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    rows = model.tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    features = {name: rows[name].to(DEVICE) for name in model.tokenizer.model_input_names}
    model.zero_grad()
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=half):
        vectors = model(features)["sentence_embedding"].float()
    (vectors * torch.linspace(0, 1, vectors.numel(), device=DEVICE).view_as(vectors)).sum().backward()
    return vectors.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_packed_rows_give_the_vectors_and_gradients_of_padded_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder, Embedding(), DEVICE)
    vectors, gradients = run(model)
    pack(model, torch.bfloat16)
    sizes = []
    attend = packing.attend_rows

    def watched(query: Tensor, *rest: object, **options: object) -> Tensor:
        sizes.append(len(query))
        return attend(query, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "attend_rows", watched)
    found, again = run(model)
    tokens = sum(len(ids) for ids in model.tokenizer(TEXTS, truncation=True)["input_ids"])
    assert set(sizes) == {tokens}
    assert nn.functional.cosine_similarity(found, vectors).min() > 0.9995
    assert again.keys() == gradients.keys()
    for name, gradient in gradients.items():
        size = gradient.norm()
        assert (again[name] - gradient).norm() < 0.06 * size + 1e-5, name


def test_a_packed_model_that_is_told_the_number_of_tokens_does_not_wait_to_count_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(folder, Embedding(), DEVICE)
    pack(model, torch.bfloat16)
    vectors, _ = run(model)
    monkeypatch.setattr(torch, "nonzero", None)
    with token_count(sum(len(ids) for ids in model.tokenizer(TEXTS, truncation=True)["input_ids"])):
        assert torch.equal(run(model)[0], vectors)
    with pytest.raises(TypeError, match="not callable"):
        run(model)


def test_a_packed_model_has_the_loss_and_gradients_of_a_padded_one(folder: Path) -> None:
    passages = ["the value of an object in the language " * 3, "a class", "the list of what a statement is"]
    kinds = [(False, False), (True, False), (True, True)]
    found = [loss_and_gradients(folder, TEXTS, passages, packed=packed, cached=cached) for packed, cached in kinds]
    (expected, gradients), *others = found
    for loss, again in others:
        assert loss == pytest.approx(expected, rel=0.02)
        assert again.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (again[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-4, name


def loss_and_gradients(
    folder: Path, questions: list[str], passages: list[str], *, packed: bool, cached: bool
) -> tuple[float, dict[str, Tensor]]:
    model = load_model(folder, Embedding(), DEVICE)
    left = model.tokenizer.padding_side == "left"
    if packed:
        pack(model, torch.bfloat16)
    micro = MicroBatches(rows=99, tokens=60, padded_left=left, packed=packed)
    loss = MaskedInfoNCE(model, temperature=0.5, micro=micro, cached=cached, bf16=True)
    sides = []
    for texts in (questions, passages):
        rows = model.tokenizer(sorted(texts, key=len, reverse=True), padding=True, truncation=True, return_tensors="pt")
        side = {name: rows[name].to(DEVICE) for name in model.tokenizer.model_input_names}
        sides.append(side | {LENGTHS: rows["attention_mask"].sum(dim=1).tolist()})
    relations = torch.zeros((len(questions), len(passages)), dtype=torch.int8, device=DEVICE)
    relations[torch.arange(len(questions)), torch.arange(len(questions)) % len(passages)] = POSITIVE
    value = loss(sides, relations)
    value.backward()
    return value.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_in_fp32_a_packed_model_computes_padded_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder, Embedding(), DEVICE)
    vectors, _ = run(model, half=False)
    pack(model, torch.bfloat16)
    monkeypatch.setattr(packing, "attend_rows", None)
    torch.testing.assert_close(run(model, half=False)[0], vectors, atol=1e-6, rtol=1e-6)


def test_packing_twice_changes_nothing(tiny_model: Path) -> None:
    model = load_model(tiny_model, Embedding(), DEVICE)
    pack(model, torch.bfloat16)
    forward = model[0].auto_model.forward
    pack(model, torch.bfloat16)
    assert model[0].auto_model.forward is forward


def test_a_model_that_packing_would_change_is_left_as_it_was(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_model, Embedding(), DEVICE)
    vectors, _ = run(model)

    monkeypatch.setattr(packing, "attend_rows", lambda query, *_, **__: 10 * torch.randn_like(query))
    with pytest.raises(PackingError, match="packed vectors differ"):
        pack(model, torch.bfloat16)
    monkeypatch.setattr(packing, "attend_rows", None)
    torch.testing.assert_close(run(model)[0], vectors)


def test_a_windowed_model_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_model, Embedding(), DEVICE)
    attend_packed = packing._attend_packed
    monkeypatch.setattr(
        packing, "_attend_packed", lambda *args: attend_packed(*args[:-1], {**args[-1], "sliding_window": 64})
    )
    with pytest.raises(PackingError, match="packed attention has no sliding_window"):
        pack(model, torch.bfloat16)


def test_a_saved_model_does_not_ask_for_packing(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model, Embedding(), DEVICE)
    pack(model, torch.bfloat16)
    model.save_pretrained(str(tmp_path / "saved"))
    assert packing.PACKED not in "".join(path.read_text() for path in (tmp_path / "saved").rglob("*.json"))


def test_a_processor_is_refused_in_words(tiny_model: Path) -> None:
    encoder = load_model(tiny_model, Embedding(), "cpu")[0].auto_model
    with pytest.raises(PackingError, match="need a CUDA device"):
        refuse_where_it_cannot_work(encoder, torch.device("cpu"))
