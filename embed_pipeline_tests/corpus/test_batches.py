from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.corpus import batches as batches_module
from embed_pipeline.corpus.batches import (
    ScanLimits,
    batch_folder,
    batch_number,
    cut_batches,
    find_new_batches,
    load_batch,
    load_batches,
)
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
        patched.setattr(batches_module, "read_document", refuse)
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
        patched.setattr(batches_module, "read_document", lambda *_: pytest.fail("it was opened"))
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
    assert "skipped: 1 .png (not in corpus.suffixes), 1 symlink" in str(caught.value)


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
    with pytest.raises(CorpusError, match=r"'00009-0a1b2c3d' has no manifest .*run: embed-pipeline sdg"):
        load_batch(make_settings().paths.store, "00009-0a1b2c3d")


def test_a_file_still_written_to_is_left_for_a_later_look(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, "old.md")
    settings = make_settings()
    later = (folder / "old.md").stat().st_ctime + 60
    look = find_new_batches(settings, ScanLimits(settle_seconds=30), now=later)
    assert _names(list(look.batches)) == [["old.md"]]
    _write(folder, "young.md")
    # A copy that keeps the original's time is young all the same.
    os.utime(folder / "young.md", (1, 1))
    touched = (folder / "young.md").stat().st_ctime
    look = find_new_batches(settings, ScanLimits(settle_seconds=30), now=touched + 10)
    assert (look.batches, look.unsettled) == ((), 1)
    look = find_new_batches(settings, ScanLimits(settle_seconds=30), now=touched + 31)
    assert (_names(list(look.batches)), look.unsettled) == ([["young.md"]], 0)


@pytest.mark.parametrize("pace", [ScanLimits(files=2), ScanLimits(bytes=30)])
def test_one_look_reads_no_more_than_its_pace(folder: Path, make_settings: MakeSettings, pace: ScanLimits) -> None:
    _write(folder, *(f"{number}.md" for number in range(5)))
    settings = make_settings()
    looks = [find_new_batches(settings, pace) for _ in range(4)]
    assert [[file.path for batch in look.batches for file in batch.files] for look in looks] == [
        ["0.md", "1.md"], ["2.md", "3.md"], ["4.md"], [],
    ]  # fmt: skip
    assert [look.waiting for look in looks] == [3, 1, 0, 0]


def test_only_what_differs_from_the_manifests_is_read(
    folder: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "same.md", "touched.md", "changed.md")
    settings = make_settings()
    cut_batches(settings)
    os.utime(folder / "touched.md", (1, 1))
    _write(folder, "changed.md", text="another text")
    read: list[str] = []
    read_document = batches_module.read_document
    monkeypatch.setattr(
        batches_module, "read_document", lambda *arguments: (read.append(arguments[1]), read_document(*arguments))[1]
    )
    cut_batches(settings)
    assert sorted(read) == ["changed.md", "touched.md"]
    cut_batches(settings)
    assert sorted(read) == ["changed.md", "touched.md"], "a touched file is read once"


def test_what_is_noted_of_a_touched_file_does_not_hide_a_later_change(
    folder: Path, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    for text, time in (("first", 1), ("first", 2), ("other", 3), ("third", 2)):
        _write(folder, "a.md", text=text)
        os.utime(folder / "a.md", (time, time))
        cut_batches(settings)
    assert len(load_batches(settings.paths.store)) == 3


def test_files_that_cannot_be_read_do_not_keep_the_others_waiting(
    folder: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(folder, "a.md", "b.md")
    settings = make_settings()

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(batches_module, "read_document", refuse)
        cut_batches(settings)
        _write(folder, "c.md", "d.md")
        (batch,) = find_new_batches(settings, ScanLimits(files=2)).batches
    assert [file.path for file in batch.files] == ["c.md", "d.md"]


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_deleted(
    folder: Path, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "shelf").mkdir()
    _write(folder, "b.md", "c.md")
    _write(folder / "shelf", "a.md")
    settings = make_settings()
    cut_batches(settings)
    scandir = os.scandir

    def fail_on_shelf(path: str) -> object:
        if Path(path).name == "shelf":
            raise OSError(5, "Input/output error")
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", fail_on_shelf)
        look = find_new_batches(settings, ScanLimits())
    assert (look.batches, look.held_back) == ((), 1)
    assert find_new_batches(settings, ScanLimits()).held_back == 0


def test_too_many_deletions_at_once_are_held_back_until_a_person_looks(
    folder: Path, make_settings: MakeSettings
) -> None:
    _write(folder, "a.md", "b.md", "c.md", "d.md")
    settings = make_settings()
    cut_batches(settings)
    for name in ("a.md", "b.md", "c.md"):
        (folder / name).unlink()
    look = find_new_batches(settings, ScanLimits(max_deleted_share=0.5))
    assert (look.batches, look.held_back) == ((), 3)
    (batch,), _ = cut_batches(settings)
    assert batch.deleted == ("a.md", "b.md", "c.md")


def test_a_batch_cut_after_a_manifest_was_removed_gets_a_number_of_its_own(
    folder: Path, make_settings: MakeSettings
) -> None:
    _write(folder, "a.md", "b.md", "c.md")
    settings = make_settings(documents_per_batch=1)
    (first, *_), _ = cut_batches(settings)
    (batch_folder(settings.paths.store) / f"{first.name}.json").unlink()
    (again,), _ = cut_batches(settings)
    assert [file.path for file in again.files] == ["a.md"]
    assert batch_number(again.name) == 4


def test_a_batch_knows_its_share_of_what_was_there(folder: Path, make_settings: MakeSettings) -> None:
    for name, size in (("a.md", 100), ("b.md", 200), ("c.md", 100)):
        (folder / name).write_text("x" * size)
    settings = make_settings(documents_per_batch=2)
    first, second = cut_batches(settings)[0]
    assert (first.share, second.share) == (0.75, 0.25)
    (folder / "d.md").write_text("x" * 600)
    [later], _ = cut_batches(settings)
    assert later.share == 0.6
    assert [batch.share for batch in load_batches(settings.paths.store)] == [0.75, 0.25, 0.6]
    one = batch_folder(settings.paths.store) / f"{later.name}.json"
    one.write_text(one.read_text().replace('"share": 0.6', '"unknown": 1'))
    assert load_batch(settings.paths.store, later.name).share == 1, "a manifest of an earlier version"


def test_a_store_among_the_documents_is_passed_over(folder: Path, make_settings: MakeSettings) -> None:
    _write(folder, "a.md")
    settings = make_settings()
    inside = settings.model_copy(
        update={"paths": settings.paths.model_copy(update={"store": folder / "data" / "store"})}
    )
    cut_batches(inside)
    (folder / "data" / "store" / "reports").mkdir()
    (folder / "data" / "store" / "reports" / "report.md").write_text("# Report")
    _write(folder, "b.md")
    for seen_by in (inside, settings):
        batches, scan = cut_batches(seen_by)
        assert "report.md" not in str(batches)
        assert scan.skipped["a store of embed-pipeline"] == 1
