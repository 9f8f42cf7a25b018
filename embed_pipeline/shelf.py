"""Folders of files under names, on this machine or on object storage: models and releases.

On object storage a folder's files are put first and its list of files, ``<name>.files.json``, last: a folder is there
when its list is, and is what its list says or is refused. A folder that is wanted on this machine is fetched once; what
lies here is compared with the list before it is used.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock
from upath import UPath

from embed_pipeline.settings import Paths
from embed_pipeline.storage import (
    StorageError,
    check_name,
    content_name,
    copy_whole,
    file_hashes,
    list_folder,
    reaching,
    read_all,
    read_whole,
    write_whole,
)

logger = logging.getLogger(__name__)

LATEST = "latest"
"""The pointer to the newest folder."""
CURRENT = "current"
"""The pointer to the folder in use."""

_LIST_ENDING = ".files.json"
_KEPT_FOLDERS = 5


@dataclass(frozen=True)
class _FileList:
    """What a stored folder holds.

    Attributes:
        folder: its name, next to the list.
        files: sha256 by path in the folder.
        stored: seconds since 1970.
    """

    folder: str
    files: Mapping[str, str]
    stored: float

    @classmethod
    def parsed(cls, path: UPath | Path, content: bytes) -> _FileList:
        try:
            values = json.loads(content)
            found = cls(str(values["folder"]), dict(values["files"]), float(values["stored"]))
        except (ValueError, KeyError, TypeError) as error:
            message = f"{path} does not list a folder's files ({error}); make the folder again"
            raise StorageError(message) from error
        check_name(found.folder)
        for name in found.files:
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts:
                message = f"{path}: {name} lies outside the folder"
                raise StorageError(message)
        return found


@dataclass(frozen=True)
class Shelf:
    """Folders under names, and pointers (files that hold such a name).

    Attributes:
        local: folder of this machine: where they are, or where they are made and fetched to.
        remote: where they are kept; None: in ``local``.
    """

    local: Path
    remote: UPath | None = None

    @classmethod
    def of(cls, paths: Paths) -> Shelf:
        """The shelf of all that is stored."""
        return cls(paths.store, paths.remote)

    def under(self, name: str) -> Shelf:
        """The shelf in the folder ``name`` of this one."""
        return Shelf(self.local / name, None if self.remote is None else self.remote / name)

    @property
    def address(self) -> UPath | Path:
        """Where the folders are kept."""
        return self.remote or self.local

    def publish(self, name: str) -> None:
        """Keep the folder ``name`` of this machine under its name; an earlier one of that name stays until then.

        Raises:
            StorageError: it is no folder's name, or the storage refused it or cannot be reached.
        """
        check_name(name)
        if self.remote is None:
            return
        files = file_hashes(self.local / name)
        known = self._list(name)
        folder = name
        if known is not None and known.files != files:
            # Under another name, so that whoever fetches the earlier one gets it whole.
            folder = f"{name}.{content_name(files)[:8]}"
        if known is None or known.files != files:
            self._remove(folder)
            logger.info("storing %s (%.1f MB) at %s", name, _megabytes(self.local / name), self.remote)
            for path in files:
                copy_whole(self.local / name / path, self.remote / folder / path)
        elif known is not None:
            folder = known.folder
        text = json.dumps({"folder": folder, "files": files, "stored": time.time()}, indent=1)
        write_whole(self.remote / f"{name}{_LIST_ENDING}", text.encode())
        if known is not None and known.folder != folder:
            self._remove(known.folder)

    def fetch(self, name: str) -> Path:
        """The folder ``name`` on this machine, whether or not it is there where nothing is kept elsewhere.

        Raises:
            StorageError: it is no folder's name, is not stored, not what was stored, or cannot be reached.
        """
        folder = self.local / check_name(name)
        if self.remote is None:
            return folder
        known = self._list(name)
        if known is None:
            message = f"{self.remote / name} is not there"
            raise StorageError(message)
        try:
            self.local.mkdir(parents=True, exist_ok=True)
            with FileLock(self.local / f".{name}.lock"):
                if not folder.is_dir() or file_hashes(folder) != known.files:
                    self._download(self.remote / known.folder, known.files, folder)
                os.utime(folder)
                self._prune_local()
        except OSError as error:
            message = f"{folder} cannot be fetched from {self.remote}: {error}"
            raise StorageError(message) from error
        return folder

    def holds(self, name: str) -> bool:
        """Whether a folder of that name is kept.

        Raises:
            StorageError: it is no folder's name, or the storage cannot be reached.
        """
        check_name(name)
        return (self.local / name).is_dir() if self.remote is None else self._list(name) is not None

    def point(self, pointer: str, name: str) -> None:
        """Make ``pointer`` name a folder, in one step.

        Raises:
            StorageError: it is no folder's name, or it cannot be written there.
        """
        write_whole(self.address / pointer, f"{check_name(name)}\n".encode())

    def pointed(self, pointer: str) -> str | None:
        """What ``pointer`` holds; None: it was never set.

        Raises:
            OSError: it cannot be read.
            UnicodeDecodeError: it is not text.
            StorageError: the storage cannot be reached.
        """
        try:
            return read_whole(self.address / pointer).decode().strip()
        except FileNotFoundError:
            return None

    def prune(self) -> None:
        """Remove all but the newest folders and those that a pointer names.

        Raises:
            StorageError: the storage cannot be reached.
        """
        self._prune_local()
        if self.remote is None:
            return
        lists = list_folder(self.remote, f"*{_LIST_ENDING}")
        known = {path: _FileList.parsed(path, text) for path, text in zip(lists, read_all(lists), strict=True)}
        old = sorted(lists, key=lambda path: known[path].stored)[:-_KEPT_FOLDERS]
        pinned = self._pointed_at() if old else set()
        for path in old:
            if path.name.removesuffix(_LIST_ENDING) not in pinned:
                with reaching(path):
                    path.unlink()
                self._remove(known[path].folder)

    def _pointed_at(self) -> set[str | None]:
        return {self.pointed(pointer) for pointer in (LATEST, CURRENT)}

    def _prune_local(self) -> None:
        folders = sorted(
            (folder for folder in self.local.iterdir() if folder.is_dir() and not folder.name.startswith(".")),
            key=lambda folder: folder.stat().st_mtime,
        )
        if len(folders) > _KEPT_FOLDERS:
            pinned = self._pointed_at()
            for folder in folders[:-_KEPT_FOLDERS]:
                if folder.name not in pinned:
                    shutil.rmtree(folder)

    def _list(self, name: str) -> _FileList | None:
        path = self.address / f"{name}{_LIST_ENDING}"
        try:
            return _FileList.parsed(path, read_whole(path))
        except FileNotFoundError:
            return None

    @staticmethod
    def _download(source: UPath, files: Mapping[str, str], target: Path) -> None:
        """Fetch next to the target, compare, and move into place."""
        logger.info("fetching %s", source)
        staged = target.with_name(f".{target.name}.part")
        shutil.rmtree(staged, ignore_errors=True)
        for path in files:
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            with reaching(source):
                source.fs.get_file((source / path).path, str(staged / path))
        found = file_hashes(staged)
        for path, expected in files.items():
            if found[path] != expected:
                message = f"{source / path} is not the file that was stored (its sha256 differs); make it again"
                raise StorageError(message)
        if target.exists():
            shutil.rmtree(target)
        staged.rename(target)

    def _remove(self, folder: str) -> None:
        """Remove the files of a folder where they are kept elsewhere, if there are any."""
        if self.remote is not None:
            path = self.remote / folder
            with reaching(path):
                if path.is_dir():
                    path.fs.rm(path.path, recursive=True)


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
