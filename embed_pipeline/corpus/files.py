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
from pathlib import Path

from embed_pipeline.settings import Corpus

UNREADABLE_FOLDER = "unreadable folder"
"""Reason under which a scan counts folders that it could not look into: what they hold is not known."""


class CorpusError(ValueError):
    """The documents folder gives nothing to work on."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One readable file: path relative to the folder (forward slashes), bytes, modification time in ns.

    ``touched_ns`` is when anything about it changed last, by the file system's clock: a copy that keeps the original's
    modification time is still seen to be young. ``version`` is the entity tag that object storage gives it, if any.
    """

    path: str
    size: int
    mtime_ns: int
    touched_ns: int
    version: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds: readable files sorted by path, and what was left alone, by reason."""

    folder: Path | str
    files: tuple[SourceFile, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    def describe_skipped(self) -> str:
        """The skipped counts as text, such as ``3 .pdf (not in corpus.suffixes), 1 symlink``."""
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
    pending = [os.fspath(folder)]
    start = len(os.path.join(pending[0], ""))  # noqa: PTH118 - entries are named by text, a million of them
    seen = 0
    while pending:
        for entry in _entries(pending.pop(), skipped):
            seen += 1
            if seen > corpus.max_files:
                message = f"documents folder {folder} holds over corpus.max_files = {corpus.max_files} entries"
                raise CorpusError(message)
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
                continue
            found = _look_at(entry, start, suffixes)
            if isinstance(found, SourceFile):
                files.append(found)
            else:
                skipped[found] += 1
    return Scan(folder, tuple(sorted(files, key=lambda file: file.path)), skipped)


def _entries(folder: str, skipped: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Every entry of one folder that is not hidden, one at a time: a folder may hold a million."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError:
        skipped[UNREADABLE_FOLDER] += 1


def _look_at(entry: os.DirEntry[str], start: int, suffixes: tuple[str, ...]) -> SourceFile | str:
    """The file that an entry is, its path from character ``start`` on, or why it is left alone."""
    try:
        status = entry.stat(follow_symlinks=False)
        path = entry.path[start:].replace(os.sep, "/")
        path.encode()
    except OSError:
        return "gone while looking"
    except UnicodeEncodeError:
        return "name not UTF-8"
    if stat.S_ISLNK(status.st_mode):
        return "symlink"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if not entry.name.lower().endswith(suffixes):
        return other_suffix(entry.name)
    return SourceFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def other_suffix(name: str) -> str:
    """The reason under which a file of another ending is counted: its ending."""
    return f"{os.path.splitext(name)[1].lower() or 'without an ending'} (not in corpus.suffixes)"  # noqa: PTH122


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
