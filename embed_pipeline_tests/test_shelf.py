"""Folders on object storage: whole or not there, fetched once, compared before they are used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from upath import UPath

from embed_pipeline import shelf as shelf_module
from embed_pipeline import storage
from embed_pipeline.settings import Paths
from embed_pipeline.shelf import CURRENT, LATEST, Shelf
from embed_pipeline.storage import StorageError, file_hashes
from embed_pipeline_tests.object_storage import BUCKET, object_storage


@pytest.fixture(scope="module")
def bucket():
    with object_storage():
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["file", "memory", "s3"])
def remote(request, tmp_path) -> UPath:
    if request.param == "s3":
        address = f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    else:
        address = f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path / 'remote'}"
    path = Paths(store=tmp_path, assets=address).remote
    assert path is not None
    return path


def made(shelf: Shelf, name: str, **files: str) -> Path:
    folder = shelf.local / name
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in {"config": "c", "sub/weights": "w", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def stored(path: UPath) -> set[str]:
    return {found.path.removeprefix(path.path).strip("/") for found in path.rglob("*") if found.is_file()}


@pytest.fixture
def shelves(remote, tmp_path) -> tuple[Shelf, Shelf]:
    """Two machines and what both see."""
    return Shelf(tmp_path / "one", remote), Shelf(tmp_path / "two", remote)


def test_another_machine_gets_what_was_published(shelves):
    one, two = shelves
    folder = made(one, "v1")
    assert not two.holds("v1")
    with pytest.raises(StorageError, match="v1 is not there"):
        two.fetch("v1")
    one.publish("v1")
    assert two.holds("v1")
    assert file_hashes(two.fetch("v1")) == file_hashes(folder)
    assert two.pointed(LATEST) is None
    one.point(LATEST, "v1")
    assert two.pointed(LATEST) == "v1"
    assert stored(one.remote) == {"v1.files.json", "v1/config", "v1/sub/weights", "latest"}


def test_a_folder_is_fetched_once_and_again_where_it_was_damaged(shelves, monkeypatch):
    one, two = shelves
    made(one, "v1")
    one.publish("v1")
    folder = two.fetch("v1")
    fetched = []
    download = Shelf._download
    monkeypatch.setattr(Shelf, "_download", staticmethod(lambda *a: (fetched.append(a), download(*a))))
    two.fetch("v1")
    assert fetched == []
    (folder / "config").write_text("damaged", encoding="utf-8")
    assert (two.fetch("v1") / "config").read_text() == "c"
    assert len(fetched) == 1


def test_an_upload_that_is_cut_off_is_not_there_and_begins_anew(shelves, monkeypatch):
    one, two = shelves
    made(one, "v1", more="m")

    def cut_off(source, path):
        if path.name == "weights":
            raise KeyboardInterrupt
        storage.copy_whole(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(shelf_module, "copy_whole", cut_off)
        with pytest.raises(KeyboardInterrupt):
            one.publish("v1")
    assert not two.holds("v1")
    with pytest.raises(StorageError, match="is not there"):
        two.fetch("v1")
    made(one, "v1")
    one.publish("v1")
    assert file_hashes(two.fetch("v1")) == file_hashes(one.local / "v1")
    assert "v1/more" not in stored(one.remote), "what the first try left is gone"


def test_another_content_of_the_same_name_takes_its_place_only_when_it_is_whole(shelves, monkeypatch):
    one, two = shelves
    made(one, "v1", card="first")
    one.publish("v1")
    made(one, "v1", card="second")

    def cut_off(source, path):
        storage.copy_whole(source, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shelf_module, "copy_whole", cut_off)
        with pytest.raises(KeyboardInterrupt):
            one.publish("v1")
    assert (two.fetch("v1") / "card").read_text() == "first", "the earlier one is whole"
    one.publish("v1")
    assert (two.fetch("v1") / "card").read_text() == "second"
    assert len([path for path in stored(one.remote) if path.endswith("card")]) == 1, "the earlier one is gone"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda r: (r / "v1" / "config").write_text("other"), "config is not the file that was stored"),
        (lambda r: (r / "v1" / "config").unlink(), "cannot be"),
        (lambda r: (r / "v1.files.json").write_text("{"), "does not list a folder's files"),
        (
            lambda r: (r / "v1.files.json").write_text(
                json.dumps({"folder": "v1", "files": {"../../out": "0"}, "stored": 0})
            ),
            "lies outside the folder",
        ),
    ],
)
def test_what_is_not_what_was_stored_is_refused_by_name(shelves, tmp_path, damage, says):
    one, two = shelves
    made(one, "v1")
    one.publish("v1")
    damage(one.remote)
    with pytest.raises(StorageError, match=says):
        two.fetch("v1")
    assert not (two.local / "v1").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_newest_and_the_ones_in_use_are_kept_on_both_sides(shelves):
    one, two = shelves
    names = [f"v{number}" for number in range(8)]
    for name in names:
        made(one, name)
        one.publish(name)
        one.point(LATEST, name)
        if name == "v0":
            one.point(CURRENT, name)
        one.prune()
        two.fetch(name)
    kept = {"v0", *names[-5:]}
    assert {path.split("/")[0] for path in stored(one.remote) if "/" in path} == kept
    for shelf in shelves:
        assert {path.name for path in shelf.local.iterdir() if path.is_dir()} == kept
    assert [name for name in names if two.holds(name)] == sorted(kept)
    one.point(CURRENT, "v7")
    assert two.fetch("v0").is_dir(), "an old one that is wanted again is not removed as it is fetched"


def test_a_folder_of_this_machine_alone_is_used_where_it_lies(tmp_path):
    shelf = Shelf.of(Paths(store=tmp_path)).under("release")
    folder = made(shelf, "v1")
    shelf.publish("v1")
    shelf.point(CURRENT, "v1")
    shelf.prune()
    assert shelf.fetch("v1") == folder
    assert (shelf.holds("v1"), shelf.holds("v2")) == (True, False)
    assert sorted(path.name for path in shelf.local.iterdir()) == ["current", "v1"]


def test_a_store_that_cannot_hold_what_is_fetched_is_named(shelves, tmp_path):
    one, _ = shelves
    made(one, "v1")
    one.publish("v1")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError, match="cannot be fetched from"):
        Shelf(tmp_path / "file", one.remote).fetch("v1")


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "/etc", ".hidden", "", "a\n", "x" * 200])
def test_a_name_that_is_a_path_is_refused_everywhere(tmp_path, name):
    shelf = Shelf(tmp_path / "shelf")
    for use in (shelf.fetch, shelf.holds, shelf.publish, lambda path: shelf.point(CURRENT, path)):
        with pytest.raises(StorageError, match="is no name of a stored file or folder"):
            use(name)
    assert not shelf.local.exists()
