"""The pointer to the release that is served: moved at once, and never to a bundle that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embed_pipeline.release.manifest import BundleError
from embed_pipeline.release.releases import current_bundle, current_version, promote, release_folder
from embed_pipeline.settings import Paths
from embed_pipeline.storage import StorageError


def store_with(store: Path, *versions: str) -> Paths:
    for version in versions:
        folder = store / "release" / version
        folder.mkdir(parents=True)
        facts = {"dimensions": 4, "max_tokens": 8, "query_prefix": "", "passage_prefix": "", "base_model": "base"}
        (folder / "manifest.json").write_text(json.dumps({"version": version, "model": facts, "files": {}}))
    return Paths(store=store)


def test_the_promoted_release_is_current_and_the_next_takes_its_place(tmp_path):
    paths = store_with(tmp_path, "1", "2")
    assert current_version(paths) is None
    for version in ("1", "2", "1"):
        assert promote(paths, version) == current_bundle(paths) == paths.store / "release" / version
        assert current_version(paths) == version
    assert sorted(path.name for path in (paths.store / "release").iterdir()) == ["1", "2", "current"]


def test_nothing_promoted_and_a_bundle_gone_are_said(tmp_path):
    paths = store_with(tmp_path, "1")
    with pytest.raises(BundleError, match="names no current release"):
        current_bundle(paths)
    promote(paths, "1")
    (paths.store / "release" / "1").rename(paths.store / "elsewhere")
    with pytest.raises(BundleError, match="1, the current release, is not there"):
        current_bundle(paths)
    for content, message in ((b"\n", "is empty"), (b"\xff", "cannot be read")):
        (paths.store / "release" / "current").write_bytes(content)
        with pytest.raises(BundleError, match=message):
            current_version(paths)


def test_a_version_that_is_no_bundle_of_that_version_leaves_the_pointer(tmp_path):
    paths = store_with(tmp_path, "1", "2")
    promote(paths, "1")
    (paths.store / "release" / "2").rename(paths.store / "release" / "3")
    with pytest.raises(BundleError, match="holds release '2', not '3'"):
        promote(paths, "3")
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read"):
        promote(paths, "4")
    assert current_version(paths) == "1"


@pytest.mark.parametrize(
    "version",
    ["", ".", "..", "../1", "a/b", "/etc", "current", "latest", ".staging", "1\n", "a\0", "x" * 200, "\x1b[2J"],
)
def test_a_version_that_is_a_path_is_refused(tmp_path, version):
    with pytest.raises(BundleError, match="release version: "):
        release_folder(Paths(store=tmp_path), version)


def test_a_write_that_fails_leaves_the_pointer_and_no_litter(tmp_path, monkeypatch):
    paths = store_with(tmp_path, "1", "2")
    promote(paths, "1")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device: .*free space there"):
        promote(paths, "2")
    assert current_version(paths) == "1"
    assert len(list((paths.store / "release").iterdir())) == 3
