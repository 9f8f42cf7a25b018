"""Checkpoints that are whole and belong to this training, or are not used."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

SEAL = "sealed.json"
"""File that makes a folder whole: the hash of every other file in it."""
_FINGERPRINT = "training.json"


def prepare(work: Path, fingerprint: str) -> None:
    """Make ``work`` the folder of the training named by ``fingerprint``; another training's content is removed."""
    marker = work / _FINGERPRINT
    if work.exists() and _read(marker).get("fingerprint") != fingerprint:
        logger.info("checkpoints in %s are of another training and are removed", work)
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    _write(marker, {"fingerprint": fingerprint})


def seal(folder: Path) -> None:
    """Record the hash of every file in ``folder``: it is whole from now on."""
    _write(folder / SEAL, _hashes(folder))


def is_whole(folder: Path) -> bool:
    """True where ``folder`` was sealed and none of its files has changed or gone since."""
    return (folder / SEAL).exists() and _read(folder / SEAL) == _hashes(folder)


def latest(work: Path) -> Path | None:
    """The newest whole checkpoint in ``work``; broken ones are named in the log and removed."""
    for folder in sorted(work.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_whole(folder):
            return folder
        logger.warning("checkpoint %s is not whole; it is removed", folder)
        shutil.rmtree(folder)
    return None


def step_of(folder: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(folder.name.rsplit("-", 1)[1])


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with path.open("rb") as stream:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _read(path: Path) -> dict[str, str]:
    """A marker's content; empty where it is absent or cut off, which no marker equals."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, str]) -> None:
    staged = path.with_name(path.name + ".part")
    staged.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
    staged.replace(path)
