from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Settings
from embed_pipeline.training.prepared_model import declare_dimensions, prepare_model
from embed_pipeline.training.record import TrainingResult, declared_dimensions, read_record
from embed_pipeline.training.task import TrainingError
from embed_pipeline.training.train import finetune
from embed_pipeline_tests.training import small


def train(folder: Path, settings: Settings, stop_at: int | None = None) -> TrainingResult:
    def record(step: int, figures: dict[str, float]) -> None:
        if step == stop_at and "loss" in figures:
            raise KeyboardInterrupt

    return finetune(
        small.examples(),
        small.passages(),
        small.dev(),
        small.corpus(),
        settings,
        output=folder / "tuned",
        work=folder / "work",
        record=record,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "tuned" / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_adapters_train_only_linear_layers_and_are_folded_into_a_plain_model(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, lora_rank=4, average_weights=False)
    result = train(tmp_path, settings)
    before, after = load_file(tiny_model / "model.safetensors"), weights(tmp_path)
    assert before.keys() == after.keys()
    assert not list((tmp_path / "tuned").rglob("*adapter*"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert result.best_step > 0
    assert changed
    assert all("embeddings" not in name and "LayerNorm" not in name and "bias" not in name for name in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 4
    assert read_record(tmp_path / "tuned")["lora_rank"] == 4


def test_training_of_adapters_resumes_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, lora_rank=4)
    train(tmp_path / "a", settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", settings, stop_at=5)
    resumed = train(tmp_path / "b", settings)
    assert resumed.resumed_from == 4
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_cut_lengths_are_trained_and_declared_with_the_model(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, matryoshka_dimensions=(16, 8))
    train(tmp_path, settings)
    assert declared_dimensions(tmp_path / "tuned") == (8, 16)
    assert declared_dimensions(tiny_model) == ()
    model = load_model(tmp_path / "tuned", settings.embedding)
    model.save_pretrained(str(tmp_path / "again"))
    assert declared_dimensions(tmp_path / "again") == (8, 16)


def test_a_cut_that_is_no_cut_is_refused(tiny_model: Path) -> None:
    model = load_model(tiny_model, small.settings(tiny_model).embedding)
    with pytest.raises(TrainingError, match="holds 32; must be below 32, the length of the model's vectors"):
        declare_dimensions(model, [8, 32])


def test_checkpointed_activations_give_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    plain = train(tmp_path / "a", small.settings(tiny_model))
    spared = train(tmp_path / "b", small.settings(tiny_model, gradient_checkpointing=True))
    assert prepare_model(small.settings(tiny_model, gradient_checkpointing=True))[
        0
    ].auto_model.is_gradient_checkpointing
    assert [loss for _, loss in spared.loss_curve] == pytest.approx([loss for _, loss in plain.loss_curve], abs=1e-5)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_decoder_that_pools_its_last_token_is_trained(tmp_path: Path, *, lora_rank: int | None) -> None:
    model = small.write_tiny_decoder(tmp_path / "decoder")
    settings = small.settings(model, lora_rank=lora_rank, micro_batch_size=3)
    result = train(tmp_path, settings)
    losses = [loss for _, loss in result.loss_curve]
    assert sum(losses[-4:]) < sum(losses[:4])
    encoder = Encoder.load(tmp_path / "tuned", settings.embedding)
    texts = ["the value", "what is the object of a class"]
    expected = torch.nn.functional.normalize(torch.from_numpy(encoder.backend.model.encode(texts)), dim=-1)
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts, "passage")), expected, atol=1e-5, rtol=0)
