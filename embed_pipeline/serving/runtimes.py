"""Which form of a released model is served: the fastest on this machine of those that are proven good enough.

The release has proven the exports that onnxruntime computes (:mod:`embed_pipeline.release.parity`). What OpenVINO
or TensorRT computes, or torch in half precision, depends on the processor or GPU as well, so it is compared with the
fp32 export where it is served: on texts of the corpus, whole and as short as queries, and on those that the release
found its exports to differ in most. The layout is that of :mod:`embed_pipeline.release.bundle`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embed_pipeline.embedding.backend import Backend, EncoderConfig, Floats
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import Kind, ModelError
from embed_pipeline.embedding.onnx_backend import MODEL_FILE, OnnxBackend
from embed_pipeline.embedding.openvino_backend import GROUP_SIZES, OpenVinoBackend, OpenVinoPrecision
from embed_pipeline.embedding.proven import least_cosine, proof_texts, proof_vectors, time_in_turns
from embed_pipeline.embedding.tensorrt_backend import (
    ENGINE_FILE,
    TensorRTBackend,
    TensorRTProviderBackend,
    TensorRTUnavailable,
)
from embed_pipeline.embedding.torch_backend import Precision, TorchBackend
from embed_pipeline.machine import torch_multiplies
from embed_pipeline.release.bundle import ENGINE_FOLDER, EXPORT_FOLDERS
from embed_pipeline.release.manifest import Manifest
from embed_pipeline.release.parity import PARITY_FILE, read_parity
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import Embedding, Serving, Settings
from embed_pipeline.storage import StorageError, read_table, table_path

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)
TORCH_PRECISIONS: Mapping[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
"""What torch may compute in; the exports that onnxruntime may run are ``EXPORT_FOLDERS``."""
OPENVINO_PRECISIONS: Mapping[str, OpenVinoPrecision] = {"fp32": "fp32", "int8": "int8", "bf16": "bf16"}
"""What OpenVINO may compute the fp32 export in."""
_ROUNDS = 7
_ROWS = 8
_ROW_TOKENS = 64


@dataclass(frozen=True)
class ServedExport:
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


def threads_of(serving: Serving) -> int:
    """Threads that a backend is given; 0: as many as there are cores."""
    return 0 if serving.cores == "all" else serving.cores


def open_export(bundle: Path, manifest: Manifest, settings: Settings) -> ServedExport:
    """Open what ``serving.backend`` and ``serving.precision`` name, or the fastest of what they leave open.

    Raises:
        ServingError: nothing of that kind is there, or it may not be served.
        ModelError: an export cannot be read.
        ReleaseError: the parity figures of an export are missing or damaged.
    """
    serving, opener = settings.serving, _Opener(bundle, manifest, settings)
    openings: list[tuple[str, str, Callable[[str], ServedExport]]] = [
        *(("onnx", precision, opener.open_onnx) for precision in EXPORT_FOLDERS),
        *(("openvino", precision, opener.open_openvino) for precision in OPENVINO_PRECISIONS),
        *(("torch", precision, opener.open_torch) for precision in TORCH_PRECISIONS),
        ("tensorrt", "fp16", opener.open_tensorrt),
    ]
    exports: list[ServedExport] = []
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
        logger.info("release %s: skipped: %s", manifest.version, reason)
    return exports[0] if len(exports) == 1 else _fastest(exports)


class _Opener:
    """Opens the forms of one release, those that may be served here."""

    def __init__(self, bundle: Path, manifest: Manifest, settings: Settings) -> None:
        self._bundle = bundle
        self._manifest = manifest
        self._settings = settings
        self._threads = threads_of(settings.serving)
        self._exported = bundle / EXPORT_FOLDERS["fp32"]

    def open_onnx(self, precision: str) -> ServedExport:
        folder, bound = EXPORT_FOLDERS[precision], self._settings.release.max_int8_ndcg_delta
        if not has_export(self._manifest, folder):
            missed = f"{precision} is not among release.precisions or missed its bound, as onnx_precisions says"
            message = f"it holds no {folder}/{MODEL_FILE}: {missed}"
            raise _RefusedError(message)
        # The parity of the others is a gate of the release itself.
        if precision == "int8":
            delta = read_parity(self._bundle / folder).ndcg_delta
            # Written so that a value that is not a number is refused.
            if not abs(delta) <= bound:
                message = f"{folder} changes nDCG@10 by {delta:+.4f}, more than release.max_int8_ndcg_delta = {bound}"
                raise _RefusedError(message)
        return ServedExport(OnnxBackend(self._bundle / folder, threads=self._threads), precision)

    def open_openvino(self, precision: str) -> ServedExport:
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

    def _open_openvino(self, precision: str, group_size: int) -> ServedExport:
        named, threads = OPENVINO_PRECISIONS[precision], self._threads
        try:
            backend = OpenVinoBackend(self._exported, named, group_size=group_size, threads=threads)
        except ModelError as error:
            message = f"{precision} with openvino: {error}"
            raise _RefusedError(message) from error
        return self._prove(ServedExport(backend, precision))

    def open_torch(self, precision: str) -> ServedExport:
        if not torch_multiplies(precision):
            message = f"nothing in this machine computes {precision} with torch"
            raise _RefusedError(message)
        computed = TORCH_PRECISIONS[precision]
        try:
            read = EncoderConfig.read(self._exported)
            backend = TorchBackend.load(
                self._bundle / "model", Embedding(), computed, config=read, threads=self._threads
            )
        except ModelError as error:
            # A model that brings code was exported on somebody's word for it; serving takes nobody's.
            message = f"{precision} with torch: {error}"
            raise _RefusedError(message) from error
        export = ServedExport(backend, precision)
        return export if precision == "fp32" else self._prove(export)

    def open_tensorrt(self, precision: str) -> ServedExport:
        """The engine of the bundle where it is for this GPU, else the fp16 export through onnxruntime's provider."""
        half = EXPORT_FOLDERS["fp16"]
        openings: list[Callable[[], Backend]] = []
        refused: list[str] = []
        if f"{ENGINE_FOLDER}/{ENGINE_FILE}" in self._manifest.files:
            openings.append(lambda: TensorRTBackend(self._bundle / ENGINE_FOLDER))
        else:
            refused.append(f"it holds no {ENGINE_FOLDER}/{ENGINE_FILE}")
        if has_export(self._manifest, half):
            engines = self._settings.paths.store / "engines" / self._manifest.version
            openings.append(lambda: TensorRTProviderBackend(self._bundle / half, engines))
        else:
            refused.append(f"it holds no {half}/{MODEL_FILE}, see release.precisions")
        for opening in openings:
            try:
                return self._prove(ServedExport(opening(), precision))
            except (TensorRTUnavailable, ModelError, _RefusedError) as error:
                refused.append(str(error))
        message = f"{precision} with tensorrt: {'; '.join(refused)}"
        raise _RefusedError(message)

    def _prove(self, export: ServedExport) -> ServedExport:
        """``export``, where it gives the vectors of the fp32 export, as near as the settings want them."""
        texts, bound = self._texts, self._settings.gates.min_proven_cosine
        if not texts:
            message = f"{export.name} cannot be measured: there is neither a corpus nor an export's parity"
            raise _RefusedError(message)
        try:
            found = least_cosine(export.backend, texts, self._expected)
        except ModelError as error:
            message = f"{export.name}: {error}"
            raise _RefusedError(message) from error
        logger.info("%s: least cosine %.7f to the fp32 export, %d texts", export.name, found, len(texts))
        # Written so that a value that is not a number is refused.
        if not found >= bound:
            message = f"{export.name}: least cosine {found:.7f} is below gates.min_proven_cosine = {bound}"
            raise _RefusedError(message)
        return export

    @cached_property
    def _texts(self) -> list[str]:
        return comparison_texts(self._bundle, self._manifest, table_path(self._settings.paths.root, "corpus"))

    @cached_property
    def _expected(self) -> dict[Kind, Floats]:
        return proof_vectors(Encoder(OnnxBackend(self._exported, threads=self._threads)), self._texts)


def comparison_texts(bundle: Path, manifest: Manifest, corpus: UPath) -> list[str]:
    """What a backend is compared on: the worst texts of the bundle's exports, and passages of the ``corpus`` table.

    Raises:
        ReleaseError: the parity figures of an export are damaged.
    """
    # Only what is compared needs dataframes.
    from embed_pipeline import tables
    from embed_pipeline.text.passages import passage_texts

    measured = [folder for folder in EXPORT_FOLDERS.values() if f"{folder}/{PARITY_FILE}" in manifest.files]
    worst = [text.text for folder in measured for text in read_parity(bundle / folder).worst if text.text.strip()]
    try:
        passages = passage_texts(read_table(corpus, tables.CORPUS), manifest.model.passage_context)
    except (FileNotFoundError, StorageError) as error:
        # A bundle may be served where no corpus is; without any text nothing is proven.
        logger.info("no corpus to verify a back end on: %s", error)
        passages = []
    return list(dict.fromkeys([*worst, *proof_texts(passages)]))


def _fastest(exports: Sequence[ServedExport]) -> ServedExport:
    """The export that takes least time for a batch over all cores."""
    rows = [np.full(min(_ROW_TOKENS, exports[0].backend.max_tokens), 1, np.int32)] * _ROWS
    seconds = time_in_turns([partial(export.backend.infer, rows) for export in exports], _ROUNDS)
    for export, taken in zip(exports, seconds, strict=True):
        logger.info("%s takes %.1f ms for a batch of %d tokens", export.name, taken * 1000, _ROWS * len(rows[0]))
    return exports[int(np.argmin(seconds))]
