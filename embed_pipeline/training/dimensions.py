"""Shorter lengths that a model's vectors may be cut to (Matryoshka; Kusupati et al. 2022), declared with the model.

They stand in the transformer's own ``config.json`` as ``matryoshka_dimensions``, the name under which servers such as
vLLM look for them, and so survive every loading and saving.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embed_pipeline.embedding.models import embedding_dimensions
from embed_pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_KEY = "matryoshka_dimensions"


def declare_dimensions(model: SentenceTransformer, dimensions: Sequence[int]) -> tuple[int, ...]:
    """Write the lengths into the configuration of ``model`` and return them, shortest first.

    Raises:
        TrainingError: a length is not below the model's own, or the model has no transformer to declare them in.
    """
    if not dimensions:
        return ()
    own = embedding_dimensions(model)
    longest = max(dimensions)
    if longest >= own:
        message = (
            f"training.matryoshka_dimensions holds {longest}; the model's vectors are {own} long, cuts are shorter"
        )
        raise TrainingError(message)
    encoder = getattr(model[0], "auto_model", None)
    if encoder is None:
        message = f"training.matryoshka_dimensions: {type(model[0]).__name__} has no configuration to declare them in"
        raise TrainingError(message)
    lengths = tuple(sorted(set(dimensions)))
    encoder.config.matryoshka_dimensions = list(lengths)
    return lengths


def declared_dimensions(model_folder: Path) -> tuple[int, ...]:
    """The lengths that a model's folder declares, shortest first; none where it declares none.

    Raises:
        TrainingError: the folder is not a sentence-transformers model.
    """
    try:
        first = json.loads((model_folder / "modules.json").read_text(encoding="utf-8"))[0]
        config = model_folder / str(first["path"]) / "config.json"
        values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"{model_folder} is not a sentence-transformers model: {error}"
        raise TrainingError(message) from error
    return tuple(sorted(int(length) for length in values.get(_KEY, ())))
