"""Which form of a released model is served: the fastest on this machine of those that are proven good enough.

Exports that onnxruntime computes are proven by the release (:mod:`embed_pipeline.release.parity`), OpenVINO and torch
in half precision here (:mod:`embed_pipeline.serving.proof`). The layout is that of
:mod:`embed_pipeline.release.bundle`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.forward import Precision
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.embedding.onnx_backend import MODEL_FILE, OnnxBackend
from embed_pipeline.embedding.openvino_backend import GROUP_SIZES, OpenVinoBackend, OpenVinoPrecision
from embed_pipeline.release.bundle import EXPORT_FOLDERS, Manifest
from embed_pipeline.release.parity import Floats, cosines_of, read_parity
from embed_pipeline.serving.errors import ServingError
from embed_pipeline.serving.proof import proof_texts
from embed_pipeline.settings import Settings
from embed_pipeline.storage import table_path
from embed_pipeline.training.hardware import cpu_has_bf16

logger = logging.getLogger(__name__)

TORCH_PRECISIONS: Mapping[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""What torch may compute in; the exports that onnxruntime may run are ``EXPORT_FOLDERS``."""
OPENVINO_PRECISIONS: Mapping[str, OpenVinoPrecision] = {"fp32": "fp32", "int8": "int8", "bf16": "bf16"}
"""What OpenVINO may compute the fp32 export in."""

_ROUNDS = 7
_ROWS = 8
_ROW_TOKENS = 64


@dataclass(frozen=True)
class Export:
    """A model, opened.

    Attributes:
        backend: the model.
        precision: fp32, int8, fp16 or bf16.
    """

    backend: Backend
    precision: str

    @property
    def name(self) -> str:
        """Precision and runtime, for a person."""
        return f"{self.precision} with {self.backend.runtime}"


class _RefusedError(ValueError):
    """This form of the model may not or cannot be served here."""


def has_export(manifest: Manifest, folder: str) -> bool:
    """Whether the bundle holds an export in ``folder``."""
    return f"{folder}/{MODEL_FILE}" in manifest.files


def open_export(bundle: Path, manifest: Manifest, settings: Settings) -> Export:
    """Open what ``serving.backend`` and ``serving.precision`` name, or the fastest of what they leave open.

    Raises:
        ServingError: nothing of that kind is there, or it may not be served.
        ModelError: an export cannot be read.
        ReleaseError: the parity figures of an export are missing or damaged.
    """
    serving, opener = settings.serving, _Opener(bundle, manifest, settings)
    openings: list[tuple[str, str, Callable[[str], Export]]] = [
        *(("onnx", precision, opener.open_onnx) for precision in EXPORT_FOLDERS),
        *(("openvino", precision, opener.open_openvino) for precision in OPENVINO_PRECISIONS),
        *(("torch", precision, opener.open_torch) for precision in TORCH_PRECISIONS),
    ]
    exports: list[Export] = []
    refused: list[str] = []
    for backend, precision, opening in openings:
        if serving.backend not in {"auto", backend} or serving.precision not in {"auto", precision}:
            continue
        try:
            exports.append(opening(precision))
        except _RefusedError as error:
            refused.append(str(error))
    if not exports:
        message = f"release {manifest.version}: {'; '.join(refused)}"
        raise ServingError(message)
    for reason in refused:
        logger.info("release %s: not served: %s", manifest.version, reason)
    return exports[0] if len(exports) == 1 else _fastest(exports)


class _Opener:
    """Opens the forms of one release, those that may be served here."""

    def __init__(self, bundle: Path, manifest: Manifest, settings: Settings) -> None:
        self._bundle = bundle
        self._manifest = manifest
        self._settings = settings
        self._exported = bundle / EXPORT_FOLDERS["fp32"]

    def open_onnx(self, precision: str) -> Export:
        folder, bound = EXPORT_FOLDERS[precision], self._settings.serving.max_int8_ndcg_delta
        if not has_export(self._manifest, folder):
            missed = f"{precision} is not among release.precisions or missed its bound, as onnx_precisions says"
            message = f"it holds no {folder}/{MODEL_FILE}: {missed}"
            raise _RefusedError(message)
        # The parity of the others is a gate of the release itself.
        if precision == "int8":
            delta = read_parity(self._bundle / folder).ndcg_delta
            # Written so that a value that is not a number is refused.
            if not abs(delta) <= bound:
                message = f"{folder} changes nDCG@10 by {delta:+.4f}, more than serving.max_int8_ndcg_delta = {bound}"
                raise _RefusedError(message)
        return Export(OnnxBackend(self._bundle / folder, threads=self._settings.serving.threads), precision)

    def open_openvino(self, precision: str) -> Export:
        # In other precisions there are no groups: one try.
        sizes = GROUP_SIZES if precision == "int8" else GROUP_SIZES[:1]
        refused: list[str] = []
        for size in sizes:
            try:
                return self._open_openvino(precision, size)
            except _RefusedError as error:
                refused.append(str(error))
        message = "; ".join(dict.fromkeys(refused))
        raise _RefusedError(message)

    def _open_openvino(self, precision: str, group_size: int) -> Export:
        named, threads = OPENVINO_PRECISIONS[precision], self._settings.serving.threads
        try:
            backend = OpenVinoBackend(self._exported, named, group_size=group_size, threads=threads)
        except ModelError as error:
            message = f"{precision} with openvino: {error}"
            raise _RefusedError(message) from error
        return self._prove(Export(backend, precision))

    def open_torch(self, precision: str) -> Export:
        if not _is_native(precision):
            message = f"nothing in this machine computes {precision} with torch"
            raise _RefusedError(message)
        from embed_pipeline.embedding.torch_backend import TorchBackend

        model, threads = self._bundle / "model", self._settings.serving.threads
        try:
            backend = TorchBackend(model, self._exported, TORCH_PRECISIONS[precision], threads=threads)
        except ModelError as error:
            # A model that brings code was exported on somebody's word for it; serving takes nobody's.
            message = f"{precision} with torch: {error}"
            raise _RefusedError(message) from error
        export = Export(backend, precision)
        return export if precision == "fp32" else self._prove(export)

    def _prove(self, export: Export) -> Export:
        """``export``, where it gives the vectors of the fp32 export, as near as the settings want them."""
        texts, bound = self._texts, self._settings.serving.min_proven_cosine
        if not texts:
            message = f"{export.name} cannot be measured: there is neither a corpus nor an export's parity"
            raise _RefusedError(message)
        try:
            found = float(cosines_of(export.backend.encode(texts, "passage"), self._expected).min())
        except ModelError as error:
            message = f"{export.name}: {error}"
            raise _RefusedError(message) from error
        logger.info("%s: least cosine %.7f to the fp32 export, %d texts", export.name, found, len(texts))
        # Written so that a value that is not a number is refused.
        if not found >= bound:
            message = f"{export.name}: least cosine {found:.7f} is below serving.min_proven_cosine = {bound}"
            raise _RefusedError(message)
        return export

    @cached_property
    def _texts(self) -> list[str]:
        corpus = table_path(self._settings.paths.root, "corpus")
        return proof_texts(self._bundle, self._manifest, corpus, self._settings.seed)

    @cached_property
    def _expected(self) -> Floats:
        return OnnxBackend(self._exported, threads=self._settings.serving.threads).encode(self._texts, "passage")


def _is_native(precision: str) -> bool:
    """Whether torch computes ``precision`` here without emulating it."""
    if precision == "fp32":
        return True
    import torch

    if not torch.cuda.is_available():
        return precision == "bf16" and cpu_has_bf16()
    return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)


def _fastest(exports: Sequence[Export]) -> Export:
    """The export that takes least time for a batch, measured in turns so that a busy moment meets them all."""
    rows = [np.full(min(_ROW_TOKENS, exports[0].backend.max_tokens), 1, np.int32)] * _ROWS
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
        logger.info("%s takes %.1f ms for a batch of %d tokens", export.name, seconds * 1000, _ROWS * len(rows[0]))
    return exports[int(np.argmin(medians))]
