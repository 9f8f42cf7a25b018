"""The release bundle: one folder that production loads, whichever runtime it has.

Layout: ``model/`` (sentence-transformers, safetensors), ``onnx/`` (the export), ``manifest.json`` and a model card;
where they were made, ``onnx_int8/`` and ``onnx_fp16/`` (the export in other precisions), ``base_onnx/`` (the base
model's export, to compare with) and ``tensorrt/`` (an engine). Every export of the tuned model has its ``parity.json``.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embed_pipeline.embedding.backend import CONFIG_FILE
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import DIMENSIONS_KEY
from embed_pipeline.embedding.model_folder import read_back
from embed_pipeline.enumerations import Context
from embed_pipeline.release.manifest import (
    MANIFEST_FILE,
    BundleError,
    Hybrid,
    Manifest,
    ModelFacts,
    bundle_files,
    read_manifest,
    verify_bundle,
)
from embed_pipeline.release.model_card import CARD_FILE, model_card
from embed_pipeline.settings import Embedding
from embed_pipeline.storage import file_hash

__all__ = ["BundleError", "Lineage", "Manifest", "check_bundle_model", "read_manifest", "verify_bundle", "write_bundle"]

logger = logging.getLogger(__name__)

EXPORT_FOLDERS: Mapping[str, str] = {"fp32": "onnx", "int8": "onnx_int8", "fp16": "onnx_fp16"}
"""Precision to the folder of the tuned model's export."""
BASE_FOLDER = "base_onnx"
"""Folder of the base model's export."""
ENGINE_FOLDER = "tensorrt"

# Facts that the configuration of an export does not hold.
_NOT_EXPORTED = frozenset({"matryoshka_dimensions", "passage_context"})
_PROMPTS_FILE = "config_sentence_transformers.json"
# What training leaves beside a model and no runtime loads.
_LEFT_OUT = ("checkpoint-*", "runs", "eval", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.tmp", ".*", CARD_FILE)


@dataclass(frozen=True)
class Lineage:
    """Where a release comes from and how it did.

    Attributes:
        version: version of the release.
        created_from: data version of each table and model that it was made from.
        metrics: evaluation figures, as they are to be shown: name to number, or name to name to number.
        passage_vectors: whose vectors passages have, the base model's or the tuned model's own.
        hybrid: fusion of BM25 with the tuned model and with the base.
        parity: figures of the parity gate (``Parity.as_dict``).
        mlflow: run and model version.
        matryoshka_dimensions: shorter lengths that the vectors were trained to be cut to.
        passage_context: what is put before a passage's text.
    """

    version: str
    created_from: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    passage_vectors: Literal["own", "base"] = "own"
    hybrid: Mapping[Literal["tuned", "base"], Hybrid] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    mlflow: Mapping[str, Any] = field(default_factory=dict)
    matryoshka_dimensions: tuple[int, ...] = ()
    passage_context: Context = "none"


def write_bundle(
    output: Path, *, model: Path, onnx_folder: Path, lineage: Lineage, beside: Mapping[str, Path] | None = None
) -> Manifest:
    """Write the bundle to ``output`` and return its manifest, which is written last.

    Args:
        output: a folder that is empty or does not exist; the caller moves it into place when this returns.
        model: the sentence-transformers folder of the tuned model.
        onnx_folder: its export.
        lineage: version, figures and origin.
        beside: folder in the bundle (one of ``EXPORT_FOLDERS``, ``BASE_FOLDER`` or ``ENGINE_FOLDER``) to the export or
            engine to bring along.

    Raises:
        BundleError: ``output`` holds something, or ``model`` or ``onnx_folder`` is not what it should be.
    """
    if output.exists() and any(output.iterdir()):
        message = f"output {output} is not empty"
        raise BundleError(message)
    facts = _facts(onnx_folder, lineage)
    if not (model / "modules.json").is_file() or not any(model.rglob("*.safetensors")):
        message = f"model {model} is not a sentence-transformers folder with safetensors"
        raise BundleError(message)
    shutil.copytree(model, output / "model", ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
    for name, folder in {EXPORT_FOLDERS["fp32"]: onnx_folder, **(beside or {})}.items():
        shutil.copytree(folder, output / name, ignore=shutil.ignore_patterns("*.cache"))
    _clean_model(output / "model", facts)
    card = model_card(
        facts,
        lineage.version,
        metrics=lineage.metrics,
        passage_vectors=lineage.passage_vectors,
        hybrid=lineage.hybrid.get("tuned"),
        parity=lineage.parity,
        created_from=lineage.created_from,
    )
    for path in (output / CARD_FILE, output / "model" / CARD_FILE):
        path.write_text(card, encoding="utf-8")
    manifest = Manifest(
        version=lineage.version,
        created_from=dict(lineage.created_from),
        model=facts,
        metrics=dict(lineage.metrics),
        passage_vectors=lineage.passage_vectors,
        hybrid=dict(lineage.hybrid),
        parity=dict(lineage.parity),
        mlflow=dict(lineage.mlflow),
        files={name: file_hash(output / name) for name in bundle_files(output)},
    )
    text = json.dumps(manifest.model_dump(), indent=2, sort_keys=True, allow_nan=False)
    (output / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
    logger.info("bundle %s: %d files", lineage.version, len(manifest.files))
    return manifest


def check_bundle_model(bundle: Path, original: Path, *, trusted: bool) -> None:
    """Read the bundle's model with plain sentence-transformers, in a process of its own, as its users will.

    Args:
        bundle: the bundle.
        original: the sentence-transformers folder that was evaluated.
        trusted: run code that the model brings.

    Raises:
        ModelError: the model cannot be read, or its vectors for texts of some length are others than the original's.
    """
    facts = read_manifest(bundle).model
    embedding = Embedding(
        precision="fp32",
        query_prefix=facts.query_prefix,
        passage_prefix=facts.passage_prefix,
        trust_remote_code=trusted,
    )
    evaluated = Encoder.load(original, embedding)
    least = read_back(evaluated, bundle / "model", trusted=trusted)
    logger.info("sentence-transformers reads the released model back: least cosines %s", least)


def _facts(onnx_folder: Path, lineage: Lineage) -> ModelFacts:
    path = onnx_folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return ModelFacts(
            **{name: config[name] for name in ModelFacts.model_fields if name not in _NOT_EXPORTED},
            matryoshka_dimensions=list(lineage.matryoshka_dimensions),
            passage_context=lineage.passage_context,
        )
    except (OSError, ValueError, KeyError) as error:
        message = f"{path} does not describe an export: {error}"
        raise BundleError(message) from error


def _clean_model(folder: Path, facts: ModelFacts) -> None:
    """Write the prefixes where sentence-transformers looks for them, and the lengths that were trained where others do.

    Where the base model lay when it was trained is dropped.
    """
    path = folder / _PROMPTS_FILE
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config["prompts"] = {
        **(config.get("prompts") or {}),
        "query": facts.query_prefix,
        "document": facts.passage_prefix,
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.rglob("*config.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            continue
        cleaned = {name: value for name, value in values.items() if name not in {DIMENSIONS_KEY, "_name_or_path"}}
        if DIMENSIONS_KEY in values and facts.matryoshka_dimensions:
            cleaned[DIMENSIONS_KEY] = facts.matryoshka_dimensions
        if cleaned != values:
            path.write_text(json.dumps(cleaned, indent=2) + "\n", encoding="utf-8")
