"""Which release is served: ``release/current`` holds its version, ``release/<version>/`` its bundle.

Both are in the store or, where ``paths.assets`` is set, on object storage; then a bundle is fetched to the store first.
"""

from __future__ import annotations

from pathlib import Path

from embed_pipeline.release.manifest import BundleError, read_manifest
from embed_pipeline.settings import Paths
from embed_pipeline.shelf import CURRENT, LATEST, Shelf
from embed_pipeline.storage import StorageError, check_name

RELEASES = "release"


def release_folder(paths: Paths, version: str) -> Path:
    """The bundle of ``version`` on this machine, fetched where it is kept elsewhere.

    Raises:
        BundleError: the version is not a plain folder name, or its bundle cannot be fetched.
    """
    shelf = _releases(paths, version)
    try:
        return shelf.fetch(version)
    except StorageError as error:
        message = f"release {version} cannot be fetched: {error}"
        raise BundleError(message) from error


def has_release(paths: Paths, version: str) -> bool:
    """Whether the bundle of ``version`` is kept.

    Raises:
        BundleError: the version is not a plain folder name, or its storage cannot be reached.
    """
    shelf = _releases(paths, version)
    try:
        return shelf.holds(version)
    except StorageError as error:
        raise BundleError(str(error)) from error


def current_version(paths: Paths) -> str | None:
    """The version that is to be served; None before the first :func:`promote`.

    Raises:
        BundleError: the file that names it cannot be read.
    """
    shelf = Shelf.of(paths).under(RELEASES)
    path = shelf.address / CURRENT
    try:
        version = shelf.pointed(CURRENT)
    except (OSError, UnicodeDecodeError, StorageError) as error:
        message = f"{path} cannot be read: {error}"
        raise BundleError(message) from error
    if version is not None and not version:
        message = f"{path} is empty"
        raise BundleError(message)
    return version


def current_bundle(paths: Paths) -> Path:
    """The bundle that is to be served, on this machine.

    Raises:
        BundleError: nothing was promoted, or the bundle that was is gone or cannot be fetched.
    """
    version = current_version(paths)
    if version is None:
        message = f"{paths.root / RELEASES} names no current release; promote one first"
        raise BundleError(message)
    folder = release_folder(paths, version)
    if not folder.is_dir():
        message = f"{folder}, the current release, is not there"
        raise BundleError(message)
    return folder


def promote(paths: Paths, version: str) -> Path:
    """Make ``version`` the release that is served, at once or not at all, and return its bundle.

    Raises:
        BundleError: there is no such bundle, or its manifest names another version.
        StorageError: the disk is full, or the object storage refused it or cannot be reached.
    """
    folder = release_folder(paths, version)
    manifest = read_manifest(folder)
    if manifest.version != version:
        message = f"{folder} holds release {manifest.version!r}, not {version!r}"
        raise BundleError(message)
    Shelf.of(paths).under(RELEASES).point(CURRENT, version)
    return folder


def _releases(paths: Paths, version: str) -> Shelf:
    if version in {CURRENT, LATEST}:
        message = f"release version: {version!r} is a pointer to a release"
        raise BundleError(message)
    try:
        check_name(version)
    except StorageError as error:
        message = f"release version: {error}"
        raise BundleError(message) from error
    return Shelf.of(paths).under(RELEASES)
