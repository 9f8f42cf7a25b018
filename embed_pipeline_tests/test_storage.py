"""Objects and files: put in one step, read back, and what drivers raise told in one way."""

from __future__ import annotations

import boto3
import polars as pl
import pytest
from s3fs import S3FileSystem

from embed_pipeline import tables
from embed_pipeline.settings import Paths
from embed_pipeline.storage import (
    BatchTables,
    StorageError,
    as_local,
    copy_whole,
    list_folder,
    read_all,
    read_table,
    read_whole,
    write_table,
    write_whole,
)
from embed_pipeline_tests.object_storage import BUCKET, object_storage


@pytest.fixture(scope="module")
def bucket():
    with object_storage():
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["file", "memory", "s3", "store"])
def root(request, tmp_path):
    addresses = {"file": f"file://{tmp_path / 'remote'}", "memory": f"memory://{tmp_path.name}", "store": None}
    if request.param == "s3":
        addresses["s3"] = f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return Paths(store=tmp_path / "store", assets=addresses[request.param]).root


def test_what_is_written_is_read(root, tmp_path):
    (tmp_path / "source").write_bytes(b"copied")
    write_whole(root / "folder" / "a.json", b"first")
    write_whole(root / "folder" / "a.json", b"second")
    copy_whole(tmp_path / "source", root / "folder" / "b.json")
    write_whole(root / "folder" / "c.txt", b"another")
    found = list_folder(root / "folder", "*.json")
    assert [path.name for path in found] == ["a.json", "b.json"]
    assert read_all(found) == [read_whole(path) for path in found] == [b"second", b"copied"]
    assert read_all([]) == list_folder(root / "absent", "*") == []
    with pytest.raises(FileNotFoundError):
        read_whole(root / "absent")
    with pytest.raises(FileNotFoundError):
        read_all([root / "folder" / "a.json", root / "absent"])


def _segments(batch: str) -> pl.DataFrame:
    return (
        tables.SEGMENTS.empty()
        .clear(1)
        .with_columns(segment_id=pl.lit(batch), batch=pl.lit(batch))
        .fill_null(strategy="zero")
        .with_columns(pl.col(pl.String).fill_null(""))
    )


def test_tables_of_batches_are_read_when_they_are_asked_for(root, monkeypatch):
    names = [f"{number:05}-0a1b2c3d" for number in range(70)]
    for name in names:
        write_table(root / "segments" / f"{name}.parquet", _segments(name))
    paths = {path.stem: path for path in list_folder(root / "segments", "*")}
    fetched: list[int] = []
    monkeypatch.setattr("embed_pipeline.storage.read_all", lambda paths: fetched.append(len(paths)) or read_all(paths))
    found = BatchTables(dict(reversed(paths.items())), tables.SEGMENTS)
    assert list(found) == names
    assert [frame["batch"].to_list() for frame in found.values()] == [[name] for name in names]
    assert found[names[3]].equals(_segments(names[3]))
    assert fetched == ([] if as_local(root) else [32, 32, 6, 1]), "in order many at once, else what is asked for"
    assert list(found.only({names[5], "absent"})) == [names[5]]
    with pytest.raises(KeyError):
        found["absent"]
    write_whole(paths[names[9]], b"damaged")
    with pytest.raises(StorageError, match=rf"{names[9]}\.parquet is damaged"):
        found[names[9]]


def test_what_another_process_stores_is_seen(root):
    """Listings are not remembered."""
    write_whole(root / "a", b"")
    assert [path.name for path in list_folder(root, "*")] == ["a"]
    if root.protocol == "s3":
        boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{root.path.partition('/')[2]}/b", Body=b"")
    else:
        write_whole(root / "b", b"")
    assert [path.name for path in list_folder(root, "*")] == ["a", "b"]
    assert (root / "b").exists()


def test_a_write_to_a_full_disk_leaves_the_file_before(tmp_path, monkeypatch):
    path = Paths(store=tmp_path, assets=f"file://{tmp_path}/remote").root / "table"
    write_whole(path, b"before")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device: .*free space there"):
        write_whole(path, b"after")
    assert [found.read_bytes() for found in (tmp_path / "remote").iterdir()] == [b"before"]


@pytest.mark.parametrize("use", [read_whole, lambda path: write_whole(path, b"x"), lambda p: list_folder(p, "*")])
def test_a_storage_out_of_reach_is_one_clear_error(use, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"s3://nowhere/\S* cannot be reached: ") as raised:
        use(Paths(store=tmp_path, assets="s3://nowhere/unreachable").root / "table")
    assert "hidden" not in str(raised.value)
    S3FileSystem.clear_instance_cache()


def test_a_bucket_that_is_not_there_is_named(bucket, tmp_path):
    with pytest.raises(StorageError, match="s3://absent/x"):
        write_whole(Paths(store=tmp_path, assets="s3://absent/x").root / "table", b"x")


def test_a_damaged_table_is_named(root):
    path = root / "corpus.parquet"
    write_whole(path, b"not parquet")
    with pytest.raises(
        StorageError, match=r"corpus\.parquet is damaged .*; make it again with: embed-pipeline sdg --force"
    ):
        read_table(path, tables.CORPUS)
