"""Weights as plain state dicts: adapters folded in, means and mixtures, and folders written from them.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from embed_pipeline.embedding.model_folder import check_model_folder, write_model_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

State = dict[str, Tensor]

_BASE_LAYER = ".base_layer"
_ADAPTER = "lora_"
_COUNT = "count"


def plain_state(model: nn.Module) -> State:
    """The weights of ``model`` under the names of a model without adapters, the adapters' product added in."""
    state = {
        name.replace(_BASE_LAYER, ""): tensor.detach()
        for name, tensor in model.state_dict().items()
        if _ADAPTER not in name
    }
    for name, module in model.named_modules():
        delta = getattr(module, "get_delta_weight", None)
        if delta is not None:
            for adapter in module.active_adapters:
                state[f"{name}.weight"] = state[f"{name}.weight"] + delta(adapter).detach()
    return state


def has_adapters(model: nn.Module) -> bool:
    """True where adapters are trained instead of the weights themselves."""
    return any(_ADAPTER in name for name, _ in model.named_parameters())


def trainable_weights(model: nn.Module) -> State:
    """The parameters that training changes, by name; the tensors are the model's own."""
    return {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrite the weights named in ``state``."""
    own = dict(model.state_dict())
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def save_model(model: SentenceTransformer, folder: Path, base: SentenceTransformer | None = None) -> None:
    """Write ``model`` as a sentence-transformers folder that needs no adapters to load, and read it back.

    Args:
        model: the model.
        folder: made where it is absent.
        base: where ``model`` has adapters, a model of the same structure without any, which is written in its place.

    Raises:
        ModelError: what was written does not give the model's vectors.
    """
    if base is not None:
        base.load_state_dict(plain_state(model))
        model = base
    write_model_folder(model, folder)
    check_model_folder(model, folder)


def mix_weights(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float) -> State:
    """Weights on the line from ``base`` (share 0) to ``tuned`` (share 1); integers are the tuned model's.

    Fine-tuned weights that are mixed with their base's keep most of what was learnt and forget less (Wortsman et al.
    2022, WiSE-FT).
    """
    return {
        name: torch.lerp(base[name].float(), tensor.float(), share).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tuned.items()
    }


def mean_weights(states: Sequence[Mapping[str, Tensor]]) -> State:
    """Mean of several models' weights (Wortsman et al. 2022, model soups); integers are the first model's."""
    total = RunningMean()
    for state in states:
        total.add({name: tensor for name, tensor in state.items() if tensor.is_floating_point()})
    return {**states[0], **total.value()}


class RunningMean:
    """Mean of weights that are added one after the other, kept on the CPU in fp32.

    Attributes:
        count: how many were added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: State = {}

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Add one more."""
        self.count += 1
        for name, tensor in state.items():
            new = tensor.detach().to("cpu", torch.float32)
            old = self._mean.get(name)
            self._mean[name] = new.clone() if old is None else old + (new - old) / self.count

    def value(self) -> State:
        """The mean so far."""
        return dict(self._mean)

    def save(self, path: Path) -> None:
        """Write it as safetensors."""
        from safetensors.torch import save_file

        save_file(self._mean, path, metadata={_COUNT: str(self.count)})

    @classmethod
    def load(cls, path: Path) -> RunningMean:
        """Read what :meth:`save` wrote; without a file, nothing was added yet."""
        from safetensors import safe_open

        loaded = cls()
        if path.exists():
            with safe_open(path, framework="pt") as stream:
                loaded.count = int(stream.metadata()[_COUNT])
                loaded._mean = {name: cast("Tensor", stream.get_tensor(name)) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        return loaded
