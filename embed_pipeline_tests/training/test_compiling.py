from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.packing import trial_features
from embed_pipeline.settings import Embedding, Training
from embed_pipeline.training import prepared_model as compiling
from embed_pipeline.training.prepared_model import compile_layers, turn_off_dropout
from embed_pipeline.training.task import TrainingError
from embed_pipeline_tests.training import small

ALWAYS = Training(compile="always")


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are captured and differentiated as in use, and run as they are: seconds instead of minutes."""
    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))


@pytest.fixture(params=["encoder", "decoder"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    return tiny_model if request.param == "encoder" else small.write_tiny_decoder(tmp_path / "decoder")


def test_compiled_layers_give_the_same_vectors_and_gradients_and_are_compiled_once(folder: Path) -> None:
    found = []
    for compiled in (False, True):
        model = load_model(folder, Embedding(), "cpu").train()
        turn_off_dropout(model)
        assert not compiled or compile_layers(model, ALWAYS, 1, bf16=False)
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        features = trial_features(model)
        for length in (features["input_ids"].shape[1], 9, 20):
            cut = slice(-length, None) if model.tokenizer.padding_side == "left" else slice(0, length)
            model.zero_grad()
            vectors = model({name: value[:, cut] for name, value in features.items()})["sentence_embedding"]
            vectors.square().sum().backward()
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
        found.append([vectors.detach(), *(w.grad for w in model.parameters() if w.grad is not None)])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)


def test_names_of_weights_stay_and_no_gradient_is_left(tiny_model: Path) -> None:
    model = load_model(tiny_model, Embedding(), "cpu")
    names = list(model.state_dict())
    assert compile_layers(model, ALWAYS, 1, bf16=True)
    assert list(model.state_dict()) == names
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.training


def test_auto_compiles_long_trainings_on_a_gpu_alone(tiny_model: Path) -> None:
    model = load_model(tiny_model, Embedding(), "cpu")
    assert not compile_layers(model, Training(), 1_000_000, bf16=True)
    assert not compile_layers(model, Training(compile="never"), 1_000_000, bf16=True)


def test_what_cannot_be_compiled_is_left_as_it_was(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_model, Embedding(), "cpu")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(compiling, "_run_trial", fail)
    with pytest.raises(TrainingError, match=r"training.compile = 'always': no such instruction$"):
        compile_layers(model, ALWAYS, 1, bf16=False)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_machine_without_a_compiler_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TrainingError, match="there is no C compiler"):
        compile_layers(load_model(tiny_model, Embedding(), "cpu"), ALWAYS, 1, bf16=False)
