"""Passes without padding on a GPU: a batch's texts end to end in one row, so that nothing but tokens is computed.

The attention is torch's own flash attention over rows of different lengths, so that no package other than torch is
needed. Whether a model may be packed is not known from its name: it is tried, and the vectors are compared with those
of padded rows.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from embed_pipeline.embedding.families import features_of, first_position, is_routed, pad_token_of, padding_side_of
from embed_pipeline.embedding.token_batches import pad_rows

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers.modeling_outputs import BaseModelOutput

PACKED = "packed"
"""Name of the attention by which transformers knows it."""

_SDPA = "sdpa"
_HALVES = (torch.float16, torch.bfloat16)
_TRIAL_TOKENS = (3, 17, 130, 512)
_LEAST_COSINE = 0.999

_known_tokens: ContextVar[int | None] = ContextVar("tokens of the batch that is computed", default=None)


class PackingError(ValueError):
    """A model, or this machine, cannot compute packed rows; the message says why."""


def pack(model: SentenceTransformer, half: torch.dtype) -> None:
    """Make ``model`` compute the real tokens of its batches alone, wherever it computes in half precision.

    Batches go in and token vectors come out as before, padded. In fp32, which flash attention does not have, batches
    are computed padded.

    Args:
        model: on a GPU; changed in place.
        half: bf16 or fp16, in which packed and padded vectors are compared.

    Raises:
        PackingError: it cannot be; ``model`` is as it was.
    """
    encoder = getattr(model[0], "auto_model", None)
    if encoder is None:
        message = f"{type(model[0]).__name__} is no transformer"
        raise PackingError(message)
    if is_packed(model):
        return
    if is_routed(model):
        message = "queries and passages take different ways through the model"
        raise PackingError(message)
    _check(encoder, model.device)
    before = encoder.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    expected = _trial_vectors(model, half)
    _register()
    try:
        encoder.set_attn_implementation(PACKED)
        encoder.forward = _PackedForward(encoder.forward, first_position(encoder))
        cosine = float(nn.functional.cosine_similarity(_trial_vectors(model, half), expected).min())
        # Written so that a value that is not a number is refused.
        if not cosine >= _LEAST_COSINE:
            message = f"packed vectors differ from padded ones: least cosine {cosine:.5f}"
            raise PackingError(message)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        encoder.__dict__.pop("forward", None)
        encoder.set_attn_implementation(before)
        message = str(error).partition("\n")[0]
        raise PackingError(message) from error


def is_packed(model: SentenceTransformer) -> bool:
    """Whether :func:`pack` changed ``model``."""
    return isinstance(getattr(getattr(model[0], "auto_model", None), "forward", None), _PackedForward)


@contextmanager
def token_count(tokens: int) -> Iterator[None]:
    """Say how many tokens, without padding, each batch has that the block computes.

    A packed model that does not know counts them, for which it must wait until the GPU has done all that was asked.
    """
    before = _known_tokens.set(tokens)
    try:
        yield
    finally:
        _known_tokens.reset(before)


def _check(encoder: nn.Module, device: torch.device) -> None:
    """Raise where packing cannot work, before anything is tried."""
    if device.type != "cuda":
        message = "packed rows need a CUDA device"
        raise PackingError(message)
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        message = f"torch {torch.__version__} has no attention over rows of different lengths"
        raise PackingError(message)
    if "position_ids" not in inspect.signature(encoder.forward).parameters:
        message = f"{type(encoder).__name__} takes no positions"
        raise PackingError(message)


class _PackedForward:
    """An encoder's ``forward`` that takes padded rows and computes their tokens end to end."""

    def __init__(self, forward: Callable[..., Any], first_position: int) -> None:
        self._forward = forward
        self._first_position = first_position

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,  # noqa: ANN401 - whatever the encoder takes
    ) -> BaseModelOutput:
        if input_ids is None or attention_mask is None or not self._is_half(input_ids.device):
            output: BaseModelOutput = self._forward(input_ids=input_ids, attention_mask=attention_mask, **options)
            return output
        from transformers.modeling_outputs import BaseModelOutput

        rows, longest = input_ids.shape
        places = _places(attention_mask.flatten())
        lengths = attention_mask.sum(dim=1).cumsum(0)
        bounds = nn.functional.pad(lengths, (1, 0)).to(torch.int32)
        positions = attention_mask.cumsum(1) - 1 + self._first_position
        types = options.pop("token_type_ids", None)
        if types is not None:
            options["token_type_ids"] = types.flatten()[places].unsqueeze(0)
        output = self._forward(
            input_ids=input_ids.flatten()[places].unsqueeze(0),
            attention_mask=None,
            position_ids=positions.flatten()[places].unsqueeze(0),
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
            **options,
        )
        hidden = output.last_hidden_state.squeeze(0)
        padded = hidden.new_zeros(rows * longest, hidden.shape[1]).index_copy(0, places, hidden)
        return BaseModelOutput(last_hidden_state=padded.view(rows, longest, -1))

    @staticmethod
    def _is_half(device: torch.device) -> bool:
        return torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) in _HALVES


def _places(mask: Tensor) -> Tensor:
    """Where a flat mask is not 0."""
    tokens = _known_tokens.get()
    found = torch.nonzero(mask) if tokens is None else torch.nonzero_static(mask, size=tokens)
    return found.squeeze(1)


def _register() -> None:
    """Make :data:`PACKED` known to transformers: packed where bounds are given, else its fused attention."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    fused, fused_mask = ALL_ATTENTION_FUNCTIONS[_SDPA], ALL_MASK_ATTENTION_FUNCTIONS[_SDPA]

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,  # noqa: ANN401 - what transformers hands on
    ) -> tuple[Tensor, None]:
        if options.get("cu_seq_lens_q") is None:
            padded: tuple[Tensor, None] = fused(module, query, key, value, attention_mask, **options)
            return padded
        return _attend_packed(module, query, key, value, options), None

    def mask(*positional: Any, **options: Any) -> Tensor | None:  # noqa: ANN401 - what transformers hands on
        found: Tensor | None = fused_mask(*positional, **options) if options.get("attention_mask") is not None else None
        return found

    ALL_ATTENTION_FUNCTIONS.register(PACKED, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, mask)


def _attend_packed(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """Attention of packed rows.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, size of a head).
        key: (1, key heads, tokens, size of a head).
        value: as ``key``.
        options: what transformers hands on.

    Returns:
        (1, tokens, heads, size of a head).
    """
    unknown = [name for name in ("sliding_window", "softcap", "s_aux") if options.get(name) is not None]
    if unknown or options.get("dropout"):
        message = f"packed attention has no {', '.join(unknown) or 'dropout'}"
        raise PackingError(message)
    causal = options.get("is_causal")
    if causal is None:
        causal = bool(getattr(module, "is_causal", True))
    heads = query.shape[1] // key.shape[1]
    if heads > 1:
        key, value = key.repeat_interleave(heads, dim=1), value.repeat_interleave(heads, dim=1)
    # Rotated queries and keys can come in fp32.
    half = torch.get_autocast_dtype(query.device.type)
    query, key, value = (tensor.squeeze(0).transpose(0, 1).to(half) for tensor in (query, key, value))
    bounds, longest = options["cu_seq_lens_q"], options["max_length_q"]
    return attend_rows(query, key, value, bounds, longest, scale=options.get("scaling"), causal=causal).unsqueeze(0)


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, *, scale: float | None, causal: bool
) -> Tensor:
    """Attention within each of several rows that lie end to end.

    Args:
        query: fp16 or bf16 (tokens, heads, size of a head).
        key: as ``query``.
        value: as ``query``.
        bounds: where rows begin, and the end of the last: int32 (rows + 1).
        longest: tokens of the longest row, or more.
        scale: what products are multiplied by; None: one over the root of the size of a head.
        causal: whether a token sees only itself and those before it.
    """
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if causal else (-1, -1)
    attended = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=window)
    # Typed for what it returns beside where that is asked for.
    return cast("Tensor", attended)


def trial_features(model: SentenceTransformer) -> dict[str, Tensor]:
    """Made-up texts of very different lengths as a padded batch on the model's device, the same on every call."""
    lengths = [min(tokens, int(model.max_seq_length or _TRIAL_TOKENS[-1])) for tokens in _TRIAL_TOKENS]
    drawn = torch.Generator().manual_seed(17)
    vocabulary = model[0].auto_model.get_input_embeddings().num_embeddings
    rows = [torch.randint(0, vocabulary - 1, (length,), generator=drawn).numpy() for length in lengths]
    padding = pad_token_of(model)
    # A padding token within a text would move the positions of a RoBERTa.
    rows = [np.where(row == padding, padding + 1, row) for row in rows]
    return features_of(model, *pad_rows(rows, padding, left=padding_side_of(model) == "left"))


def _trial_vectors(model: SentenceTransformer, half: torch.dtype) -> Tensor:
    """Vectors of the trial batch, float32 (n, dimensions)."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, dtype=half):
            vectors: Tensor = model(trial_features(model))["sentence_embedding"].float()
    finally:
        model.train(training)
    return vectors
