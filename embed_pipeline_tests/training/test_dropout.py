from __future__ import annotations

from pathlib import Path

import torch

from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding
from embed_pipeline.training.prepared_model import turn_off_dropout


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
