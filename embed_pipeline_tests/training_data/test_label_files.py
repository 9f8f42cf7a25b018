"""Reading labels: what a file may hold, and the file and line of what it may not."""

from __future__ import annotations

import json

import polars as pl
import pytest

from embed_pipeline.beir import LabelsError
from embed_pipeline.training_data.labels import read_label_set
from embed_pipeline_tests.test_beir import write_beir


def test_beir_folder_with_its_own_split(tmp_path):
    folder = write_beir(tmp_path / "set", train="q0\ta\t1\nq0\tb\t0\n", test="q1\tb\t2\nq2\ta\t0\n")
    found = read_label_set(folder)
    assert found.name == "set"
    assert found.passages == {"a": "Title first", "b": "second"}
    assert [(x.question, x.positive_ids, x.negative_ids, x.side) for x in found.labels] == [
        ("question 0", ["a"], ["b"], "train"),
        ("question 1", ["b"], [], "test"),
    ]


def test_train_judgements_alone_are_no_split_and_test_judgements_alone_are(tmp_path):
    assert [x.side for x in read_label_set(write_beir(tmp_path / "one", train="q0\ta\t1\n")).labels] == [None]
    assert [x.side for x in read_label_set(write_beir(tmp_path / "two", test="q0\ta\t1\n")).labels] == ["test"]


def test_jsonl_and_parquet_are_alike(tmp_path):
    rows = [
        {"question": "what", "positives": ["this\u2028text"], "negatives": ["that"], "split": "train"},
        {"question": "where", "positive_ids": ["guide.md"], "split": "test"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    found = read_label_set(tmp_path / "mine.jsonl")
    assert (found.name, found.passages) == ("mine", {})
    assert (found.labels[0].positives, found.labels[0].negatives) == (["this\u2028text"], ["that"])
    assert (found.labels[1].positive_ids, found.labels[1].side) == (["guide.md"], "test")
    pl.DataFrame(rows, schema_overrides={"positive_ids": pl.List(pl.String)}).write_parquet(tmp_path / "mine.parquet")
    same = read_label_set(tmp_path / "mine.parquet")
    drop = lambda labels: [(x.question, x.positives, x.positive_ids, x.negatives, x.side) for x in labels]  # noqa: E731 - a line
    assert drop(same.labels) == drop(found.labels)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: expected an object"),
        ('{"positives": ["a"]}', "line 1: question is None"),
        ('{"question": "q"}', "line 1: neither positives nor positive_ids"),
        ('{"question": "q", "positives": [1]}', "line 1: positives is"),
        ('{"question": "q", "positives": [" "]}', "line 1: positives is"),
        ('{"question": "q", "positives": ["a"], "split": "valid"}', "split is 'valid'"),
        ('{"question": "q", "positives": ["a"], "positve": "b"}', r"unknown fields \['positve'\]"),
        (
            '{"question": "q", "positives": "a", "split": "dev"}\n{"question": "r", "positives": "a"}',
            "line 2: split is",
        ),
    ],
)
def test_a_malformed_row_is_named(tmp_path, line, problem):
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(LabelsError, match=problem):
        read_label_set(tmp_path / "x.jsonl")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(LabelsError, match="neither a folder nor"):
        read_label_set(tmp_path / "absent")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(LabelsError, match="bad.parquet: not a readable Parquet file"):
        read_label_set(tmp_path / "bad.parquet")
    (tmp_path / "bad.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(LabelsError, match="bad.jsonl, line 1: not UTF-8 at byte 14"):
        read_label_set(tmp_path / "bad.jsonl")
