from __future__ import annotations

import codecs
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.corpus.batches import cut_batches
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.settings import Settings

MakeSettings = Callable[..., Settings]


def _read(settings: Settings, **options: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    (batch,), _ = cut_batches(settings)
    return read_documents(batch, settings, **options)


def _reasons(rejected: pl.DataFrame) -> dict[str, str]:
    return dict(rejected.select("path", "reason").iter_rows())


def test_documents_are_read_and_the_rest_is_set_aside_with_its_reason(
    folder: Path, make_settings: MakeSettings
) -> None:
    (folder / "b.md").write_text("# The title\n\nBody.\n")
    (folder / "a.txt").write_text("No heading here.\n")
    (folder / "blank.md").write_text(" \u200e\n\t\n", encoding="utf-8")
    (folder / "binary.txt").write_bytes(b"PK\x03\x04\0\0\0")
    (folder / "large.md").write_text("x" * 2000)
    documents, rejected = _read(make_settings(max_file_bytes=1000))
    assert documents.select("path", "title", "text", "bytes", "deleted").rows() == [
        ("a.txt", "a", "No heading here.\n", 17, False),
        ("b.md", "The title", "# The title\n\nBody.\n", 19, False),
    ]
    assert _reasons(rejected) == {"binary.txt": "not_text", "blank.md": "empty", "large.md": "too_large"}
    assert "over corpus.max_file_bytes = 1000" in rejected.filter(reason="too_large")["detail"][0]
    modified = datetime.fromtimestamp((folder / "b.md").stat().st_mtime_ns / 1e9, tz=UTC)
    assert documents["modified_at"][1] == modified
    tables.validate(documents, tables.DOCUMENTS)


def test_the_same_text_under_two_paths_is_one_document_version(folder: Path, make_settings: MakeSettings) -> None:
    (folder / "a.md").write_text("# T\n\nBody.\n")
    (folder / "b.md").write_bytes(codecs.BOM_UTF8 + b"# T\r\n\r\nBody.\r\n")
    documents, rejected = _read(make_settings())
    assert documents["path"].to_list() == ["a.md", "b.md"]
    assert documents["document_id"].n_unique() == 1
    assert rejected.is_empty()


def test_a_file_that_changed_or_went_after_its_batch_was_cut_is_left_to_a_later_one(
    folder: Path, make_settings: MakeSettings
) -> None:
    for name in ("kept.md", "edited.md", "gone.md"):
        (folder / name).write_text(f"text of {name}")
    settings = make_settings()
    (batch,), _ = cut_batches(settings)
    (folder / "edited.md").write_text("something else")
    (folder / "gone.md").unlink()
    documents, rejected = read_documents(batch, settings)
    assert documents["path"].to_list() == ["kept.md"]
    assert _reasons(rejected) == {"edited.md": "changed_since_batch", "gone.md": "unreadable"}


def test_deleted_files_and_those_that_are_documents_no_more_leave_tombstones(
    folder: Path, make_settings: MakeSettings
) -> None:
    for name in ("kept.md", "deleted.md", "emptied.md"):
        (folder / name).write_text(f"text of {name}")
    settings = make_settings()
    _read(settings)
    (folder / "deleted.md").unlink()
    (folder / "emptied.md").write_text("")
    (folder / "new-and-empty.md").write_text("")
    documents, rejected = _read(settings)
    assert documents.select("path", "deleted").rows() == [("deleted.md", True), ("emptied.md", True)]
    assert documents["document_id"].n_unique() == 2
    assert set(_reasons(rejected)) == {"emptied.md", "new-and-empty.md"}


def test_a_link_put_in_place_of_a_file_is_not_followed(
    folder: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    (folder / "a.md").write_text("secret")
    settings = make_settings()
    (batch,), _ = cut_batches(settings)
    (tmp_path / "secret.md").write_text("secret")
    (folder / "a.md").unlink()
    (folder / "a.md").symlink_to(tmp_path / "secret.md")
    documents, rejected = read_documents(batch, settings)
    assert documents.is_empty()
    assert _reasons(rejected) == {"a.md": "unreadable"}


def test_a_batch_without_a_usable_document_fails_where_it_is_the_only_one(
    folder: Path, make_settings: MakeSettings
) -> None:
    (folder / "blank.md").write_text("\n")
    (folder / "binary.md").write_bytes(b"\0\0")
    settings = make_settings()
    (batch,), _ = cut_batches(settings)
    assert read_documents(batch, settings)[0].is_empty()
    with pytest.raises(CorpusError) as caught:
        read_documents(batch, settings, only_batch=True)
    for part in (str(folder), "blank.md: empty", "binary.md: not_text (it holds NUL bytes)"):
        assert part in str(caught.value)


def test_one_damaged_row_or_file_takes_no_other_along(folder: Path, make_settings: MakeSettings) -> None:
    (folder / "a.jsonl").write_text(
        '{"title": "A", "text": "The operator wrote \\ud83d and left."}\n{"title": "B", "x\n'
    )
    (folder / "b.md").write_text("# Good")
    (folder / "c.jsonl").write_text("no json\n")
    documents, rejected = _read(make_settings(suffixes=(".md", ".jsonl")))
    assert documents["path"].to_list() == ["a.jsonl", "b.md"]
    assert "wrote \ufffd and left." in documents["text"][0]
    assert _reasons(rejected) == {"a.jsonl": "in_part", "c.jsonl": "not_text"}
    assert "1 part left out: line 2 is not JSON" in rejected.filter(reason="in_part")["detail"][0]


def test_blocks_are_stored_with_the_text(folder: Path, make_settings: MakeSettings) -> None:
    (folder / "a.md").write_text("---\ntitle: Named\n---\n\n## Part\n\nText.\n")
    (document,) = _read(make_settings())[0].iter_rows(named=True)
    assert (document["title"], document["text"]) == ("Named", "## Part\n\nText.\n")
    assert document["blocks"] == [
        {"kind": "heading", "level": 2, "start": 0, "end": 8, "text": "Part"},
        {"kind": "paragraph", "level": 0, "start": 9, "end": 15, "text": ""},
    ]
