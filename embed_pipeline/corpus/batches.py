"""Document batches: what is new, changed or gone since the last scan, cut into partitions with a manifest each."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from upath import UPath

from embed_pipeline.corpus.boilerplate import learned_lines, remember_lines
from embed_pipeline.corpus.files import (
    STORE_MARK,
    UNREADABLE_FOLDER,
    CorpusError,
    Scan,
    SourceFile,
    read_document,
    scan_documents,
)
from embed_pipeline.settings import Paths, Settings
from embed_pipeline.storage import list_folder, read_all, read_whole, write_whole

_FOLDER = STORE_MARK[0]
_BATCH_NAME = re.compile(r"\d{5,}-[0-9a-f]{8}")
_NOTES = ".touched"


@dataclass(frozen=True)
class BatchFile:
    """A file as it was when its batch was cut.

    Attributes:
        path: relative to the documents folder.
        size: bytes.
        mtime_ns: modification time; 0 where an address does not say.
        sha256: of its bytes; empty for a file over the size limit or one that could not be read.
        replaces: True where an earlier batch holds a version of it.
        version: entity tag, of a file on object storage or a web server.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    replaces: bool = False
    version: str = ""


@dataclass(frozen=True)
class Batch:
    """New or changed files, paths that are gone, and lines then known as boilerplate, which are removed from the files.

    What is learned later does not change the batch: its questions are paid for. ``skipped`` counts what the folder held
    and was left alone, by reason. ``share`` is how much of the documents that were there when it was cut are in it.
    """

    name: str
    files: tuple[BatchFile, ...]
    deleted: tuple[str, ...]
    boilerplate: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    share: float = 1.0

    def manifest(self) -> str:
        """What is stored of it, as JSON."""
        files = [
            {name: value for name, value in asdict(file).items() if value or name != "version"} for file in self.files
        ]
        body: dict[str, object] = {"files": files, "deleted": list(self.deleted)}
        if self.boilerplate:
            body["boilerplate"] = list(self.boilerplate)
        if self.skipped:
            body["skipped"] = dict(sorted(self.skipped.items()))
        if self.share != 1:
            body["share"] = self.share
        return json.dumps(body, indent=1, ensure_ascii=False)


def parse_batch(path: UPath, content: bytes) -> Batch:
    """The batch whose manifest was stored at ``path``.

    Raises:
        CorpusError: the manifest is damaged.
    """
    try:
        body = json.loads(content)
        files = tuple(BatchFile(**file) for file in body["files"])
        return Batch(
            check_batch_name(path.stem),
            files,
            tuple(body["deleted"]),
            tuple(body.get("boilerplate", ())),
            body.get("skipped", {}),
            body.get("share", 1.0),
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"batch manifest {path} is damaged ({error}); restore it, or delete it to read its files again"
        raise CorpusError(message) from error


class TouchedFiles:
    """Files whose time changed and whose content did not, so that they are not read at every look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._seen: dict[str, list[int | str]] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self._seen = {}  # only a shortcut: what it said is found out again
        self._changed = False

    def holds(self, file: SourceFile) -> bool:
        """True where the file was read as it is now and found to be as its batch has it."""
        return self._seen.get(file.path) == [file.size, file.mtime_ns, file.version]

    def add(self, file: SourceFile) -> None:
        """Note that the file, as it is now, is as its batch has it."""
        self._seen[file.path] = [file.size, file.mtime_ns, file.version]
        self._changed = True

    def forget(self, path: str) -> None:
        """The file has a new version."""
        self._changed |= self._seen.pop(path, None) is not None

    def save(self) -> None:
        """Write in one step, if there is anything new."""
        if self._changed:
            staging = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            staging.write_text(json.dumps(self._seen, ensure_ascii=False), encoding="utf-8")
            staging.replace(self._path)


@dataclass(frozen=True)
class ScanLimits:
    """How much one look takes, so that it ends in time; what is left over waits for the next.

    Attributes:
        settle_seconds: a file is left alone until nothing about it has changed for so long.
        files: files read at most.
        bytes: bytes read at most; a single larger file is read all the same.
        seconds: no further file is read after so long.
        max_deleted_share: where more than this share of the known files is gone, none counts as deleted.
    """

    settle_seconds: float = 0.0
    files: int = 2**31
    bytes: int = 2**62
    seconds: float = float("inf")
    max_deleted_share: float = 1.0


@dataclass(frozen=True)
class NewBatches:
    """What a look at the documents folder found.

    Attributes:
        batches: the new batches; none when nothing changed.
        scan: the files that are there.
        unsettled: new or changed files that may still be written to.
        waiting: new or changed files that this look had no time for.
        held_back: files that are gone, but do not count as deleted: a folder was unreadable, or too many went at once.
    """

    batches: tuple[Batch, ...]
    scan: Scan
    unsettled: int
    waiting: int
    held_back: int


def batch_folder(root: UPath | Path) -> UPath:
    """Where the manifests are kept."""
    return UPath(root) / _FOLDER


def check_batch_name(name: str) -> str:
    """``name`` back, if it is one that a batch is given. Partitions may be added by hand, and name files.

    Raises:
        CorpusError: it is not.
    """
    if not _BATCH_NAME.fullmatch(name):
        message = f"{name[:80]!r} is no name of a document batch, such as 00001-0a1b2c3d; delete it"
        raise CorpusError(message)
    return name


def batch_number(name: str) -> int:
    """A batch's place in the order in which they were cut, from 1."""
    return int(check_batch_name(name).partition("-")[0])


def load_batches(root: UPath | Path) -> list[Batch]:
    """Every batch cut so far, oldest first.

    Raises:
        CorpusError: a manifest is damaged.
    """
    paths = list_folder(batch_folder(root), "*.json")
    return [parse_batch(path, content) for path, content in zip(paths, read_all(paths), strict=True)]


def load_batch(root: UPath | Path, name: str) -> Batch:
    """The batch called ``name``.

    Raises:
        CorpusError: it is no batch's name, there is no such batch, or its manifest is damaged.
    """
    path = batch_folder(root) / f"{check_batch_name(name)}.json"
    try:
        content = read_whole(path)
    except FileNotFoundError as error:
        message = f"document batch {name!r} has no manifest {path}; run: embed-pipeline sdg"
        raise CorpusError(message) from error
    return parse_batch(path, content)


def copy_batches(source: Paths, target: Paths) -> None:
    """Give another store all manifests, and this machine's notes, so that a look there takes the same for seen."""
    manifests = list_folder(batch_folder(source.root), "*.json")
    for path, content in zip(manifests, read_all(manifests), strict=True):
        write_whole(batch_folder(target.root) / path.name, content)
    if lines := learned_lines(source.root):
        remember_lines(target.root, lines)
    notes = source.store / _FOLDER / _NOTES
    if notes.is_file():
        write_whole(target.store / _FOLDER / _NOTES, notes.read_bytes())


def forget_path(paths: Paths, path: str) -> None:
    """Take a path out of every manifest, as if it had never been seen.

    Raises:
        CorpusError: a manifest is damaged.
    """
    with _locked(paths) as notes:
        for batch in load_batches(paths.root):
            kept = tuple(file for file in batch.files if file.path != path)
            deleted = tuple(gone for gone in batch.deleted if gone != path)
            if (kept, deleted) != (batch.files, batch.deleted):
                _write_manifest(paths.root, batch.name, replace(batch, files=kept, deleted=deleted).manifest())
        notes.forget(path)
        notes.save()


def cut_batches(settings: Settings) -> tuple[list[Batch], Scan]:
    """Look at the documents folder and cut all that is new, changed or gone into batches.

    A file whose time changed but whose content did not is left where it is. Returns the new batches (none
    when nothing changed) and the scan.

    Raises:
        CorpusError: the folder is missing, holds no readable file, or a manifest is damaged.
    """
    look = find_new_batches(settings, ScanLimits())
    return list(look.batches), look.scan


def find_new_batches(settings: Settings, pace: ScanLimits, *, now: float | None = None) -> NewBatches:
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
    scan = scan_documents(settings.paths.documents, settings.corpus)
    if not scan.files:
        suffixes = ", ".join(settings.corpus.suffixes)
        message = (
            f"documents folder {scan.folder} has no usable document ({suffixes}); skipped: {scan.describe_skipped()}"
        )
        raise CorpusError(message)
    with _locked(settings.paths) as notes:
        return _cut(scan, settings, pace, time.time() if now is None else now, notes)


def batch_names(root: UPath | Path) -> list[str]:
    """Names of every batch cut so far, oldest first, without reading their manifests."""
    return [path.stem for path in list_folder(batch_folder(root), "*.json")]


@contextmanager
def _locked(paths: Paths) -> Iterator[TouchedFiles]:
    """Let one process of this machine at a time cut batches, and give it the machine's notes; others wait."""
    lock = paths.store.joinpath(*STORE_MARK)
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield TouchedFiles(lock.with_name(_NOTES))
    finally:
        os.close(descriptor)


def _cut(scan: Scan, settings: Settings, pace: ScanLimits, now: float, notes: TouchedFiles) -> NewBatches:
    batches = load_batches(settings.paths.root)
    known: dict[str, BatchFile] = {}
    for batch in batches:
        known.update({file.path: file for file in batch.files})
        for path in batch.deleted:
            known.pop(path, None)
    candidates = [file for file in scan.files if not _is_known(file, known.get(file.path), notes)]
    youngest = int((now - pace.settle_seconds) * 1e9)
    settled = [file for file in candidates if not pace.settle_seconds or file.touched_ns <= youngest]
    settled.sort(key=lambda file: file.path in known and not known[file.path].sha256)  # what was unreadable comes last
    changed: list[BatchFile] = []
    looked_at, files, size, end = 0, 0, 0, time.monotonic() + pace.seconds
    for file in settled:
        if files >= pace.files or (files and (size + file.size > pace.bytes or time.monotonic() > end)):
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
    return NewBatches(
        _write_all(settings, last, sorted(changed, key=lambda file: file.path), gone if believed else [], scan),
        scan,
        unsettled=len(candidates) - len(settled),
        waiting=len(settled) - looked_at,
        held_back=0 if believed else len(gone),
    )


def _write_all(
    settings: Settings, last: int, changed: Sequence[BatchFile], deleted: Sequence[str], scan: Scan
) -> tuple[Batch, ...]:
    size = settings.corpus.documents_per_batch
    lines = learned_lines(settings.paths.root) if settings.corpus.boilerplate_share != "off" else ()
    pieces = [changed[start : start + size] for start in range(0, len(changed), size)] or ([[]] if deleted else [])
    gone = tuple(deleted)
    sized = all(file.size for file in scan.files)  # some web servers do not say
    whole = sum(file.size if sized else 1 for file in scan.files)
    return tuple(
        _write(
            settings.paths.root,
            number,
            Batch(
                "",
                tuple(piece),
                gone if number == last + 1 else (),
                lines,
                scan.skipped,
                sum(file.size if sized else 1 for file in piece) / whole,
            ),
        )
        for number, piece in enumerate(pieces, start=last + 1)
    )


def _is_known(file: SourceFile, known: BatchFile | None, notes: TouchedFiles) -> bool:
    """True where size and time say that the file was read already."""
    if known is None or not known.sha256:
        return False
    return _state(known) == _state(file) or notes.holds(file)


def _state(file: SourceFile | BatchFile) -> tuple[int, int, str]:
    """What tells that a file was touched, without reading it."""
    return file.size, file.mtime_ns, file.version


def _as_changed(file: SourceFile, known: BatchFile | None, settings: Settings, notes: TouchedFiles) -> BatchFile | None:
    """The file with the hash of its content; None where it is as its batch has it."""
    digest = ""
    if file.size <= settings.corpus.max_file_bytes:
        try:
            content = read_document(settings.paths.documents, file.path, settings.corpus.max_file_bytes)
        except OSError:
            content = None  # set aside with its reason when the batch is read
        digest = hashlib.sha256(content).hexdigest() if content is not None else ""
    if known is not None and known.sha256 == digest:
        if digest:
            notes.add(file)
            return None
        if _state(known) == _state(file):
            return None
    notes.forget(file.path)
    return BatchFile(file.path, file.size, file.mtime_ns, digest, known is not None, file.version)


def _write(root: UPath, number: int, unnamed: Batch) -> Batch:
    text = unnamed.manifest()
    batch = replace(unnamed, name=f"{number:05d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}")
    _write_manifest(root, batch.name, text)
    return batch


def _write_manifest(root: UPath, name: str, text: str) -> None:
    """Write in one step."""
    write_whole(batch_folder(root) / f"{name}.json", text.encode())
