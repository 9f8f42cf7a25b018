"""The model as it is trained: no dropout, Matryoshka dimensions, attention kernels, LoRA, compiled layers."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from embed_pipeline import machine
from embed_pipeline.embedding.families import DIMENSIONS_KEY, embedding_dimensions, is_routed, route_of
from embed_pipeline.embedding.models import load_model, torch_device
from embed_pipeline.embedding.packing import PACKED, pack, trial_features
from embed_pipeline.settings import Settings, Training
from embed_pipeline.training.task import TrainingError
from embed_pipeline.training.weights import save_model

logger = logging.getLogger(__name__)

_FLASH, _SDPA = "flash_attention_2", "sdpa"
FULL_PRECISION = "sdpa_full_precision"
"""torch's fused attention in fp32 inside a bf16 model: on CPUs, bf16 doubles the time of its backward pass."""
_LORA_ALPHA_PER_RANK = 2
_LEAST_COMPILED_STEPS = 2_000


def prepare_model(settings: Settings) -> SentenceTransformer:
    """The base model as it is trained: no dropout, lengths declared, attention chosen, LoRA adapters in place.

    Raises:
        TrainingError: a setting does not fit the model.
        ModelError: the base model cannot be loaded.
    """
    training = settings.training
    device = torch_device(settings.embedding)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    model = load_plain_base(settings, device)
    turn_off_dropout(model)
    bf16 = machine.training_precision(training, torch.device(device)) == "bf16"
    choose_attention(model, training, device, bf16=bf16)
    if training.lora_rank:
        add_adapters(route_of(model, "query") if training.sides == "query" else model, training.lora_rank)
    if training.gradient_checkpointing:
        checkpoint_gradients(model)
    return model


def load_plain_base(settings: Settings, device: str = "cpu") -> SentenceTransformer:
    """The base model, sides split and lengths declared, without adapters: folded-in weights are written with it."""
    base = load_model(settings.embedding.model, settings.embedding, device=device)
    declare_dimensions(base, settings.training.matryoshka_dimensions)
    return split_sides(base) if settings.training.sides == "query" else base


def split_sides(model: SentenceTransformer) -> SentenceTransformer:
    """``model`` with a way of its own for queries, a copy; passages keep the given weights, which are frozen.

    Raises:
        TrainingError: the model sends queries and passages different ways already.
    """
    from sentence_transformers.base.modules import Router

    if is_routed(model):
        message = 'training.sides = "query": the base has a router of its own; set training.sides = "both"'
        raise TrainingError(message)
    *body, normalize = model
    of_queries = copy.deepcopy(body)
    for module in body:
        module.requires_grad_(requires_grad=False)
    router = Router.for_query_document(of_queries, body)
    split = SentenceTransformer(
        modules=[router, normalize],
        device=str(model.device),
        prompts=model.prompts,
        similarity_fn_name=model.similarity_fn_name,
    )
    return split.train(model.training)


def check_base(settings: Settings, folder: Path) -> None:
    """Refuse a base that does not survive being saved, before any time goes into its training.

    Args:
        settings: groups ``embedding`` and ``training``.
        folder: where it is written for that; it is removed again.

    Raises:
        ModelError: it cannot be loaded, or what was saved gives other vectors.
    """
    try:
        save_model(load_plain_base(settings), folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint_gradients(model: SentenceTransformer) -> None:
    """Have ``model`` compute activations again instead of keeping them, where its architecture can."""
    able = [module for module in model.modules() if getattr(module, "supports_gradient_checkpointing", False)]
    if able:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not is_checkpointed(model):
        name = type(getattr(model[0], "auto_model", model[0])).__name__
        logger.warning("training.gradient_checkpointing: %s does not support it; activations are kept", name)


def is_checkpointed(model: nn.Module) -> bool:
    """Whether layers of ``model`` compute their activations again in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def turn_off_dropout(model: nn.Module) -> None:
    """Set every dropout probability of ``model`` to 0; its configuration, which is saved, stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - the only base class of all dropouts
            module.p = 0.0
        # Attention layers keep their probability as a plain number.
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def declare_dimensions(model: SentenceTransformer, dimensions: Sequence[int]) -> tuple[int, ...]:
    """Write the lengths into the configuration of ``model`` and return them, shortest first.

    Lengths that the base declares are dropped: training, and the linear adapter, leave nothing of what they were
    trained to.

    Raises:
        TrainingError: a length is not below the model's own, or the model has no transformer to declare them in.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, DIMENSIONS_KEY, None) is not None:
            delattr(config, DIMENSIONS_KEY)
    if not dimensions:
        return ()
    own = embedding_dimensions(model)
    longest = max(dimensions)
    if longest >= own:
        message = (
            f"training.matryoshka_dimensions holds {longest}; must be below {own}, the length of the model's vectors"
        )
        raise TrainingError(message)
    encoder = getattr(model[0], "auto_model", None)
    if encoder is None:
        message = f"training.matryoshka_dimensions: {type(model[0]).__name__} has no configuration to declare them in"
        raise TrainingError(message)
    lengths = tuple(sorted(set(dimensions)))
    setattr(encoder.config, DIMENSIONS_KEY, list(lengths))
    return lengths


def choose_attention(model: SentenceTransformer, training: Training, device: str, *, bf16: bool) -> str | None:
    """Set the attention kernels by ``training.attention``; returns their name, None: the model's own.

    Args:
        model: the model, on its device; changed in place.
        training: the settings.
        device: ``cpu`` or ``cuda``.
        bf16: whether the model computes in bf16.

    Raises:
        TrainingError: the kernels that are asked for do not run on this machine, or with this model.
    """
    if training.attention != "auto":
        return _use_attention(model, training.attention, device, bf16=bf16)
    if bf16 and device == "cuda":
        try:
            return _use_attention(model, PACKED, device, bf16=bf16)
        except TrainingError as error:
            logger.info("%s", error)
    best = _best_attention(getattr(model[0], "auto_model", None), device, bf16=bf16)
    return _use_attention(model, best, device, bf16=bf16) if best else None


def _use_attention(model: SentenceTransformer, wanted: str, device: str, *, bf16: bool) -> str:
    encoder = getattr(model[0], "auto_model", None)
    if wanted == PACKED and not bf16:
        message = f"training.attention = {wanted!r}: there is no packed attention in fp32"
        raise TrainingError(message)
    if wanted == _FLASH and (device != "cuda" or not _flash_is_installed()):
        message = f"training.attention = {wanted!r} needs a CUDA device and the package flash-attn"
        raise TrainingError(message)
    if encoder is None:
        message = f"training.attention = {wanted!r}: {type(model[0]).__name__} has no attention to choose"
        raise TrainingError(message)
    if wanted == FULL_PRECISION:
        _register_full_precision()
    try:
        if wanted == PACKED:
            pack(model, torch.bfloat16)
        else:
            encoder.set_attn_implementation(wanted)
    except ValueError as error:
        message = f"training.attention = {wanted!r}: {error}"
        raise TrainingError(message) from error
    return wanted


def _best_attention(encoder: nn.Module | None, device: str, *, bf16: bool) -> str | None:
    """The fastest kernels for padded rows on this machine; None: the model's own choice."""
    if not bf16 or encoder is None:
        return None
    if device == "cuda":
        able = _flash_is_installed() and bool(getattr(encoder, "_supports_flash_attn", False))
        return _FLASH if able else None
    own = getattr(getattr(encoder, "config", None), "_attn_implementation", None)
    return FULL_PRECISION if own == _SDPA else None


def _flash_is_installed() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _register_full_precision() -> None:
    """Make :data:`FULL_PRECISION` known to transformers, with the masks that its fused attention takes."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    fused = ALL_ATTENTION_FUNCTIONS[_SDPA]

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,  # noqa: ANN401 - what transformers hands on
    ) -> tuple[Tensor, None]:
        with torch.autocast(query.device.type, enabled=False):
            mask = attention_mask
            if mask is not None and mask.is_floating_point():
                mask = mask.float()
            attended, _ = fused(module, query.float(), key.float(), value.float(), mask, **options)
        return attended.to(query.dtype), None

    ALL_ATTENTION_FUNCTIONS.register(FULL_PRECISION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FULL_PRECISION, ALL_MASK_ATTENTION_FUNCTIONS[_SDPA])


def add_adapters(model: SentenceTransformer, rank: int) -> None:
    """Freeze ``model`` and give every linear layer of its encoder a LoRA adapter (Hu et al. 2022).

    Args:
        model: the base model; changed in place.
        rank: inner size of the adapters, 1 or more; their product is scaled by 2.

    Raises:
        TrainingError: peft is not installed, or the model has no encoder that takes adapters.
    """
    if importlib.util.find_spec("peft") is None:
        message = f"training.lora_rank is {rank}, which needs peft: pip install peft"
        raise TrainingError(message)
    encoder = getattr(model[0], "auto_model", None)
    if encoder is None:
        message = f"training.lora_rank is {rank}, but {type(model[0]).__name__} is no transformer that takes adapters"
        raise TrainingError(message)
    from peft import LoraConfig, inject_adapter_in_model

    for weight in model.parameters():
        weight.requires_grad_(requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=_LORA_ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules="all-linear")
    inject_adapter_in_model(config, encoder)


def compile_layers(model: SentenceTransformer, training: Training, steps: int, *, bf16: bool) -> bool:
    """Compile the layers of ``model`` where ``training.compile`` asks for it; returns whether they are compiled.

    This runs a trial batch forward and backward, so that the first step of training does not wait for the compiler.

    Args:
        model: as it is trained, on its device; changed in place.
        training: the settings.
        steps: steps of the training.
        bf16: whether the model computes in bf16.

    Raises:
        TrainingError: compiling is asked for and fails.
    """
    automatic = training.compile == "auto"
    if training.compile == "never" or (automatic and (steps < _LEAST_COMPILED_STEPS or model.device.type != "cuda")):
        return False
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    reason = _obstacle_to_compiling(model, layers=len(layers))
    if not reason:
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            _run_trial(model, bf16=bf16)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, OSError, SubprocessError) as error:
            reason = str(error).strip().partition("\n")[0]
            for layer in layers:
                layer._compiled_call_impl = None  # noqa: SLF001 - torch has no public way back
    if reason and not automatic:
        message = f"training.compile = {training.compile!r}: {reason}"
        raise TrainingError(message)
    if reason:
        logger.info("the model's layers are not compiled: %s", reason)
    return not reason


def _obstacle_to_compiling(model: SentenceTransformer, *, layers: int) -> str:
    """Why the layers cannot be compiled on this machine; empty: nothing is known against it."""
    if not layers:
        return f"{type(model[0]).__name__} has no layers that transformers marks as such"
    if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "cc", "gcc", "clang") if name):
        return "there is no C compiler"
    if model.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


def _run_trial(model: SentenceTransformer, *, bf16: bool) -> None:
    """Run one batch forward and backward, as in training, and clear the gradients."""
    training = model.training
    model.train()
    try:
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
            vectors = model(trial_features(model))["sentence_embedding"]
        vectors.float().sum().backward()
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
