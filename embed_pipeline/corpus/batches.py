"""Document batches: what is new, changed or gone since the last look, cut into partitions.

A batch is a small JSON manifest in ``<store>/batches``. The manifests together say what has been seen, so a
scan after a crash at any point neither loses nor repeats a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from embed_pipeline.corpus.files import UNREADABLE_FOLDER, CorpusError, Scan, SourceFile, read_regular, scan_folder
from embed_pipeline.corpus.touched import TouchedFiles
from embed_pipeline.settings import Settings

_NOTES = ".touched"


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


@dataclass(frozen=True)
class Pace:
    """How much one look takes, so that it ends in time; what is left over waits for the next.

    Attributes:
        settle_seconds: a file is left alone until nothing about it has changed for so long.
        files: files read at most.
        bytes: bytes read at most; a single larger file is read all the same.
        max_deleted_share: where more than this share of the known files is gone, none is taken for deleted.
    """

    settle_seconds: float = 0.0
    files: int = 2**31
    bytes: int = 2**62
    max_deleted_share: float = 1.0


@dataclass(frozen=True)
class Look:
    """What a look at the documents folder found.

    Attributes:
        batches: the new batches; none when nothing changed.
        scan: the files that are there.
        unsettled: new or changed files that may still be written to.
        waiting: new or changed files that this look had no time for.
        held_back: files that are gone, but not taken for deleted: a folder could not be read, or too many went at once.
    """

    batches: tuple[Batch, ...]
    scan: Scan
    unsettled: int
    waiting: int
    held_back: int


def batch_folder(store: Path) -> Path:
    """Where the manifests are kept."""
    return store / "batches"


def batch_number(name: str) -> int:
    """A batch's place in the order in which they were cut, from 1."""
    return int(name.partition("-")[0])


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


def forget_path(store: Path, path: str) -> None:
    """Take a path out of every manifest, as if it had never been seen.

    Raises:
        CorpusError: a manifest is damaged.
    """
    folder = batch_folder(store)
    with _locked(folder):
        for batch in load_batches(store):
            kept = tuple(file for file in batch.files if file.path != path)
            deleted = tuple(gone for gone in batch.deleted if gone != path)
            if (kept, deleted) != (batch.files, batch.deleted):
                _write_manifest(folder, batch.name, _body(kept, deleted))
        notes = TouchedFiles(folder / _NOTES)
        notes.forget(path)
        notes.save()


def cut_batches(settings: Settings) -> tuple[list[Batch], Scan]:
    """Look at the documents folder and cut all that is new, changed or gone into batches.

    A file whose time changed but whose content did not is left where it is. Returns the new batches (none
    when nothing changed) and the scan.

    Raises:
        CorpusError: the folder is missing, holds no readable file, or a manifest is damaged.
    """
    look = look_at_documents(settings, Pace())
    return list(look.batches), look.scan


def look_at_documents(settings: Settings, pace: Pace, *, now: float | None = None) -> Look:
    """Cut what is new, changed or gone into batches, as much of it as ``pace`` allows.

    Sizes and times are compared with the manifests; only files that differ there are read. The manifests are the
    memory: a look that is cut off, or made twice at the same time, neither loses nor repeats a file.

    Args:
        settings: folders, limits and the size of a batch.
        pace: how much to take.
        now: seconds since 1970; None: the clock's.

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
        return _cut(scan, settings, pace, time.time() if now is None else now)


def batch_names(store: Path) -> list[str]:
    """Names of every batch cut so far, oldest first, without reading their manifests."""
    return sorted(path.stem for path in batch_folder(store).glob("*.json"))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time cut batches; others wait."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cut(scan: Scan, settings: Settings, pace: Pace, now: float) -> Look:
    batches = load_batches(settings.paths.store)
    known: dict[str, BatchFile] = {}
    for batch in batches:
        known.update({file.path: file for file in batch.files})
        for path in batch.deleted:
            known.pop(path, None)
    notes = TouchedFiles(batch_folder(settings.paths.store) / _NOTES)
    candidates = [file for file in scan.files if not _is_known(file, known.get(file.path), notes)]
    youngest = int((now - pace.settle_seconds) * 1e9)
    settled = [file for file in candidates if not pace.settle_seconds or file.touched_ns <= youngest]
    settled.sort(key=lambda file: file.path in known and not known[file.path].sha256)  # what was unreadable comes last
    changed: list[BatchFile] = []
    looked_at, files, size = 0, 0, 0
    for file in settled:
        if files >= pace.files or (files and size + file.size > pace.bytes):
            break
        looked_at += 1
        new = _as_changed(file, known.get(file.path), settings, notes)
        if new is not None:
            changed.append(new)
        if file.size <= settings.corpus.max_file_bytes:
            files, size = files + 1, size + file.size
    notes.save()
    last = batch_number(batches[-1].name) if batches else 0
    gone = sorted(known.keys() - {file.path for file in scan.files})
    believed = not scan.skipped[UNREADABLE_FOLDER] and len(gone) <= pace.max_deleted_share * len(known)
    return Look(
        _write_all(settings, last, sorted(changed, key=lambda file: file.path), gone if believed else []),
        scan,
        unsettled=len(candidates) - len(settled),
        waiting=len(settled) - looked_at,
        held_back=0 if believed else len(gone),
    )


def _write_all(
    settings: Settings, last: int, changed: Sequence[BatchFile], deleted: Sequence[str]
) -> tuple[Batch, ...]:
    size = settings.corpus.documents_per_batch
    pieces = [changed[start : start + size] for start in range(0, len(changed), size)] or ([[]] if deleted else [])
    return tuple(
        _write(settings.paths.store, last + index + 1, tuple(piece), tuple(deleted) if index == 0 else ())
        for index, piece in enumerate(pieces)
    )


def _is_known(file: SourceFile, known: BatchFile | None, notes: TouchedFiles) -> bool:
    """True where size and time say that the file was read already."""
    if known is None or not known.sha256:
        return False
    return (known.size, known.mtime_ns) == (file.size, file.mtime_ns) or notes.holds(file)


def _as_changed(file: SourceFile, known: BatchFile | None, settings: Settings, notes: TouchedFiles) -> BatchFile | None:
    """The file with the hash of its content; None where it is as its batch has it."""
    digest = ""
    if file.size <= settings.corpus.max_file_bytes:
        try:
            content = read_regular(settings.paths.documents, file.path, settings.corpus.max_file_bytes)
        except OSError:
            content = None  # set aside with its reason when the batch is read
        digest = hashlib.sha256(content).hexdigest() if content is not None else ""
    if known is not None and known.sha256 == digest:
        if digest:
            notes.add(file)
            return None
        if (known.size, known.mtime_ns) == (file.size, file.mtime_ns):
            return None
    notes.forget(file.path)
    return BatchFile(file.path, file.size, file.mtime_ns, digest, replaces=known is not None)


def _write(store: Path, number: int, files: tuple[BatchFile, ...], deleted: tuple[str, ...]) -> Batch:
    text = _body(files, deleted)
    name = f"{number:05d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    _write_manifest(batch_folder(store), name, text)
    return Batch(name, files, deleted)


def _body(files: Sequence[BatchFile], deleted: Sequence[str]) -> str:
    body = {"files": [asdict(file) for file in files], "deleted": list(deleted)}
    return json.dumps(body, indent=1, ensure_ascii=False)


def _write_manifest(folder: Path, name: str, text: str) -> None:
    """Write in one step."""
    staging = folder / f".{name}.{os.getpid()}"
    staging.write_text(text, encoding="utf-8")
    staging.replace(folder / f"{name}.json")


def _read(path: Path) -> Batch:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return Batch(path.stem, tuple(BatchFile(**file) for file in body["files"]), tuple(body["deleted"]))
    except (ValueError, KeyError, TypeError) as error:
        message = f"batch manifest {path} is damaged ({error}); restore it, or delete it to read its files again"
        raise CorpusError(message) from error
