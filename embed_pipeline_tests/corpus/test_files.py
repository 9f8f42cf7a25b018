from __future__ import annotations

import itertools
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from embed_pipeline.corpus import files
from embed_pipeline.corpus.files import CorpusError, document_name, read_regular, scan_folder
from embed_pipeline.settings import Corpus

CORPUS = Corpus()


def test_readable_files_are_listed_by_path(folder: Path) -> None:
    (folder / "b" / "deep").mkdir(parents=True)
    for name in ("z.md", "b/deep/a.TXT", "b/c.html", "b/picture.png", ".hidden.md", "README"):
        (folder / name).write_text("text")
    scan = scan_folder(folder, CORPUS)
    assert [file.path for file in scan.files] == ["b/c.html", "b/deep/a.TXT", "z.md"]
    assert scan.skipped == {".png (not in corpus.suffixes)": 1, "without an ending (not in corpus.suffixes)": 1}
    assert scan.describe_skipped() == "1 .png (not in corpus.suffixes), 1 without an ending (not in corpus.suffixes)"
    assert {file.size for file in scan.files} == {4}


def test_suffixes_are_compared_without_case(folder: Path) -> None:
    (folder / "a.MD").write_text("text")
    assert len(scan_folder(folder, Corpus(suffixes=(".Md",))).files) == 1


def test_links_are_counted_and_never_followed(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "secret.md").write_text("secret")
    (folder / "link.md").symlink_to(outside / "secret.md")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "dangling.md").symlink_to(outside / "none.md")
    scan = scan_folder(folder, CORPUS)
    assert (scan.files, scan.skipped) == ((), {"symlink": 4})


@pytest.mark.parametrize(
    "path", ["link.md", "linked/secret.md", "../secret/secret.md", "linked/../../secret/secret.md"]
)
def test_what_leaves_the_folder_is_not_read(folder: Path, tmp_path: Path, path: str) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "secret.md").write_text("secret")
    (folder / "link.md").symlink_to(outside / "secret.md")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    with pytest.raises(OSError):
        read_regular(folder, path, 100)


def test_fifos_sockets_and_devices_are_skipped_without_a_hang(folder: Path) -> None:
    os.mkfifo(folder / "fifo.md")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.md"))
        scan = scan_folder(folder, CORPUS)
    assert (scan.files, scan.skipped) == ((), {"not a regular file": 2})
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(folder, "fifo.md", 100)


def test_a_name_that_no_table_can_hold_is_skipped(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.md"))).write_text("text")
    scan = scan_folder(folder, CORPUS)
    assert (scan.files, scan.skipped) == ((), {"name not UTF-8": 1})


def test_a_folder_without_end_is_given_up_at_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.png").write_text("x")
    entry = next(iter(os.scandir(folder)))
    looked_at = itertools.count()

    class Endless:
        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return (entry for _ in looked_at)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(files.os, "scandir", lambda _: Endless())
    with pytest.raises(CorpusError, match=r"over corpus\.max_files = 50 entries"):
        scan_folder(folder, Corpus(max_files=50))
    assert next(looked_at) == 51


@pytest.mark.slow
def test_a_tree_of_a_million_files_is_stopped_before_it_fills_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.stat_result((stat.S_IFREG | 0o644, 1, 1, 1, 0, 0, 10, 1, 1, 1))

    class Entry:
        def __init__(self, number: int) -> None:
            self.name = f"a-name-as-long-as-they-are-{number}.md"
            self.path = f"{folder}/{self.name}"

        def is_dir(self, *, follow_symlinks: bool) -> bool:
            return follow_symlinks

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            assert not follow_symlinks
            return status

    class Million:
        def __enter__(self) -> Iterator[Entry]:
            return (Entry(number) for number in range(1_000_000))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(files.os, "scandir", lambda _: Million())
    before = psutil.Process().memory_info().rss
    with pytest.raises(CorpusError, match=r"over corpus\.max_files = 500000 entries") as caught:
        scan_folder(folder, CORPUS)
    # The traceback holds what the scan held.
    assert caught.tb is not None
    assert psutil.Process().memory_info().rss - before < 256_000_000


def test_reading_stops_one_byte_over_the_limit(folder: Path) -> None:
    (folder / "a.md").write_bytes(b"x" * 1000)
    assert len(read_regular(folder, "a.md", 10)) == 11


def test_a_folder_that_is_none_is_named(folder: Path) -> None:
    (folder / "file").write_text("x")
    with pytest.raises(
        CorpusError, match=r"nowhere does not exist; set paths.documents, or run: embed-pipeline sample"
    ):
        scan_folder(folder / "nowhere", CORPUS)
    with pytest.raises(CorpusError, match="is not a folder"):
        scan_folder(folder / "file", CORPUS)


@pytest.mark.parametrize(
    ("given", "name"),
    [("a/b.md", "a/b.md"), ("./a/b.md", "a/b.md"), ("docs/a/b.md", "a/b.md"), ("{here}/docs/a/b.md", "a/b.md")],
)
def test_a_document_is_named_however_its_path_was_typed(tmp_path, monkeypatch, given, name):
    monkeypatch.chdir(tmp_path)
    assert document_name(given.format(here=tmp_path), Path("docs")) == name
    assert document_name(given, "s3://bucket/docs") == given.removeprefix("./")
