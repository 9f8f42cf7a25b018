"""Vectors kept on disk, in calls: the corpus is encoded once a model, not once a stage, and a new batch alone.

A call is found again by the model's weights, what computes them and all of its texts in order, so what is read back
is bit for bit what the same call would compute; no vector ever depends on what else was encoded before. The passages of
a document batch are a call of their own, whatever they are encoded with.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.storage import StorageError, explain_system_error, replacing

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_KEPT = 16
_BATCHES = "batches"
_KEPT_SECONDS = 30 * 24 * 3600
_LEAST_MAPPED = 32 * 1024 * 1024
"""Vectors of fewer bytes are held in memory."""
_LEAST_TEXTS = 64
"""Smaller calls, but for batches, are computed faster than they are looked up."""


class VectorStore:
    """A folder of call results: the sixteen used last, and the batches that were used within thirty days."""

    def __init__(self, folder: Path, identity: str) -> None:
        """Open the folder for one model.

        Args:
            folder: made when something is put.
            identity: all that decides the bits of a vector, other than its text: weights, runtime, precision, batches.
        """
        self._folder, self._identity = folder, identity
        self._pruned = False

    def place(self, texts: Sequence[str], *, batch: bool = False) -> Path | None:
        """The file of the call; None: it is too small to keep.

        Args:
            texts: all of the call.
            batch: whether they are the passages of a document batch.
        """
        if not batch and len(texts) < _LEAST_TEXTS:
            return None
        digest = hashlib.sha256(self._identity.encode())
        for text in texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(content)} ".encode() + content)
        return (self._folder / _BATCHES if batch else self._folder) / f"{digest.hexdigest()[:32]}.npy"

    def get(self, path: Path, shape: tuple[int, int]) -> Floats | None:
        """The stored vectors, or None; a file that is damaged or of another shape is removed, not used."""
        if not path.is_file():
            return None
        try:
            vectors: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
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

    def room(self, shape: tuple[int, int]) -> Floats:
        """An array for vectors; a large one lies in a nameless file, of which the system holds what it has memory for.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        size = 4 * shape[0] * shape[1]
        if size < _LEAST_MAPPED:
            return np.empty(shape, np.float32)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._folder) as stream:
                # A full disk is an error here, and not a signal when a vector is written.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(stream.fileno(), 0, size)
                return np.memmap(stream, np.float32, "r+", shape=shape)
        except OSError as error:
            raise StorageError(explain_system_error(error, self._folder)) from error

    def put(self, path: Path, vectors: Floats) -> None:
        """Store a call's vectors in one step, and drop what was not used for longest."""
        with replacing(path) as staged, staged.open("wb") as stream:
            np.save(stream, vectors)
        if path.parent == self._folder:
            by_use = sorted(self._folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
            _remove(by_use[:-_KEPT])
        elif not self._pruned:
            self._pruned = True
            oldest = time.time() - _KEPT_SECONDS
            _remove([path for path in path.parent.glob("*.npy") if path.stat().st_mtime < oldest])


def release(vectors: Floats) -> None:
    """Let go of what was read or written of vectors that lie in a file; those in memory stay as they are."""
    if isinstance(vectors, np.memmap) and vectors.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        vectors._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # noqa: SLF001 - numpy shows it nowhere else


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
