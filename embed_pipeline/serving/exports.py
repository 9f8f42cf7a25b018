"""Which of a bundle's exports is served: the fastest on this machine of those that the release proved good enough.

The layout is that of :mod:`embed_pipeline.release.bundle`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from embed_pipeline.embedding.onnx_backend import MODEL_FILE, OnnxBackend
from embed_pipeline.release.bundle import EXPORT_FOLDERS, Manifest
from embed_pipeline.release.parity import read_parity
from embed_pipeline.serving.errors import ServingError
from embed_pipeline.settings import Serving

logger = logging.getLogger(__name__)

_ROUNDS = 7
_ROWS = 8
_ROW_TOKENS = 64


@dataclass(frozen=True)
class Export:
    """An opened export.

    Attributes:
        backend: the model.
        precision: fp32 or int8.
    """

    backend: OnnxBackend
    precision: str


def has_export(manifest: Manifest, folder: str) -> bool:
    """Whether the bundle holds an export in ``folder``."""
    return f"{folder}/{MODEL_FILE}" in manifest.files


def open_export(bundle: Path, manifest: Manifest, serving: Serving) -> Export:
    """Open the export to serve: the one that ``serving.precision`` names, or the fastest allowed one.

    Raises:
        ServingError: there is no such export, or its parity does not allow it.
        ModelError: an export cannot be read.
        ReleaseError: the parity figures of an export are missing or damaged.
    """
    refused = {precision: _refusal(bundle, manifest, precision, serving) for precision in EXPORT_FOLDERS}
    wanted = tuple(EXPORT_FOLDERS) if serving.precision == "auto" else (serving.precision,)
    allowed = [precision for precision in wanted if refused[precision] is None]
    if not allowed:
        message = f"release {manifest.version}: {'; '.join(refused[precision] or '' for precision in wanted)}"
        raise ServingError(message)
    exports = [
        Export(OnnxBackend(bundle / EXPORT_FOLDERS[precision], threads=serving.threads), precision)
        for precision in allowed
    ]
    return exports[0] if len(exports) == 1 else _fastest(exports)


def _refusal(bundle: Path, manifest: Manifest, precision: str, serving: Serving) -> str | None:
    """Why an export may not be served; None: it may."""
    folder = EXPORT_FOLDERS[precision]
    if not has_export(manifest, folder):
        return f"it holds no {folder}/{MODEL_FILE}"
    if precision != "int8":
        # Their parity is a gate of the release itself.
        return None
    delta = read_parity(bundle / folder).ndcg_delta
    # Written so that a value that is not a number is refused.
    if not abs(delta) <= serving.max_int8_ndcg_delta:
        bound = serving.max_int8_ndcg_delta
        return f"{folder} changes nDCG@10 by {delta:+.4f}, more than serving.max_int8_ndcg_delta = {bound}"
    return None


def _fastest(exports: Sequence[Export]) -> Export:
    """The export that takes least time for a batch, measured in turns so that a busy moment meets them all."""
    rows = [np.full(min(_ROW_TOKENS, export.backend.max_tokens), 1, np.int32) for export in exports[:1]] * _ROWS
    times: list[list[float]] = [[] for _ in exports]
    for export in exports:
        export.backend.infer(rows)
    for _ in range(_ROUNDS):
        for export, taken in zip(exports, times, strict=True):
            started = time.perf_counter()
            export.backend.infer(rows)
            taken.append(time.perf_counter() - started)
    medians = [median(taken) for taken in times]
    for export, seconds in zip(exports, medians, strict=True):
        logger.info("%s takes %.1f ms for a batch of %d tokens", export.precision, seconds * 1000, _ROWS * len(rows[0]))
    return exports[int(np.argmin(medians))]
