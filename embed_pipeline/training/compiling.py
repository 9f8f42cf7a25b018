"""The model's layers through torch's compiler: what lies between two products of matrices becomes one pass over memory.

One layer is compiled once and serves for all that are built alike, whatever a batch's size (regional compilation).

Imports torch and transformers: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from subprocess import SubprocessError
from typing import TYPE_CHECKING

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from embed_pipeline.embedding.packing import trial_features
from embed_pipeline.settings import Training
from embed_pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

_LEAST_STEPS = 2_000


def compile_layers(model: SentenceTransformer, training: Training, steps: int, *, bf16: bool) -> bool:
    """Compile the layers of ``model`` where ``training.compile`` wants it; returns whether they are.

    They are compiled here, on a trial batch forward and backward, not in the first step.

    Args:
        model: as it is trained, on its device; changed in place.
        training: the settings.
        steps: of the training.
        bf16: whether the model computes in bf16.

    Raises:
        TrainingError: compiling is asked for and cannot be done.
    """
    automatic = training.compile == "auto"
    if training.compile == "never" or (automatic and (steps < _LEAST_STEPS or model.device.type != "cuda")):
        return False
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    reason = _missing(model, layers=len(layers))
    if not reason:
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            _try(model, bf16=bf16)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, OSError, SubprocessError) as error:
            reason = str(error).strip().partition("\n")[0]
            for layer in layers:
                layer._compiled_call_impl = None  # noqa: SLF001 - torch has no way back that is public
    if reason and not automatic:
        message = f"training.compile = {training.compile!r}: {reason}"
        raise TrainingError(message)
    if reason:
        logger.info("the model's layers are not compiled: %s", reason)
    return not reason


def _missing(model: SentenceTransformer, *, layers: int) -> str:
    """What the compiler lacks on this machine, in words, or nothing."""
    if not layers:
        return f"{type(model[0]).__name__} has no layers that transformers knows as such"
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang") if name):
        return "there is no C compiler"
    if model.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


def _try(model: SentenceTransformer, *, bf16: bool) -> None:
    """One batch forward and backward, as in training; gradients are cleared."""
    training = model.training
    model.train()
    try:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            vectors = model(trial_features(model))["sentence_embedding"]
        vectors.float().sum().backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
