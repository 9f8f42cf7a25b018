"""What computes the vectors of a corpus: the fastest of the backends that are proven, on this machine, to give torch's.

``embedding.backend`` says what may be used. An export is made once for each weights and kept in the store, with what
was proven and measured of it on this machine. One comparison is computed by one backend: its models are proven
together or all stay on torch. What the endpoint runs is proven with the same measure
(:mod:`embed_pipeline.serving.runtimes`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.backend import Backend, Floats
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import Kind, ModelError
from embed_pipeline.embedding.models import torch_device
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.openvino_backend import OpenVinoBackend
from embed_pipeline.machine import processor, usable_cores
from embed_pipeline.settings import Embedding, Settings
from embed_pipeline.storage import write_whole
from embed_pipeline.text.passages import batch_of_passages, passage_texts

if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger(__name__)

BackendName = Literal["torch", "onnx", "openvino"]

LEAST_COSINE = 0.99999
"""An export is used in place of torch only where every text's vector comes so near to torch's."""
LEAST_PASSAGES = 10_000
"""With fewer passages, ``auto`` is torch: an export, its proof and the clock take longer than they save."""
PROOF_PASSAGES = 64
"""Passages of the corpus that vectors are compared on, at most."""

_QUERY_WORDS = 12
_PROOF_FILE = "proof.json"
_KEPT_EXPORTS = 4
_TIMED_TEXTS, _ROUNDS = 32, 3
_RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}


@dataclass(frozen=True)
class CorpusBackend:
    """What computes every vector of a table or of a comparison.

    Attributes:
        name: torch, onnx or openvino.
        exports: folder of each model's export; empty with torch.
        embedding: how texts are encoded.
        batches: hash of a passage to the document batch that it came with: what is encoded together.
    """

    name: BackendName
    exports: Mapping[str, Path]
    embedding: Embedding
    batches: Mapping[int, str]

    def open(self, model: str | Path, vectors: Path | None = None) -> Encoder:
        """An encoder of one of the models that the backend was chosen for.

        Args:
            model: as it was named then.
            vectors: folder in which vectors are kept for the next stage; None: they are not.

        Raises:
            ModelError: the model cannot be loaded.
        """
        if self.name == "torch":
            return Encoder.load(model, self.embedding, vectors, self.batches)
        backend = _open(self.name, self.exports[str(model)])
        return Encoder(backend, self.embedding.batch_tokens, vectors, self.batches)


def open_base_encoder(settings: Settings, segments: pl.DataFrame) -> Encoder:
    """The base model, or the first candidate before one is chosen, on the backend chosen for the passages of a frame.

    Vectors are kept in the store.

    Args:
        settings: the product's settings.
        segments: frame with the columns batch and text, and those that ``embedding.context`` needs.

    Raises:
        ModelError: as :func:`choose_backend`.
    """
    model = settings.embedding.reading_model
    passages = passage_texts(segments, settings.embedding.context)
    batches = batch_of_passages(passages, segments["batch"])
    return choose_backend([model], passages, settings, batches).open(model, settings.paths.store / "vectors")


def choose_backend(
    models: Sequence[str | Path],
    passages: Iterable[str],
    settings: Settings,
    batches: Mapping[int, str] = MappingProxyType({}),
) -> CorpusBackend:
    """The backend that ``embedding.backend`` means for ``models`` and a corpus of ``passages``.

    Args:
        models: those whose vectors are compared with each other.
        passages: what will be encoded, questions aside.
        settings: groups ``embedding`` and ``release`` (operator set of the export), and the store.
        batches: hash of a passage of the corpus to the document batch that it came with, to be encoded with that alone.

    Raises:
        ModelError: a model cannot be loaded, or the backend that is named is not proven for it.
    """
    embedding = settings.embedding
    on_torch = CorpusBackend("torch", {}, embedding, batches)
    distinct = set(passages)
    if embedding.backend == "torch" or not distinct:
        return on_torch
    texts = proof_texts(distinct)
    if embedding.backend != "auto":
        exports = {str(model): _Export.of(model, settings) for model in models}
        for export in exports.values():
            export.prove(embedding.backend, texts)
        folders = {model: export.folder for model, export in exports.items()}
        return CorpusBackend(embedding.backend, folders, embedding, batches)
    if len(distinct) < LEAST_PASSAGES or embedding.precision != "fp32" or torch_device(embedding) != "cpu":
        return on_torch
    proven: list[BackendName] = ["torch"]
    exports = {}
    for name in _installed():
        try:
            exports = exports or {str(model): _Export.of(model, settings) for model in models}
            for export in exports.values():
                export.prove(name, texts)
        except ModelError as error:
            logger.warning("%s does not encode the corpus, but torch or another may: %s", _RUNTIMES[name], error)
        else:
            proven.append(name)
    chosen = exports[str(models[0])].fastest(proven, texts) if len(proven) > 1 else "torch"
    logger.info("%d passages are encoded with %s", len(distinct), chosen)
    folders = {model: export.folder for model, export in exports.items()} if chosen != "torch" else {}
    return CorpusBackend(chosen, folders, embedding, batches)


class _Export:
    """A model's export in the store, and what was found of it on this machine as it is now.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, model: str | Path, original: Encoder, folder: Path) -> None:
        self.folder = folder
        self._model, self._original = model, original
        self._expected: dict[Kind, Floats] | None = None
        self._machine = _machine()
        known: dict[str, Any] = {}
        if (folder / _PROOF_FILE).is_file():
            known = json.loads((folder / _PROOF_FILE).read_text(encoding="utf-8"))
        here = known.get("machine") == self._machine
        self._cosines: dict[str, float] = known["least_cosines"] if here else {}
        self._seconds: dict[str, float] = known["seconds"] if here else {}

    @classmethod
    def of(cls, model: str | Path, settings: Settings) -> _Export:
        """The export of ``model``, made where there is none yet.

        Raises:
            ModelError: the model cannot be loaded or exported.
        """
        original = Encoder.load(model, settings.embedding)
        return cls(model, original, _export(model, original.backend, settings))

    def prove(self, name: BackendName, texts: Sequence[str]) -> None:
        """Pass where a backend gives torch's vectors for ``texts``, or was found to on this machine before.

        Raises:
            ModelError: it does not, or cannot run the export.
        """
        if name not in self._cosines:
            if self._expected is None:
                self._expected = proof_vectors(self._original, texts)
            self._cosines[name] = least_cosine(_open(name, self.folder), texts, self._expected)
            self._write()
        found = self._cosines[name]
        logger.info("%s with %s: least cosine %.7f to torch", self._model, _RUNTIMES[name], found)
        # Written so that a value that is not a number is refused.
        if not found >= LEAST_COSINE:
            message = (
                f"{self._model} with {_RUNTIMES[name]} gives other vectors than with torch (least cosine {found:.7f}, "
                f"must be {LEAST_COSINE}); set embedding.backend to 'auto' or 'torch'"
            )
            raise ModelError(message)

    def fastest(self, names: Sequence[BackendName], texts: Sequence[str]) -> BackendName:
        """The backend that takes least time for ``texts``, torch among them; measured once on a machine."""
        if not set(names) <= self._seconds.keys():
            encoders = [self._original if name == "torch" else Encoder(_open(name, self.folder)) for name in names]
            timed = texts[:: max(1, len(texts) // _TIMED_TEXTS)]
            taken = time_in_turns([partial(encoder.encode, timed, "passage") for encoder in encoders], _ROUNDS)
            self._seconds = dict(zip(names, taken, strict=True))
            self._write()
        for name in names:
            logger.info("%s: %.0f ms for the timed texts", name, 1000 * self._seconds[name])
        return min(names, key=self._seconds.__getitem__)

    def _write(self) -> None:
        found = {"machine": self._machine, "least_cosines": self._cosines, "seconds": self._seconds}
        write_whole(self.folder / _PROOF_FILE, json.dumps(found, indent=2).encode())


def _export(model: str | Path, loaded: Backend, settings: Settings) -> Path:
    """The folder of the model's export in the store; whole or not there, and the least used beyond a few are removed.

    Raises:
        ModelError: the model cannot be exported.
    """
    from filelock import FileLock
    from torch.onnx import OnnxExporterError

    from embed_pipeline.embedding.onnx_export import OnnxExportError, export_onnx

    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        message = f"an export needs {', '.join(missing)}: pip install 'embed-pipeline[cpu]'"
        raise ModelError(message)
    made_from = (
        loaded.identity,
        loaded.config.digest,
        (loaded.query_prefix, loaded.passage_prefix),
        settings.release.opset,
        _versions("onnx", "onnxscript"),
    )
    root = settings.paths.store / "exports"
    folder, staged = root / hashlib.sha256(repr(made_from).encode()).hexdigest()[:32], root / ".part"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        if not folder.is_dir():
            logger.info("exporting %s to encode with it", model)
            # What a process that was killed has left.
            shutil.rmtree(staged, ignore_errors=True)
            try:
                export_onnx(model, staged, settings.release, settings.embedding)
            except (OnnxExportError, OnnxExporterError) as error:
                message = f"{model} cannot be exported: {error}"
                raise ModelError(message) from error
            staged.rename(folder)
        os.utime(folder)
        kept = sorted(root.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-_KEPT_EXPORTS]:
            shutil.rmtree(old)
    return folder


def _open(name: BackendName, folder: Path) -> Backend:
    return OpenVinoBackend(folder) if name == "openvino" else OnnxBackend(folder)


def _installed() -> list[BackendName]:
    names: tuple[BackendName, ...] = ("onnx", "openvino")
    return [name for name in names if find_spec(_RUNTIMES[name])]


def _machine() -> str:
    return f"{processor()}, {usable_cores()} cores, {_versions('torch', *_RUNTIMES.values())}"


def _versions(*packages: str) -> str:
    return ", ".join(f"{name} {import_module(name).__version__}" for name in packages if find_spec(name))


def proof_texts(passages: Iterable[str]) -> list[str]:
    """Some of ``passages``, evenly over their lengths, whole and as short as queries; the same on every call."""
    chosen = spread_by_length(passages, PROOF_PASSAGES)
    short = [" ".join(text.split()[:_QUERY_WORDS]) for text in chosen]
    return list(dict.fromkeys(text for pair in zip(chosen, short, strict=True) for text in pair))


def spread_by_length(texts: Iterable[str], most: int) -> list[str]:
    """At most ``most`` of ``texts`` that are not blank, evenly over their lengths; the same on every call."""
    ordered = sorted({text for text in texts if text.strip()}, key=lambda text: (len(text), text))
    places = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).astype(int)
    return [ordered[place] for place in places]


def proof_vectors(original: Encoder, texts: Sequence[str]) -> dict[Kind, Floats]:
    """What another backend is held to: vectors of ``texts`` as passages, and as queries if those take another way."""
    kinds: tuple[Kind, ...] = ("passage",) if original.backend.query_side is None else ("passage", "query")
    return {kind: original.encode(texts, kind) for kind in kinds}


def least_cosine(backend: Backend, texts: Sequence[str], expected: Mapping[Kind, Floats]) -> float:
    """Least cosine of the vectors that ``backend`` gives ``texts`` to those ``expected`` of :func:`proof_vectors`.

    Raises:
        ModelError: it gives a vector that is not finite.
    """
    encoder = Encoder(backend)
    return min(float(cosines_of(encoder.encode(texts, kind), vectors).min()) for kind, vectors in expected.items())


def cosines_of(left: Floats, right: Floats) -> NDArray[np.float64]:
    """Cosine of the two vectors of each text, (texts, d) each; -1 where one has no direction or is not finite."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines: NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / lengths
    # A vector of zeros has no direction; it is as far from the other as can be.
    return np.where(np.isfinite(cosines), np.minimum(cosines, 1.0), -1.0)


def time_in_turns(works: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each, after a first time uncounted; in turns, so that a busy moment meets them all."""
    seconds: list[list[float]] = [[] for _ in works]
    for counted in range(rounds + 1):
        for work, taken in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            if counted:
                taken.append(time.perf_counter() - started)
    return [median(taken) for taken in seconds]
