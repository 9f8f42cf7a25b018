"""Objects and files: put in one step, read back, and what drivers raise told in one way."""

from __future__ import annotations

import boto3
import pytest
from s3fs import S3FileSystem

from embed_pipeline import tables
from embed_pipeline.settings import Paths
from embed_pipeline.storage import (
    StorageError,
    copy_whole,
    list_folder,
    read_all,
    read_table,
    read_whole,
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
