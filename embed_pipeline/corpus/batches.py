"""Document batches: what is new, changed or gone since the last look, cut into partitions.

A batch is a small JSON manifest in ``<store>/batches``. The manifests together say what has been seen, so a
scan after a crash at any point neither loses nor repeats a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from embed_pipeline.corpus.files import CorpusError, Scan, SourceFile, read_regular, scan_folder
from embed_pipeline.settings import Settings


@dataclass(frozen=True)
class BatchFile:
    """A file as it was when its batch was cut.

    Attributes:
        path: relative to the documents folder.
        size: bytes.
        mtime_ns: modification time.
        sha256: of its bytes; empty for a file over the size limit or one that could not be read.
        replaces: True where an earlier batch holds a version of it.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    replaces: bool = False


@dataclass(frozen=True)
class Batch:
    """New or changed files, and paths that are gone."""

    name: str
    files: tuple[BatchFile, ...]
    deleted: tuple[str, ...]


def batch_folder(store: Path) -> Path:
    """Where the manifests are kept."""
    return store / "batches"


def load_batches(store: Path) -> list[Batch]:
    """Every batch cut so far, oldest first.

    Raises:
        CorpusError: a manifest is damaged.
    """
    return [_read(path) for path in sorted(batch_folder(store).glob("*.json"))]


def load_batch(store: Path, name: str) -> Batch:
    """The batch called ``name``.

    Raises:
        CorpusError: there is no such batch, or its manifest is damaged.
    """
    path = batch_folder(store) / f"{name}.json"
    if not path.is_file():
        message = f"document batch {name!r} has no manifest {path}; run: embed-pipeline sdg"
        raise CorpusError(message)
    return _read(path)


def cut_batches(settings: Settings) -> tuple[list[Batch], Scan]:
    """Look at the documents folder and cut what is new, changed or gone into batches.

    A file whose time changed but whose content did not is left where it is. Returns the new batches (none
    when nothing changed) and the scan.

    Raises:
        CorpusError: the folder is missing, holds no readable file, or a manifest is damaged.
    """
    scan = scan_folder(settings.paths.documents, settings.corpus)
    if not scan.files:
        suffixes = ", ".join(settings.corpus.suffixes)
        message = (
            f"documents folder {scan.folder} has no usable document ({suffixes}); skipped: {scan.describe_skipped()}"
        )
        raise CorpusError(message)
    folder = batch_folder(settings.paths.store)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        return _cut(scan, settings), scan


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time cut batches; others wait."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cut(scan: Scan, settings: Settings) -> list[Batch]:
    batches = load_batches(settings.paths.store)
    known: dict[str, BatchFile] = {}
    for batch in batches:
        known.update({file.path: file for file in batch.files})
        for path in batch.deleted:
            known.pop(path, None)
    changed = [new for file in scan.files if (new := _as_changed(file, known.get(file.path), settings)) is not None]
    deleted = sorted(known.keys() - {file.path for file in scan.files})
    size = settings.corpus.documents_per_batch
    pieces = [changed[start : start + size] for start in range(0, len(changed), size)] or ([[]] if deleted else [])
    cut = []
    for index, piece in enumerate(pieces):
        gone = tuple(deleted) if index == 0 else ()
        cut.append(_write(settings.paths.store, len(batches) + index + 1, tuple(piece), gone))
    return cut


def _as_changed(file: SourceFile, known: BatchFile | None, settings: Settings) -> BatchFile | None:
    same = known is not None and (known.size, known.mtime_ns) == (file.size, file.mtime_ns)
    if known is not None and same and known.sha256:
        return None
    digest = ""
    if file.size <= settings.corpus.max_file_bytes:
        try:
            content = read_regular(settings.paths.documents, file.path, settings.corpus.max_file_bytes)
        except OSError:
            content = None  # set aside with its reason when the batch is read
        digest = hashlib.sha256(content).hexdigest() if content is not None else ""
    if known is not None and known.sha256 == digest and (digest or same):
        return None
    return BatchFile(file.path, file.size, file.mtime_ns, digest, replaces=known is not None)


def _write(store: Path, number: int, files: tuple[BatchFile, ...], deleted: tuple[str, ...]) -> Batch:
    body = {"files": [asdict(file) for file in files], "deleted": list(deleted)}
    text = json.dumps(body, indent=1, ensure_ascii=False)
    name = f"{number:05d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    folder = batch_folder(store)
    staging = folder / f".{name}.{os.getpid()}"
    staging.write_text(text, encoding="utf-8")
    staging.replace(folder / f"{name}.json")
    return Batch(name, files, deleted)


def _read(path: Path) -> Batch:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return Batch(path.stem, tuple(BatchFile(**file) for file in body["files"]), tuple(body["deleted"]))
    except (ValueError, KeyError, TypeError) as error:
        message = f"batch manifest {path} is damaged ({error}); restore it, or delete it to read its files again"
        raise CorpusError(message) from error
