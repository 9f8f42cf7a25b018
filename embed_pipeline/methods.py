"""What makes each asset, besides its inputs and settings: a number that is raised when an upgrade changes results.

Hashes of the code that makes the assets are recorded in ``embed_pipeline_tests/methods.json``. A test fails when that
code changes, until the number is raised, where results change, and the hashes are recorded with ``make methods``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from embed_pipeline.settings import PARTS, TRAINING, Settings


@dataclass(frozen=True)
class Method:
    """How an asset, or a part of one, is made.

    Attributes:
        version: raised when the same inputs and settings give another result than before.
        rooms: the rooms whose code makes it.
    """

    version: int
    rooms: tuple[str, ...]


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "documents": Method(9, ("corpus", "text")),
        "segments": Method(3, ("corpus", "text")),
        "document_artifacts": Method(5, ("synthesis", "llm", "text")),
        "qa_pairs": Method(10, ("synthesis", "llm", "embedding", "text")),
        "qa_scores": Method(5, ("synthesis", "llm", "embedding", "text")),
        "corpus": Method(4, ("corpus", "training_data", "text")),
        "qa_dataset": Method(4, ("synthesis", "training_data", "embedding", "text")),
        "dataset_split": Method(1, ("training_data", "text")),
        "base_comparison": Method(2, ("evaluation", "embedding")),
        "hard_negatives": Method(4, ("training_data", "embedding", "llm", "text")),
        "training_examples": Method(1, ("training_data",)),
        TRAINING: Method(4, ("training", "embedding")),
        "finetuned_model": Method(5, ("training", "embedding", "evaluation", "text")),
        "retrieval_evaluation": Method(7, ("evaluation", "embedding")),
        "onnx_model": Method(3, ("release", "embedding")),
        "onnx_precisions": Method(4, ("release", "embedding")),
        "base_onnx_model": Method(2, ("release", "embedding")),
        "tensorrt_engine": Method(2, ("release", "embedding")),
        "release": Method(3, ("release",)),
        "champion_comparison": Method(2, ("evaluation", "embedding")),
        "deployment": Method(1, ("serving", "embedding")),
    }
)
"""Step of the asset graph, named as its first asset, to how it is made."""


def made_by(step: str, settings: Settings) -> str:
    """What a result depends on besides its inputs: the versions of a step's methods and the settings that decide it."""
    versions = ".".join(str(METHODS[part].version) for part in (step, *PARTS.get(step, ())))
    return f"{versions}-{settings.digest(step)}"
