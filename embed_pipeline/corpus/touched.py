"""Files that were touched and not changed: noted, so that they are not read at every look at the documents folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

from embed_pipeline.corpus.files import SourceFile


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
