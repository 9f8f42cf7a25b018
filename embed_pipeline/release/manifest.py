"""What a release bundle says of itself: ``manifest.json``, and the check that its files are what it says."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embed_pipeline.enumerations import Context
from embed_pipeline.storage import file_hash

MANIFEST_FILE = "manifest.json"


class ReleaseError(ValueError):
    """An export, a bundle or its check failed."""


class BundleError(ValueError):
    """A bundle is incomplete, changed, or not a bundle."""


class ModelFacts(BaseModel):
    """What a client of the model must know.

    ``passage_context`` is what is put before a passage's text, by the rule of :mod:`embed_pipeline.text.passages`;
    ``passage_prefix`` is put before both.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    query_prefix: str
    passage_prefix: str
    passage_context: Context = "none"
    base_model: str
    matryoshka_dimensions: list[int] = []


class Hybrid(BaseModel):
    """How BM25 and one model are fused for this corpus, as it was chosen on the dev questions.

    Attributes:
        dense_weight: share of the z-score of the model's scores; the rest is that of BM25's.
        ndcg_10: nDCG@10 on the dev questions.
        reciprocal_ranks_ndcg_10: the same with the two rankings fused by reciprocal ranks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense_weight: float = Field(ge=0, le=1)
    ndcg_10: float
    reciprocal_ranks_ndcg_10: float


class Manifest(BaseModel):
    """The contents of ``manifest.json``.

    Attributes:
        format: version of this layout.
        version: version of the release.
        created_from: data version of each table and model that it was made from.
        model: what a client must know.
        metrics: evaluation figures.
        passage_vectors: ``base``: passages have the base model's vectors, bit for bit; ``own``: they have others.
        hybrid: fusion of BM25 with the tuned model and with the base; empty without dev questions to choose it on.
        parity: figures of the export's parity gate.
        mlflow: run and model version.
        files: sha256 of every other file, by path relative to the bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    version: str = Field(min_length=1)
    created_from: dict[str, str] = {}
    model: ModelFacts
    metrics: dict[str, Any] = {}
    passage_vectors: Literal["own", "base"] = "own"
    hybrid: dict[Literal["tuned", "base"], Hybrid] = {}
    parity: dict[str, Any] = {}
    mlflow: dict[str, Any] = {}
    files: dict[str, str]


def read_manifest(bundle: Path) -> Manifest:
    """Read ``manifest.json`` of ``bundle``.

    Raises:
        BundleError: it is missing, is not JSON, or does not have the fields of a manifest.
    """
    path = bundle / MANIFEST_FILE
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise BundleError(message) from error
    except (UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        message = f"{path} is not a manifest: {error}"
        raise BundleError(message) from error


def verify_bundle(bundle: Path) -> Manifest:
    """Compare every file of ``bundle`` with the manifest's hashes and return the manifest.

    Raises:
        BundleError: naming a file that is missing, differs, is not listed, or lies outside the bundle.
    """
    manifest = read_manifest(bundle)
    root = bundle.resolve()
    for name, expected in sorted(manifest.files.items()):
        pure = PurePosixPath(name)
        path = bundle / pure
        if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(root):
            message = f"bundle {bundle.name}: {name} lies outside the bundle"
            raise BundleError(message)
        if not path.is_file():
            message = f"bundle {bundle.name}: {name} is missing"
            raise BundleError(message)
        if file_hash(path) != expected:
            message = f"bundle {bundle.name}: {name} is not the file that was released (its sha256 differs)"
            raise BundleError(message)
    unknown = sorted(set(bundle_files(bundle)) - set(manifest.files))
    if unknown:
        message = f"bundle {bundle.name}: {unknown[0]} is not in the manifest"
        raise BundleError(message)
    return manifest


def bundle_files(bundle: Path) -> list[str]:
    """Every file of ``bundle`` but the manifest, by relative path, sorted."""
    paths = (path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if not path.is_dir())
    return sorted(path for path in paths if path != MANIFEST_FILE)
