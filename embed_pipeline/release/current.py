"""Which release is served: ``<store>/release/current`` holds its version, ``<store>/release/<version>/`` its bundle."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath

from embed_pipeline.release.manifest import BundleError, read_manifest

RELEASES = "release"
CURRENT_FILE = "current"


def release_folder(store: Path, version: str) -> Path:
    """Where the bundle of ``version`` lies.

    Raises:
        BundleError: the version is not a plain folder name.
    """
    if not version or PurePosixPath(version).parts != (version,) or version in {"..", CURRENT_FILE}:
        message = f"release version {version!r} is not a folder name"
        raise BundleError(message)
    return store / RELEASES / version


def current_version(store: Path) -> str | None:
    """The version that is to be served; None before the first :func:`promote`.

    Raises:
        BundleError: the file that names it cannot be read.
    """
    path = store / RELEASES / CURRENT_FILE
    try:
        version = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error}"
        raise BundleError(message) from error
    if not version:
        message = f"{path} is empty"
        raise BundleError(message)
    return version


def current_bundle(store: Path) -> Path:
    """The bundle that is to be served.

    Raises:
        BundleError: nothing was promoted, or the bundle that was is gone.
    """
    version = current_version(store)
    if version is None:
        message = f"{store / RELEASES} names no current release; promote one first"
        raise BundleError(message)
    folder = release_folder(store, version)
    if not folder.is_dir():
        message = f"{folder}, the current release, is not there"
        raise BundleError(message)
    return folder


def promote(store: Path, version: str) -> Path:
    """Make ``version`` the release that is served, at once or not at all, and return its bundle.

    Raises:
        BundleError: there is no such bundle, or its manifest names another version.
    """
    folder = release_folder(store, version)
    manifest = read_manifest(folder)
    if manifest.version != version:
        message = f"{folder} holds release {manifest.version!r}, not {version!r}"
        raise BundleError(message)
    write_atomically(store / RELEASES / CURRENT_FILE, f"{version}\n")
    return folder


def write_atomically(path: Path, text: str) -> None:
    """Put ``text`` in place of ``path``: a reader, or a crash, sees the old file or the new one whole."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
