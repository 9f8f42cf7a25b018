"""Storage: whole writes, validated reads, damage named."""

from __future__ import annotations

import dagster as dg
import polars as pl
import pytest
from upath import UPath

from embed_pipeline import storage, tables
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.orchestration.io_managers import (
    ModelFolderIOManager,
    ParquetIOManager,
    latest_folder,
    name_by_content,
    stage_folder,
)
from embed_pipeline.shelf import CURRENT, Shelf
from embed_pipeline.storage import StorageError, read_table
from embed_pipeline.tables import TableError


def segments(count: int = 3, text: str = "words") -> pl.DataFrame:
    rows = [
        {"segment_id": f"s{n}", "document_id": "d", "batch": "b", "position": n, "heading_path": "A > B",
         "text": f"{text} {n}", "token_count": 2, "unknown_tokens": 0, "repeated": 0,
         "withheld": ""}
        for n in range(count)
    ]  # fmt: skip
    return tables.SEGMENTS.frame(rows)


def output_context(name: str, batch: str | None = None) -> dg.OutputContext:
    definition = dg.StaticPartitionsDefinition([batch]) if batch else None
    return dg.build_output_context(
        asset_key=name,
        partition_key=batch,
        asset_spec=dg.AssetSpec(name, partitions_def=definition),
    )


def input_context(name: str) -> dg.InputContext:
    return dg.build_input_context(asset_key=name)


@pytest.fixture
def manager(tmp_path):
    return ParquetIOManager(UPath(tmp_path), seed=1)


def test_a_table_comes_back_as_it_was(manager, tmp_path):
    context = output_context("segments")
    manager.handle_output(context, segments())
    assert (tmp_path / "segments.parquet").is_file()
    assert manager.load_input(input_context("segments")).equals(segments())
    metadata = context.consume_logged_metadata() or {}
    assert metadata["dagster/row_count"].value == 3
    assert "words 2" in {record.data["text"] for record in metadata["sample"].records}


def test_what_does_not_fit_is_not_written(manager, tmp_path):
    with pytest.raises(TableError, match="segments"):
        manager.handle_output(output_context("segments"), segments().drop("text"))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_previous_version(manager, tmp_path, monkeypatch):
    manager.handle_output(output_context("segments"), segments())

    def disk_is_full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", disk_is_full)
    with pytest.raises(StorageError, match="No space left on device: .*free space there"):
        manager.handle_output(output_context("segments"), segments(text="other"))
    assert [path.name for path in tmp_path.iterdir()] == ["segments.parquet"]
    assert manager.load_input(input_context("segments")).equals(segments())


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"not parquet", lambda b: b[:40] + b"x" * 40 + b[80:]]
)
def test_a_damaged_file_is_named_and_never_used(manager, tmp_path, damage):
    manager.handle_output(output_context("segments"), segments(200))
    path = tmp_path / "segments.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        StorageError, match=r"segments\.parquet is damaged .*; make it again with: embed-pipeline sdg --force"
    ):
        manager.load_input(input_context("segments"))


def test_a_table_of_another_schema_is_refused(tmp_path):
    path = UPath(tmp_path / "corpus.parquet")
    segments().write_parquet(str(path))
    with pytest.raises(StorageError, match=r"by another version .*missing columns .*; run: embed-pipeline sdg"):
        read_table(path, tables.CORPUS)


def test_a_missing_table_says_what_to_do(manager):
    with pytest.raises(StorageError, match="segments is not there yet"):
        manager.load_input(input_context("segments"))
    assert manager.read_previous("segments") is None


def test_an_object_store_holds_tables_too():
    manager = ParquetIOManager(UPath("memory://tables-test"), seed=1)
    manager.handle_output(output_context("segments"), segments())
    assert manager.load_input(input_context("segments")).equals(segments())


@pytest.mark.slow
def test_model_folders_are_moved_into_place_and_few_are_kept(tmp_path):
    manager = ModelFolderIOManager(Shelf(tmp_path))
    names = []
    for number in range(8):
        staged = stage_folder(tmp_path, "onnx_model")
        (staged / "model.onnx").write_text(f"weights {number}", encoding="utf-8")
        named = name_by_content(staged)
        names.append(named.name)
        manager.handle_output(output_context("onnx_model"), named)
        if number == 0:
            Shelf(tmp_path).under("onnx_model").point(CURRENT, named.name)
    assert latest_folder(Shelf(tmp_path), "onnx_model").name == names[-1]
    assert manager.load_input(input_context("onnx_model")) == tmp_path / "onnx_model" / names[-1]
    kept = {path.name for path in (tmp_path / "onnx_model").iterdir() if path.is_dir() and path.name != ".staging"}
    assert kept == {*names[-5:], names[0]}, "the newest five, and the one that is in use"


def test_a_folder_is_named_for_its_content(tmp_path):
    def named(content: str) -> str:
        staged = stage_folder(tmp_path, "m")
        (staged / "sub").mkdir()
        (staged / "sub" / "file").write_text(content, encoding="utf-8")
        return name_by_content(staged).name

    assert named("a") == named("a") != named("b")


def test_a_missing_model_says_what_to_do(tmp_path):
    with pytest.raises(StorageError, match="finetuned_model is not there yet"):
        latest_folder(Shelf(tmp_path), "finetuned_model")


@pytest.mark.parametrize("batch", ["../../escape/evil", "pwned", "a/../../b", "/etc/x"])
def test_a_partition_that_is_no_batch_writes_and_reads_nothing(tmp_path, batch):
    manager = ParquetIOManager(UPath(tmp_path / "store" / "tables"), seed=1)
    with pytest.raises(CorpusError, match="is no name of a document batch"):
        manager.handle_output(output_context("segments", batch), segments())
    assert list(tmp_path.rglob("*.parquet")) == []
    definition = dg.StaticPartitionsDefinition([batch, "00001-0a1b2c3d"])
    context = dg.build_input_context(
        asset_key="segments", partition_key=batch, asset_partitions_def=definition,
        asset_partition_key_range=dg.PartitionKeyRange(batch, batch),
    )  # fmt: skip
    with pytest.raises(CorpusError, match="is no name of a document batch"):
        manager.load_input(context)


def test_a_fan_in_passes_over_partitions_that_are_no_batches(tmp_path):
    manager, good = ParquetIOManager(UPath(tmp_path), seed=1), "00001-0a1b2c3d"
    manager.handle_output(output_context("segments", good), segments())
    definition = dg.StaticPartitionsDefinition(["../evil", good, "pwned"])
    context = dg.build_input_context(
        asset_key="segments", asset_partitions_def=definition, definition_metadata={"by_batch": True},
        asset_partition_key_range=dg.PartitionKeyRange("../evil", "pwned"),
    )  # fmt: skip
    assert manager.load_input(context).keys() == {good}
