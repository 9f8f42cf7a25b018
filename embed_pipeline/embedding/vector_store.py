"""Vectors of a whole call kept on disk: the corpus is encoded once a model, not once a stage.

A call is found again by the model's weights, what computes them and all of its texts in order, so what is read back
is bit for bit what the same call would compute; no vector ever depends on what else was encoded before.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.storage import replacing

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_KEPT = 16
_LEAST_TEXTS = 64
"""Smaller calls are computed faster than they are looked up."""


class VectorStore:
    """A folder of call results, ``<key>.npy``; the sixteen used last are kept."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Open the folder for one model.

        Args:
            folder: made when something is put.
            identity: all that decides the bits of a vector, other than its text: weights, runtime, precision, batches.
        """
        self._folder, self._identity = folder, identity

    def key(self, texts: Sequence[str]) -> str | None:
        """The call's key; None: it is too small to keep."""
        if len(texts) < _LEAST_TEXTS:
            return None
        digest = hashlib.sha256(self._identity.encode())
        for text in texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)} ".encode() + content)
        return digest.hexdigest()[:32]

    def get(self, key: str, shape: tuple[int, int]) -> Floats | None:
        """The stored vectors, or None; a file that is damaged or of another shape is removed, not used."""
        path = self._folder / f"{key}.npy"
        if not path.is_file():
            return None
        try:
            vectors: Floats = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            logger.warning("stored vectors %s are damaged (%s) and computed again", path.name, error)
            path.unlink()
            return None
        if vectors.shape != shape or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
            logger.warning("stored vectors %s are not those of this call and computed again", path.name)
            path.unlink()
            return None
        os.utime(path)
        return vectors

    def put(self, key: str, vectors: Floats) -> None:
        """Store a call's vectors in one step, and drop what was not used for longest."""
        with replacing(self._folder / f"{key}.npy") as staged, staged.open("wb") as stream:
            np.save(stream, vectors)
        by_use = sorted(self._folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
        for path in by_use[:-_KEPT]:
            path.unlink(missing_ok=True)
