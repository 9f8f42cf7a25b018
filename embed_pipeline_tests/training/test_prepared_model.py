"""The model as it is trained: dropout, attention, LoRA, lengths, checkpointed and compiled layers."""

from __future__ import annotations

import json
import shutil
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import is_routed
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.packing import trial_features
from embed_pipeline.release.existing_index import keeps_passages
from embed_pipeline.settings import Embedding, Settings, Training
from embed_pipeline.training import prepared_model
from embed_pipeline.training.loss import MaskedInfoNCE, MicroBatches
from embed_pipeline.training.prepared_model import (
    FULL_PRECISION,
    choose_attention,
    compile_layers,
    declare_dimensions,
    is_checkpointed,
    prepare_model,
    turn_off_dropout,
)
from embed_pipeline.training.record import TrainingResult, declared_dimensions, read_record
from embed_pipeline.training.task import TrainingError, number_examples
from embed_pipeline.training.train import finetune
from embed_pipeline.training.training_batches import Collator
from embed_pipeline.training.weights import save_model
from embed_pipeline_tests import families
from embed_pipeline_tests.training import small


def test_a_model_in_training_mode_gives_the_vectors_of_inference(tiny_model: Path) -> None:
    model = load_model(tiny_model, Embedding(device="cpu"))
    features = model.tokenizer(["the value of a statement"], return_tensors="pt")
    inferred = model(dict(features))["sentence_embedding"]
    model.train()
    assert not torch.allclose(model(dict(features))["sentence_embedding"], inferred, atol=1e-4)
    turn_off_dropout(model)
    torch.testing.assert_close(model(dict(features))["sentence_embedding"], inferred, atol=1e-6, rtol=0)


def test_a_probability_kept_as_a_number_is_found() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.attention_dropout = 0.1
    turn_off_dropout(layer)
    assert layer.attention_dropout == 0.0


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
    monkeypatch.setattr(prepared_model, "pack", lambda model, half: packed.append(half))
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_training_of_adapters_resumes_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    settings = small.settings(tiny_model, lora_rank=4)
    train(tmp_path / "a", settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", settings, stop_at=5)
    resumed = train(tmp_path / "b", settings)
    assert resumed.resumed_from == 4
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_checkpointed_activations_give_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    plain = train(tmp_path / "a", small.settings(tiny_model))
    spared = train(tmp_path / "b", small.settings(tiny_model, gradient_checkpointing=True))
    assert prepare_model(small.settings(tiny_model, gradient_checkpointing=True))[
        0
    ].auto_model.is_gradient_checkpointing
    assert [loss for _, loss in spared.loss_curve] == pytest.approx([loss for _, loss in plain.loss_curve], abs=1e-5)


@pytest.mark.slow
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


ALWAYS = Training(compile="always")


@pytest.fixture
def without_code_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are captured and differentiated as in use, and run as they are: seconds instead of minutes."""
    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))


@pytest.fixture(params=["encoder", "decoder"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    return tiny_model if request.param == "encoder" else small.write_tiny_decoder(tmp_path / "decoder")


@pytest.mark.slow
@pytest.mark.usefixtures("without_code_generation")
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


@pytest.mark.slow
@pytest.mark.usefixtures("without_code_generation")
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


@pytest.mark.usefixtures("without_code_generation")
def test_what_cannot_be_compiled_is_left_as_it_was(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_model, Embedding(), "cpu")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(prepared_model, "_run_trial", fail)
    with pytest.raises(TrainingError, match=r"training.compile = 'always': no such instruction$"):
        compile_layers(model, ALWAYS, 1, bf16=False)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_machine_without_a_compiler_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TrainingError, match="there is no C compiler"):
        compile_layers(load_model(tiny_model, Embedding(), "cpu"), ALWAYS, 1, bf16=False)


@pytest.mark.parametrize(("make", "able"), [(families.mpnet_dot, False), (families.bert, True)])
def test_gradient_checkpointing_counts_only_where_it_is_on(make, able, tmp_path, caplog):
    model = prepare_model(small.settings(make(tmp_path / "base"), gradient_checkpointing=True))
    assert is_checkpointed(model) is able
    assert ("MPNetModel does not support it" in caplog.text) is not able


def test_lengths_that_the_base_declares_are_dropped(tiny_model, tmp_path):
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8, 16, 32]}))
    model = load_model(folder, Embedding(device="cpu"))
    assert declare_dimensions(model, ()) == ()
    save_model(model, tmp_path / "saved")
    assert declared_dimensions(tmp_path / "saved") == ()
    (folder / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": None}))
    assert declared_dimensions(folder) == ()


@pytest.mark.parametrize("make", [families.two_encoders, families.two_heads, families.static])
def test_each_side_of_a_model_learns_from_its_own_texts(make, tmp_path):
    settings = small.settings(make(tmp_path / "base"))
    model = prepare_model(settings).train()
    batch = Collator(number_examples(small.examples(), small.passages()), model)([{"index": 0}, {"index": 1}])
    sides = [
        {name.removeprefix(f"{side}_"): value for name, value in batch.items() if name.startswith(f"{side}_")}
        for side in ("question", "passage")
    ]
    micro = MicroBatches(rows=100, tokens=4096)
    loss = MaskedInfoNCE(model, temperature=0.05, micro=micro, routed=is_routed(model))
    torch.autograd.backward(loss(sides, batch["label"]))
    encoder = Encoder.of(model.eval(), settings.embedding)
    vectors = {kind: torch.from_numpy(encoder.encode(["what is the value"], kind)) for kind in ("query", "passage")}
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "pooler" not in name)
    assert torch.allclose(vectors["query"], vectors["passage"]) is not is_routed(model)


@pytest.mark.slow
@pytest.mark.parametrize("make", [families.two_encoders, families.static, families.mistral])
def test_every_family_is_trained_and_saved(make, tmp_path):
    settings = small.settings(make(tmp_path / "base"), epochs=1, learning_rate=1e-2)
    corpus = (list(small.passages()), list(small.passages().values()))
    result = finetune(
        small.examples(), small.passages(), None, corpus, settings, output=tmp_path / "tuned", work=tmp_path / "work"
    )
    assert result.steps > 0
    base, tuned = (Encoder.load(folder, settings.embedding) for folder in (tmp_path / "base", tmp_path / "tuned"))
    for kind in ("query", "passage"):
        assert (base.encode(corpus[1], kind) * tuned.encode(corpus[1], kind)).sum(axis=1).min() < 0.99999


@pytest.mark.slow
@pytest.mark.parametrize("training", [{}, {"micro_batch_size": 4}, {"lora_rank": 4}, {"contrastive": False}])
def test_passages_keep_the_base_s_vectors_where_queries_alone_are_tuned(tiny_model, tmp_path, training):
    settings = small.settings(tiny_model, share=0.5, sides="query", **training)
    given = (small.examples(), small.passages(), small.dev(), small.corpus(), settings)
    finetune(*given, output=tmp_path / "tuned", work=tmp_path / "work")
    base, tuned = (Encoder.load(folder, settings.embedding) for folder in (tiny_model, tmp_path / "tuned"))
    texts = list(small.passages().values())
    np.testing.assert_array_equal(tuned.encode(texts, "passage"), base.encode(texts, "passage"))
    assert not np.allclose(tuned.encode(texts, "query"), base.encode(texts, "query"), atol=1e-3)
    assert keeps_passages(base, tuned)


def test_a_base_with_a_router_of_its_own_is_refused(tmp_path):
    folder = families.two_encoders(tmp_path / "router")
    with pytest.raises(TrainingError, match="the base has a router of its own"):
        prepare_model(small.settings(folder, sides="query"))
