"""The contrastive loss, with and without cached gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding
from embed_pipeline.training.loss import (
    IGNORED,
    LENGTHS,
    NEGATIVE,
    POSITIVE,
    Features,
    MaskedInfoNCE,
    MicroBatches,
    info_nce,
)

NAMES = ("input_ids", "attention_mask")


def test_info_nce_is_the_cross_entropy_of_the_positive_among_what_is_not_ignored() -> None:
    logits = torch.tensor([[2.0, 1.0, 3.0], [0.0, 5.0, 1.0]])
    relations = torch.tensor([[POSITIVE, NEGATIVE, IGNORED], [NEGATIVE, IGNORED, POSITIVE]])
    first = torch.log(torch.tensor(2.0).exp() + torch.tensor(1.0).exp()) - 2.0
    second = torch.log(torch.tensor(0.0).exp() + torch.tensor(1.0).exp()) - 1.0
    assert info_nce(logits, relations).item() == pytest.approx(((first + second) / 2).item(), abs=1e-6)


def features(model: nn.Module, texts: list[str]) -> Features:
    batch = model.tokenizer(sorted(texts, key=len, reverse=True), padding=True, return_tensors="pt")
    tensors = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    return tensors | {LENGTHS: batch["attention_mask"].sum(dim=1).tolist()}


def gradients(folder: Path, *, cached: bool, rows: int, dropout: bool) -> tuple[float, dict[str, torch.Tensor]]:
    model = load_model(folder, Embedding(device="cpu")).train()
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    loss = MaskedInfoNCE(model, temperature=0.02, micro=MicroBatches(rows, 4096), cached=cached)
    sides = [features(model, [f"what is {'the ' * i}{i}" for i in range(5)])]
    sides.append(features(model, [f"the value {'of object ' * i}is {i}" for i in range(7)]))
    relations = torch.zeros((5, 7), dtype=torch.int8)
    relations[torch.arange(5), torch.arange(5)] = POSITIVE
    relations[0, 1] = relations[2, 6] = IGNORED
    torch.manual_seed(3)
    value = loss(sides, relations)
    (value * 2).backward()
    return value.item(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("dropout", [False, True])
def test_cached_and_uncached_gradients_are_equal(tiny_model: Path, *, dropout: bool) -> None:
    plain_loss, plain = gradients(tiny_model, cached=False, rows=2, dropout=dropout)
    cached_loss, cached = gradients(tiny_model, cached=True, rows=2, dropout=dropout)
    assert cached_loss == pytest.approx(plain_loss, abs=1e-6)
    assert plain.keys() == cached.keys()
    assert max(gradient.abs().max().item() for gradient in plain.values()) > 0.01
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-5)


def test_the_size_of_a_micro_batch_does_not_change_the_gradients(tiny_model: Path) -> None:
    _, whole = gradients(tiny_model, cached=False, rows=100, dropout=False)
    _, single = gradients(tiny_model, cached=True, rows=1, dropout=False)
    for name, gradient in whole.items():
        torch.testing.assert_close(single[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("left", [False, True])
def test_micro_batches_keep_the_bounds_and_trim_the_padding(*, left: bool) -> None:
    lengths = [6, 4, 4, 3, 1]
    rows = [[0] * (6 - n) + [n] * n if left else [n] * n + [0] * (6 - n) for n in lengths]
    ids = torch.tensor(rows)
    padded = {"input_ids": ids, "attention_mask": (ids > 0).long(), LENGTHS: lengths}
    parts = list(MicroBatches(rows=2, tokens=8, padded_left=left).split(padded))
    assert [part["input_ids"].shape for part in parts] == [(1, 6), (2, 4), (2, 3)]
    assert [int(n) for part in parts for n in part["attention_mask"].sum(dim=1)] == lengths
    assert [n for part in parts for n in part[LENGTHS]] == lengths


@pytest.mark.parametrize("left", [False, True])
def test_packed_questions_and_passages_share_micro_batches_and_padding_does_not_count(*, left: bool) -> None:
    def side(lengths: list[int]) -> Features:
        padded = [[0] * (max(lengths) - n) + [n] * n if left else [n] * n + [0] * (max(lengths) - n) for n in lengths]
        ids = torch.tensor(padded)
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), LENGTHS: lengths}

    parts = MicroBatches(rows=9, tokens=12, padded_left=left, packed=True).of_sides([side([3, 2]), side([6, 5, 1])])
    assert [part["input_ids"].shape for part in parts] == [(3, 6), (2, 5)]
    assert [part[LENGTHS] for part in parts] == [[3, 2, 6], [5, 1]]
    rows = [
        row[mask.bool()].tolist() for part in parts for row, mask in zip(*(part[name] for name in NAMES), strict=True)
    ]
    assert rows == [[n] * n for n in (3, 2, 6, 5, 1)]
    outer = 0 if left else -1
    assert parts[0]["attention_mask"][:, outer].tolist() == [0, 0, 1]


def test_the_loss_is_the_mean_over_the_cut_lengths(tiny_model: Path) -> None:
    model = load_model(tiny_model, Embedding(device="cpu"))
    sides = [features(model, [f"what is {i}" for i in range(3)]), features(model, [f"value {i}" for i in range(3)])]
    relations = torch.eye(3, dtype=torch.int8)
    with torch.no_grad():
        questions, passages = (
            model({name: tensor for name, tensor in side.items() if name != LENGTHS})["sentence_embedding"]
            for side in sides
        )
        expected = []
        for length in (8, 16, 32):
            left, right = (nn.functional.normalize(side[:, :length], dim=-1) for side in (questions, passages))
            expected.append(info_nce(left @ right.T / 0.05, relations))
        loss = MaskedInfoNCE(model, temperature=0.05, micro=MicroBatches(9, 4096), dimensions=(16, 8))
        assert loss(sides, relations).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
