"""What adopting a release asks of an index that exists, and whether a sample of that index holds the base's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.model_folder import trial_texts
from embed_pipeline.release.manifest import Manifest, ReleaseError

Floats = NDArray[np.float32]

SAME_COSINE = 0.999
"""Cosine from which a stored vector counts as the base's own: what rounding to 8 bits or another runtime leaves."""
_TEXT, _VECTOR = "text", "vector"


@dataclass(frozen=True)
class IndexCheck:
    """What a sample of an index says.

    Attributes:
        texts: texts compared.
        least_cosine: least cosine between a stored vector and the base's.
        others: texts whose stored vector is not the base's, the furthest first.
    """

    texts: int
    least_cosine: float
    others: list[str]


def keeps_passages(base: Encoder, tuned: Encoder) -> bool:
    """Whether passages have the same vectors, bit for bit, under both, on texts of every length."""
    texts = trial_texts(base)
    return np.array_equal(base.encode(texts, "passage"), tuned.encode(texts, "passage"))


def steps(manifest: Manifest) -> list[str]:
    """What has to be done to put the release before an existing index, a sentence each."""
    name, facts = manifest.version, manifest.model
    prefix = f"{facts.query_prefix!r} before each" if facts.query_prefix else "nothing before them"
    queries = f"embed queries with release {name} ({prefix}): served as a model whose name ends in -query"
    context = {
        "none": [],
        "title": ["before each passage's text belongs its document's title and a blank line"],
        "path": ["before each passage's text belong its document's title, the headings above it, and a blank line"],
    }[facts.passage_context]
    if manifest.passage_vectors == "base":
        return [
            f"an index that was filled with {facts.base_model} stays valid: the same text has the same vector",
            queries,
            "new passages can be embedded with either",
            *context,
        ]
    passages = f"{facts.passage_prefix!r} before each" if facts.passage_prefix else "nothing before them"
    return [
        f"embed every passage again with release {name} ({passages}) into a new index",
        f"vectors of {facts.base_model} are not comparable with the release's",
        queries,
        "switch queries and index at the same moment",
        *context,
    ]


def read_sample(path: Path) -> tuple[list[str], Floats]:
    """A sample of an index: texts, and their vectors as float32 (texts, d).

    Args:
        path: a Parquet file with columns ``text`` and ``vector`` (numbers), or an ``.npz`` file with arrays ``texts``
            and ``vectors``.

    Raises:
        ReleaseError: it cannot be read, or does not hold that.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                texts, rows = [str(text) for text in arrays["texts"]], np.asarray(arrays["vectors"])
        else:
            frame = pl.read_parquet(path, columns=[_TEXT, _VECTOR])
            texts, rows = frame[_TEXT].cast(pl.String).to_list(), np.array(frame[_VECTOR].to_list())
        vectors = rows.astype(np.float32)
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, pl.exceptions.PolarsError) as error:
        message = (
            f"{path} is no sample of an index: {error}; give a Parquet file with columns text and vector, or an .npz "
            "file with arrays texts and vectors"
        )
        raise ReleaseError(message) from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not texts:  # noqa: PLR2004 - a matrix has two axes
        message = (
            f"{path} holds {len(texts)} texts and vectors of shape {vectors.shape}; each text must have one vector"
        )
        raise ReleaseError(message)
    return texts, vectors


def check_index(texts: Sequence[str], vectors: Floats, base: Encoder) -> IndexCheck:
    """Compare stored vectors with those that the base gives the same texts as passages.

    Args:
        texts: the texts as they were embedded, without the model's prefix.
        vectors: their stored vectors, float32 (texts, d), of any length.
        base: the base model.

    Raises:
        ReleaseError: the vectors have another number of dimensions than the base's.
    """
    if vectors.shape[1] != base.dimensions:
        message = f"the index has vectors of {vectors.shape[1]} dimensions, the base model of {base.dimensions}"
        raise ReleaseError(message)
    own = base.encode(list(texts), "passage", label="Encoding the sample")
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    cosines = (own * vectors).sum(axis=1) / lengths
    order = np.argsort(cosines, kind="stable")
    return IndexCheck(
        len(texts), float(cosines[order[0]]), [texts[row] for row in order if not cosines[row] >= SAME_COSINE]
    )
