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
_FINGERPRINT_FILE = "training.json"


def prepare_work(work: Path, fingerprint: str) -> None:
    """Make ``work`` the folder of the training named by ``fingerprint``; another training's content is removed."""
    marker = work / _FINGERPRINT_FILE
    if work.exists() and _read_seal(marker).get("fingerprint") != fingerprint:
        logger.info("checkpoints in %s are of another training and are removed", work)
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    _write_seal(marker, {"fingerprint": fingerprint})


def seal_checkpoint(folder: Path) -> None:
    """Record the hash of every file in ``folder``: it is whole from now on."""
    _write_seal(folder / SEAL, _checkpoint_hashes(folder))


def is_whole_checkpoint(folder: Path) -> bool:
    """True where ``folder`` was sealed and none of its files has changed or gone since."""
    return (folder / SEAL).exists() and _read_seal(folder / SEAL) == _checkpoint_hashes(folder)


def latest_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint in ``work``; broken ones are named in the log and removed."""
    for folder in sorted(work.glob("checkpoint-*"), key=step_of_checkpoint, reverse=True):
        if is_whole_checkpoint(folder):
            return folder
        logger.warning("checkpoint %s is not whole; it is removed", folder)
        shutil.rmtree(folder)
    return None


def step_of_checkpoint(folder: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(folder.name.rsplit("-", 1)[1])


def _checkpoint_hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != SEAL:
            with path.open("rb") as stream:
                hashes[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _read_seal(path: Path) -> dict[str, str]:
    """A marker's content; empty where it is absent or cut off, which no marker equals."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_seal(path: Path, content: Mapping[str, str]) -> None:
    staged = path.with_name(path.name + ".part")
    staged.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")
    staged.replace(path)
