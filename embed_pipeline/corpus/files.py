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


@dataclass(frozen=True)
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
        CorpusError: the folder does not exist, is no folder, or holds more than ``corpus.max_files`` files.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        message = f"documents folder {folder} {what}; set paths.documents, or run: embed-pipeline sample python"
        raise CorpusError(message)
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    for entry in _walk(folder, skipped):
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            skipped["not a regular file"] += 1
        elif not entry.name.lower().endswith(corpus.suffixes):
            skipped["other suffix"] += 1
        else:
            relative = PurePosixPath(*Path(entry.path).relative_to(folder).parts)
            files.append(SourceFile(str(relative), status.st_size, status.st_mtime_ns))
        if len(files) > corpus.max_files:
            message = f"documents folder {folder} holds over corpus.max_files = {corpus.max_files} files"
            raise CorpusError(message)
    return Scan(folder, tuple(sorted(files, key=lambda file: file.path)), skipped)


def _walk(folder: Path, skipped: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Every entry below ``folder`` that is neither hidden, a link nor a folder."""
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except PermissionError:
            skipped["unreadable folder"] += 1
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                skipped["symlink"] += 1
            elif entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            else:
                yield entry


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
