from __future__ import annotations

from pathlib import Path

import pytest
import torch

from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Training
from embed_pipeline.training import prepared_model as attention
from embed_pipeline.training.prepared_model import FULL_PRECISION, choose_attention
from embed_pipeline.training.task import TrainingError
from embed_pipeline_tests.training import small


def test_attention_is_chosen_where_it_can_be(tiny_model: Path) -> None:
    model = load_model(tiny_model, small.settings(tiny_model).embedding)
    assert choose_attention(model, Training(), "cpu", bf16=False) is None
    assert choose_attention(model, Training(), "cuda", bf16=True) is None
    assert choose_attention(model, Training(), "cpu", bf16=True) == FULL_PRECISION
    assert choose_attention(model, Training(attention="eager"), "cpu", bf16=True) == "eager"
    assert model[0].auto_model.config._attn_implementation == "eager"
    assert choose_attention(model, Training(), "cpu", bf16=True) is None
    with pytest.raises(TrainingError, match="needs a CUDA device"):
        choose_attention(model, Training(attention="flash_attention_2"), "cpu", bf16=True)
    with pytest.raises(TrainingError, match="packed rows need a CUDA device"):
        choose_attention(model, Training(attention="packed"), "cpu", bf16=True)
    with pytest.raises(TrainingError, match="no packed attention in fp32"):
        choose_attention(model, Training(attention="packed"), "cuda", bf16=False)


def test_auto_packs_on_a_gpu_and_says_why_where_it_cannot(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(tiny_model, small.settings(tiny_model).embedding)
    packed = []
    with caplog.at_level("INFO"):
        assert choose_attention(model, Training(), "cuda", bf16=True) is None
    assert "packed rows need a CUDA device" in caplog.text
    monkeypatch.setattr(attention, "pack", lambda model, half: packed.append(half))
    assert choose_attention(model, Training(), "cuda", bf16=True) == "packed"
    assert packed == [torch.bfloat16]


@pytest.mark.parametrize("decoder", [False, True])
def test_attention_in_full_precision_gives_the_same_vectors_and_gradients(
    tiny_model: Path, tmp_path: Path, *, decoder: bool
) -> None:
    folder = small.write_tiny_decoder(tmp_path / "decoder") if decoder else tiny_model
    found = []
    for chosen in (False, True):
        model = load_model(folder, small.settings(folder).embedding)
        if chosen:
            assert choose_attention(model, Training(), "cpu", bf16=True) == FULL_PRECISION
        texts = ["the value of a class", "what is the object of a statement"]
        features = dict(model.tokenizer(texts, padding=True, return_tensors="pt"))
        features.pop("token_type_ids", None)
        vectors = model(features)["sentence_embedding"]
        vectors.square().sum().backward()
        gradient = next(w.grad for name, w in model.named_parameters() if "0" in name and w.grad is not None)
        found.append((vectors.detach(), gradient))
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], atol=1e-4, rtol=1e-4)


def test_scores_are_computed_in_fp32_inside_bf16(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_model, small.settings(tiny_model).embedding)
    choose_attention(model, Training(), "cpu", bf16=True)
    kinds = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        kinds.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return fused(query, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    features = dict(model.tokenizer(["the value"], return_tensors="pt"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(features)
    assert set(kinds) == {(torch.float32, False)}


def test_a_saved_model_does_not_ask_for_the_kernels_it_was_trained_with(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model, small.settings(tiny_model).embedding)
    choose_attention(model, Training(), "cpu", bf16=True)
    model.save_pretrained(str(tmp_path / "saved"))
    assert FULL_PRECISION not in "".join(path.read_text() for path in (tmp_path / "saved").rglob("*.json"))
