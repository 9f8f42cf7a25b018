"""Writing a model as a folder that every loader reads, and the check that plain sentence-transformers reads it right.

sentence-transformers 5.4 and transformers 5 write configurations that only they read. The older form says the same,
and is what sentence-transformers since 2.0, transformers 4, Text Embeddings Inference and vLLM know.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import TASKS, ModelError, max_tokens_of
from embed_pipeline.settings import Embedding

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import nn

Floats = NDArray[np.float32]

LEAST_COSINE = 0.99999
"""A folder is kept only where every trial text's vector, as it is read back, comes so near to the model's own."""

_LIBRARY = "sentence_transformers"
_POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_READ_AS = "sentence_embedding"
# Of one machine, or of transformers 5 alone.
_DROPPED_OF_TOKENIZERS = ("backend", "is_local", "local_files_only", "name_or_path")
_DROPPED_OF_MODELS = ("auto_map", "_name_or_path")
_ANY_TOKENIZER = "PreTrainedTokenizerFast"
_SENTENCE = (
    "The reader opens a file, counts its lines and closes it again; errors such as 404 or E_NOENT are raised, and a "
    "Größe or 大きさ is kept as it is. "
)
_TRIAL_WORDS = (1, 2, 3, 7, 15, 40, 90, 200)
_LONGEST_TRIAL_TOKENS = 1_024
_READER = """
import sys, json
import numpy as np
from sentence_transformers import SentenceTransformer
asked = json.load(sys.stdin)
model = SentenceTransformer(asked["folder"], device="cpu", local_files_only=True, trust_remote_code=asked["trusted"])
found = {"query": model.encode_query(asked["texts"]), "passage": model.encode_document(asked["texts"])}
np.savez(asked["output"], **found)
"""
_READER_SECONDS = 600


def write_model_folder(model: SentenceTransformer, folder: Path) -> None:
    """Write ``model`` to ``folder`` in the form that every loader reads."""
    model.save_pretrained(str(folder), create_model_card=False)
    modules = _read(folder / "modules.json")
    for described, module in zip(modules, model, strict=True):
        described["type"] = _old_type(described["type"])
        _rewrite(module, folder / described["path"])
    _write(folder / "modules.json", modules)


def check_model_folder(model: SentenceTransformer, folder: Path) -> None:
    """Raise where plain sentence-transformers, in this process, reads another model from ``folder`` than ``model``.

    Raises:
        ModelError: with the text that is furthest off.
    """
    from sentence_transformers import SentenceTransformer

    trusted = any(type(module).__module__.startswith("transformers_modules") for module in model.modules())

    def read(texts: Sequence[str]) -> dict[str, Floats]:
        plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=trusted)
        return {"query": plain.encode_query(list(texts)), "passage": plain.encode_document(list(texts))}

    _compare(Encoder.of(model, Embedding()), folder, read)


def read_back(original: Encoder, folder: Path, *, trusted: bool = False, path: str | None = None) -> dict[str, float]:
    """Read ``folder`` with plain sentence-transformers in a process of its own, and compare vectors.

    Args:
        original: the model that was evaluated.
        folder: what was written of it.
        trusted: whether the folder may bring code.
        path: ``PYTHONPATH`` of the process, for other versions of the libraries; None: as here.

    Returns:
        Least cosine of queries and of passages.

    Raises:
        ModelError: it cannot be read, or its vectors are others.
    """

    def read(texts: Sequence[str]) -> dict[str, Floats]:
        with tempfile.TemporaryDirectory() as made:
            output = Path(made) / "vectors.npz"
            asked = {"folder": str(folder.absolute()), "texts": list(texts), "output": str(output), "trusted": trusted}
            environment = os.environ | ({} if path is None else {"PYTHONPATH": path})
            done = subprocess.run(  # noqa: S603 - this very interpreter and a script of ours
                [sys.executable, "-c", _READER],
                input=json.dumps(asked),
                text=True,
                capture_output=True,
                env=environment,
                cwd=made,
                timeout=_READER_SECONDS,
                check=False,
            )
            if done.returncode:
                reason = done.stderr.strip().rpartition("\n")[2]
                message = f"{folder}: sentence-transformers cannot read what was written: {reason}"
                raise ModelError(message)
            with np.load(output, allow_pickle=False) as found:
                return {kind: found[kind] for kind in TASKS}

    return _compare(original, folder, read)


def trial_texts(encoder: Encoder) -> list[str]:
    """Texts of every length, from a word to more than the model reads, or than 1,024 tokens."""
    words = _SENTENCE.split()
    per_word = max(1.0, encoder.count_tokens([_SENTENCE])[0] / len(words))
    longest = int(min(encoder.max_tokens * 1.3, _LONGEST_TRIAL_TOKENS) / per_word) + 1
    lengths = sorted({*(length for length in _TRIAL_WORDS if length < longest), longest})
    return [" ".join((words * (length // len(words) + 1))[:length]) for length in lengths]


def _compare(original: Encoder, folder: Path, read: Callable[[Sequence[str]], dict[str, Floats]]) -> dict[str, float]:
    texts = trial_texts(original)
    try:
        found = read(texts)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, LookupError) as error:
        if isinstance(error, ModelError):
            raise
        message = f"{folder}: sentence-transformers cannot read what was written: {error}"
        raise ModelError(message) from error
    least: dict[str, float] = {}
    for kind in TASKS:
        vectors = np.asarray(found[kind], dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1)
        cosines = (vectors * original.encode(texts, kind)).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        least[kind] = float(cosines.min())
        # Written so that a value that is not a number is refused.
        if not least[kind] >= LEAST_COSINE:
            words = len(texts[int(cosines.argmin())].split())
            message = (
                f"{folder}: read back by sentence-transformers, a {kind} of {words} words has another vector than in "
                f"memory (cosine {least[kind]:.5f}): this model cannot be saved faithfully; choose another base"
            )
            raise ModelError(message)
    return least


def _old_type(name: str) -> str:
    """The name by which every version knows a module of the library; others stay as they are."""
    return f"{_LIBRARY}.models.{name.rpartition('.')[2]}" if name.startswith(f"{_LIBRARY}.") else name


def _rewrite(module: nn.Module, folder: Path) -> None:
    """Bring the configuration files of a module that was saved in ``folder`` to the older form."""
    from sentence_transformers.base.modules import Dense, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    if isinstance(module, Router):
        path = folder / "router_config.json"
        config = _read(path)
        config["types"] = {name: _old_type(kind) for name, kind in config["types"].items()}
        if not config["parameters"].get("route_mappings"):
            config["parameters"].pop("route_mappings", None)
        _write(path, config)
        for route, names in config["structure"].items():
            for part, name in zip(module.sub_modules[route], names, strict=True):
                _rewrite(part, folder / name)
    elif isinstance(module, Transformer):
        _rewrite_transformer(module, folder)
    elif isinstance(module, Pooling):
        config = _read(folder / "config.json")
        modes = [config["pooling_mode"]] if isinstance(config["pooling_mode"], str) else config["pooling_mode"]
        if list(modes) != [mode for mode in _POOLING_MODES if mode in modes]:
            # The older form has an order of its own.
            return
        flags = {flag: mode in modes for mode, flag in _POOLING_MODES.items()}
        width = {"word_embedding_dimension": config["embedding_dimension"]}
        _write(folder / "config.json", width | flags | {"include_prompt": config["include_prompt"]})
    elif isinstance(module, Dense):
        config = _read(folder / "config.json")
        names = ("module_input_name", "module_output_name")
        if all(config.get(name, _READ_AS) == _READ_AS for name in names):
            config = {name: value for name, value in config.items() if name not in names}
        _write(folder / "config.json", config)


def _rewrite_transformer(module: Any, folder: Path) -> None:  # noqa: ANN401 - the library is not typed
    from sentence_transformers import SentenceTransformer

    limit = max_tokens_of(SentenceTransformer(modules=[module], device="cpu"))
    path = folder / "sentence_bert_config.json"
    config = _read(path)
    if config.get("transformer_task") == "feature-extraction":
        # The rest is what the library takes for a text model that says nothing.
        config = {}
    _write(path, {**config, "max_seq_length": limit, "do_lower_case": bool(module.do_lower_case)})
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = {name: value for name, value in _read(path).items() if name not in _DROPPED_OF_TOKENIZERS}
        config["model_max_length"] = limit
        config["padding_side"] = module.tokenizer.padding_side
        config["model_input_names"] = list(module.tokenizer.model_input_names)
        if config.get("tokenizer_class") == "TokenizersBackend":
            config["tokenizer_class"] = _ANY_TOKENIZER
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        _write(path, config)
    path = folder / "config.json"
    config = {name: value for name, value in _read(path).items() if name not in _DROPPED_OF_MODELS}
    _write(path, {**config, **_old_rotation(config)})


def _old_rotation(config: dict[str, Any]) -> dict[str, Any]:
    """How positions are rotated, under the names of transformers 4, which takes a default where they are missing."""
    rotation = config.get("rope_parameters")
    if not isinstance(rotation, dict):
        return {}
    if "rope_theta" in rotation:
        scaled = {name: value for name, value in rotation.items() if name != "rope_theta"}
        scaling = {"rope_scaling": scaled} if scaled.get("rope_type", "default") != "default" else {}
        return {"rope_theta": rotation["rope_theta"], **scaling}
    names = ("global_rope_theta", "local_rope_theta") if "modernbert" in str(config.get("model_type")) else None
    wide, near = names or ("rope_theta", "rope_local_base_freq")
    kinds = {"full_attention": wide, "sliding_attention": near}
    return {name: rotation[kind]["rope_theta"] for kind, name in kinds.items() if kind in rotation}


def _read(path: Path) -> Any:  # noqa: ANN401 - whatever the library has just written
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
