"""Files of rows: every form alike, packed or not, and what is malformed named with its place."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline.row_files import LabelsError, files_of_rows, read_json_lines, read_rows

ROWS = [{"anchor": "a, b", "positive": 'say "c"'}, {"anchor": "d\u2028e", "positive": "f\ng"}]
PACKED = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".XZ": lzma.compress}


def in_form(ending: str) -> bytes:
    """The rows as the content of a file with that ending."""
    frame = pl.DataFrame(ROWS)
    if ending == ".parquet":
        frame.write_parquet(path := Path("rows.parquet"))
        return path.read_bytes()
    separators = {".csv": ",", ".tsv": "\t"}
    if ending in separators:
        return frame.write_csv(separator=separators[ending]).encode()
    return (json.dumps(ROWS, indent=1) if ending == ".json" else "\n".join(map(json.dumps, ROWS))).encode()


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".JSONL"])
def test_every_form_packed_or_not_has_the_same_rows(tmp_path, monkeypatch, ending, packing):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"set{ending}{packing}"
    path.write_bytes(PACKED[packing](in_form(ending)))
    assert [row for _, row in read_rows(path)] == ROWS
    assert files_of_rows(tmp_path)[-1] == path


def test_of_a_file_and_its_packed_form_the_file_is_read(tmp_path):
    for name in ("b.jsonl.gz", "a.jsonl", "a.jsonl.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in files_of_rows(tmp_path)] == ["a.jsonl", "b.jsonl.gz"]


def test_json_lines_have_their_places(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(read_json_lines(path)) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 3", {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.json", '[{"a": 1},\n {"a": }]', "line 2: not JSON: Expecting value"),
        ("x.json", '[{"a": 1}, "b"]', "row 2: expected an object"),
        ("x.json", '{"a": 1}\n{"a": \n', "line 2: not JSON: Expecting value"),
        ("x.json", "\udcff", "x.json: not UTF-8 at byte 0"),
        ("x.csv", "a,b\n1,2,3\n", "x.csv, row 1: 3 cells under 2 columns"),
        ("x.arrow", "", r"x.arrow: expected a file named .jsonl, .*packed \(.gz, .bz2, .xz\) or not"),
        ("x.jsonl.xz", "no xz", "x.jsonl.xz: "),
    ],
)
def test_what_is_malformed_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(LabelsError, match=problem):
        list(read_rows(tmp_path / name))


def test_json_lines_may_be_named_json_and_blank_lines_of_a_table_are_no_rows(tmp_path):
    (tmp_path / "x.json").write_text('\ufeff{"a": "1"}\n\n{"a": "2"}\n')
    (tmp_path / "x.csv").write_text("\ufeffa;b\r\n1;\r\n\r\n2;\r\n")
    assert [row["a"] for _, row in read_rows(tmp_path / "x.json")] == ["1", "2"]
    assert list(read_rows(tmp_path / "x.csv")) == [
        (f"{tmp_path / 'x.csv'}, row 1", {"a": "1", "b": None}),
        (f"{tmp_path / 'x.csv'}, row 3", {"a": "2", "b": None}),
    ]
