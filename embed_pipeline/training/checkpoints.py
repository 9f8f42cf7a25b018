"""Checkpoints: only those that are whole and belong to this training are used."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from embed_pipeline.storage import file_hashes, write_whole

logger = logging.getLogger(__name__)
SEAL = "sealed.json"
"""File that makes a folder whole: the hash of every other file in it."""
_FINGERPRINT_FILE = "training.json"


def prepare_work(work: Path, fingerprint: str) -> None:
    """Make ``work`` the folder of the training named by ``fingerprint``; another training's content is removed."""
    marker = work / _FINGERPRINT_FILE
    if work.exists() and _read_seal(marker).get("fingerprint") != fingerprint:
        logger.info("removing checkpoints of another training in %s", work)
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    _write_seal(marker, {"fingerprint": fingerprint})


def seal_checkpoint(folder: Path) -> None:
    """Record the hash of every file in ``folder``: it is whole from now on."""
    _write_seal(folder / SEAL, _hashes_without_seal(folder))


def is_whole_checkpoint(folder: Path) -> bool:
    """True where ``folder`` was sealed and no file has changed or is missing since."""
    return (folder / SEAL).exists() and _read_seal(folder / SEAL) == _hashes_without_seal(folder)


def latest_checkpoint(work: Path) -> Path | None:
    """The newest whole checkpoint in ``work``; damaged ones are removed, with a warning."""
    for folder in sorted(work.glob("checkpoint-*"), key=step_of_checkpoint, reverse=True):
        if is_whole_checkpoint(folder):
            return folder
        logger.warning("checkpoint %s is damaged; it is removed", folder)
        shutil.rmtree(folder)
    return None


def step_of_checkpoint(folder: Path) -> int:
    """The step at which a checkpoint was written."""
    return int(folder.name.rsplit("-", 1)[1])


def _hashes_without_seal(folder: Path) -> dict[str, str]:
    return {path: digest for path, digest in file_hashes(folder).items() if path != SEAL}


def _read_seal(path: Path) -> dict[str, str]:
    """A marker's content; empty, which no marker is, where the file is absent or cut off."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_seal(path: Path, content: Mapping[str, str]) -> None:
    write_whole(path, json.dumps(content, sort_keys=True).encode())
