"""The documents folder: which files are there and may be read.

Links are never followed, and only regular files below the folder are ever opened: a symlink, a device or a
FIFO is counted and left alone.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from embed_pipeline.settings import Corpus


class CorpusError(ValueError):
    """The documents folder gives nothing to work on."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One readable file: path relative to the folder (forward slashes), bytes, modification time in ns."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Scan:
    """What a folder holds: readable files sorted by path, and what was left alone, by reason."""

    folder: Path
    files: tuple[SourceFile, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    def describe_skipped(self) -> str:
        """The skipped counts as text, such as ``3 other suffix, 1 symlink``."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "nothing"


def scan_folder(folder: Path, corpus: Corpus) -> Scan:
    """List the files of ``folder`` that have one of ``corpus.suffixes``, without opening any.

    Hidden files and folders are passed over.

    Raises:
        CorpusError: the folder does not exist, is no folder, or holds more than ``corpus.max_files`` entries.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        message = f"documents folder {folder} {what}; set paths.documents, or run: embed-pipeline sample python"
        raise CorpusError(message)
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    suffixes = tuple(suffix.lower() for suffix in corpus.suffixes)
    pending = [folder]
    seen = 0
    while pending:
        for entry in _entries(pending.pop(), skipped):
            seen += 1
            if seen > corpus.max_files:
                message = f"documents folder {folder} holds over corpus.max_files = {corpus.max_files} entries"
                raise CorpusError(message)
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
                continue
            found = _look_at(entry, folder, suffixes)
            if isinstance(found, SourceFile):
                files.append(found)
            else:
                skipped[found] += 1
    return Scan(folder, tuple(sorted(files, key=lambda file: file.path)), skipped)


def _entries(folder: Path, skipped: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Every entry of one folder that is not hidden, one at a time: a folder may hold a million."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError:
        skipped["unreadable folder"] += 1


def _look_at(entry: os.DirEntry[str], folder: Path, suffixes: tuple[str, ...]) -> SourceFile | str:
    """The file that an entry is, or why it is left alone."""
    try:
        status = entry.stat(follow_symlinks=False)
        entry.name.encode()
    except OSError:
        return "gone while looking"
    except UnicodeEncodeError:
        return "name not UTF-8"
    if stat.S_ISLNK(status.st_mode):
        return "symlink"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if not entry.name.lower().endswith(suffixes):
        return "other suffix"
    relative = PurePosixPath(*Path(entry.path).relative_to(folder).parts)
    return SourceFile(str(relative), status.st_size, status.st_mtime_ns)


def read_regular(folder: Path, path: str, limit: int) -> bytes:
    """Read at most ``limit`` + 1 bytes of a file below ``folder``.

    The file is opened without following a link and without waiting on a FIFO, and checked after opening, so
    that a file swapped for something else between scan and read is still refused.

    Raises:
        OSError: it cannot be opened, or is no longer a regular file.
    """
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        message = f"{path} leaves the documents folder"
        raise OSError(message)
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            message = f"{path} is not a regular file"
            raise OSError(message)
        return stream.read(limit + 1)
