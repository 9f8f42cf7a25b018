from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.corpus import batches as batches_module
from embed_pipeline.corpus.batches import batch_folder, cut_batches, load_batch, load_batches
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.settings import Settings

MakeSettings = Callable[..., Settings]


def _names(batches: list[batches_module.Batch]) -> list[list[str]]:
    return [[file.path for file in batch.files] for batch in batches]


def _write(folder: Path, *names: str, text: str = "text") -> None:
    for name in names:
        (folder / name).write_text(f"{text} of {name}")


def test_a_drop_is_cut_into_batches_and_a_second_look_finds_nothing(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, "e.md", "a.md", "c.md", "b.md", "d.md")
    settings = make_settings(documents_per_batch=2)
    cut, scan = cut_batches(settings)
    assert _names(cut) == [["a.md", "b.md"], ["c.md", "d.md"], ["e.md"]]
    assert [batch.name.split("-")[0] for batch in cut] == ["00001", "00002", "00003"]
    assert len(scan.files) == 5
    assert cut_batches(settings)[0] == []
    assert load_batches(settings.paths.store) == cut
    assert load_batch(settings.paths.store, cut[1].name) == cut[1]


def test_changes_and_deletions_are_one_new_batch(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, "same.md", "changed.md", "gone.md")
    settings = make_settings()
    cut_batches(settings)
    _write(folder, "changed.md", text="another text")
    _write(folder, "new.md")
    (folder / "gone.md").unlink()
    (batch,), _ = cut_batches(settings)
    assert [(file.path, file.replaces) for file in batch.files] == [("changed.md", True), ("new.md", False)]
    assert batch.deleted == ("gone.md",)
    assert cut_batches(settings)[0] == []


def test_a_deletion_alone_and_a_return_are_seen(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, "stays.md", "comes.md")
    settings = make_settings()
    cut_batches(settings)
    (folder / "comes.md").unlink()
    (gone,), _ = cut_batches(settings)
    assert (gone.files, gone.deleted) == ((), ("comes.md",))
    _write(folder, "comes.md")
    (back,), _ = cut_batches(settings)
    assert _names([back]) == [["comes.md"]]


def test_a_touched_file_is_no_change(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, "a.md")
    settings = make_settings()
    cut_batches(settings)
    os.utime(folder / "a.md", (1, 1))
    assert cut_batches(settings)[0] == []


def test_a_file_that_could_not_be_read_is_tried_again(
    folder: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "a.md")
    settings = make_settings()

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(batches_module, "read_regular", refuse)
        (first,), _ = cut_batches(settings)
        assert first.files[0].sha256 == ""
        assert cut_batches(settings)[0] == [], "unreadable as before: no new batch"
    (again,), _ = cut_batches(settings)
    assert again.files[0].sha256 != ""


def test_a_large_file_is_not_read_until_the_limit_allows(
    folder: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "large.md").open("wb") as stream:
        stream.truncate(5 * 1024**3)  # sparse: 5 GB that hold no block
    with monkeypatch.context() as patched:
        patched.setattr(batches_module, "read_regular", lambda *_: pytest.fail("it was opened"))
        (batch,), _ = cut_batches(make_settings())
        assert batch.files[0].sha256 == ""
        assert cut_batches(make_settings())[0] == []
    (folder / "large.md").write_bytes(b"x" * 100)
    cut_batches(make_settings(max_file_bytes=50))
    (batch,), _ = cut_batches(make_settings(max_file_bytes=200))
    assert batch.files[0].sha256 != ""


def test_a_crash_between_two_manifests_loses_and_repeats_nothing(
    folder: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "a.md", "b.md", "c.md")
    settings = make_settings(documents_per_batch=1)
    write, written = batches_module._write, []

    def crash(*arguments: object) -> batches_module.Batch:
        if len(written) == 1:
            raise OSError("killed here")
        written.append(write(*arguments))
        return written[-1]

    with monkeypatch.context() as patched:
        patched.setattr(batches_module, "_write", crash)
        with pytest.raises(OSError, match="killed here"):
            cut_batches(settings)
    assert _names(cut_batches(settings)[0]) == [["b.md"], ["c.md"]]
    assert _names(load_batches(settings.paths.store)) == [["a.md"], ["b.md"], ["c.md"]]


def _cut(settings: Settings) -> int:
    return len(cut_batches(settings)[0])


def test_looks_at_the_same_time_cut_each_file_once(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, *(f"{number}.md" for number in range(40)))
    settings = make_settings(documents_per_batch=4)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert sorted(pool.map(_cut, [settings] * 4)) == [0, 0, 0, 10]
    paths = [file.path for batch in load_batches(settings.paths.store) for file in batch.files]
    assert sorted(paths) == sorted(set(paths))
    assert len(paths) == 40


def test_no_usable_document_names_the_folder_and_what_was_skipped(folder: Path, make_settings: MakeSettings) -> None:
    (folder / "photo.png").write_bytes(b"\x89PNG")
    (folder / "link.md").symlink_to("photo.png")
    with pytest.raises(CorpusError) as caught:
        cut_batches(make_settings())
    assert str(folder) in str(caught.value)
    assert "skipped: 1 other suffix, 1 symlink" in str(caught.value)


@pytest.mark.parametrize(
    "damage", ["", "{", '{"files": [], "deleted": 3}', '{"files": [{"path": "a"}], "deleted": []}']
)
def test_a_damaged_manifest_is_refused_by_name(folder: Path, make_settings: MakeSettings, damage: str) -> None:
    _write(folder, "a.md")
    settings = make_settings()
    cut_batches(settings)
    (manifest,) = batch_folder(settings.paths.store).glob("*.json")
    manifest.write_text(damage)
    with pytest.raises(CorpusError, match=f"{manifest.name} is damaged"):
        cut_batches(settings)


def test_an_unknown_batch_is_named(make_settings: MakeSettings) -> None:
    with pytest.raises(CorpusError, match=r"'00009-x' has no manifest .*run: embed-pipeline sdg"):
        load_batch(make_settings().paths.store, "00009-x")
