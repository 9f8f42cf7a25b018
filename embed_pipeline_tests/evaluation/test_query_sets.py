from __future__ import annotations

import json
import logging
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline.evaluation.query_sets import EvaluationError, generated_set, labelled_set
from embed_pipeline_tests.evaluation import material


def beir(folder: Path, qrels: str, corpus: list[dict[str, str]] | None = None) -> Path:
    (folder / "qrels").mkdir(parents=True)
    queries = [{"_id": "1", "text": "first"}, {"_id": "2", "text": "second"}]
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(row) for row in queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    if corpus is not None:
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    return folder


def test_generated_questions_come_from_one_side_with_their_slices() -> None:
    qa = pl.DataFrame(
        {
            "qa_id": ["b", "a", "c"],
            "question": ["B?", "A?", "C?"],
            "segment_ids": [["s1", "s2"], ["s3"], ["s4"]],
            "hop_count": [2, 1, 1],
            "query_type": ["multi_hop", "contextual", "structural"],
            "reasoning_type": ["causal", "factual", "factual"],
        }
    )
    split = pl.DataFrame({"qa_id": ["a", "b", "c"], "split": ["test", "test", "dev"]})
    test, dev = generated_set(qa, split, "test"), generated_set(qa, split, "dev")
    assert (test.name, test.ids, test.unit) == ("generated", ["a", "b"], "segment")
    assert test.qrels["b"] == {"s1": 1, "s2": 1}
    assert test.slices["hop_count"] == {"a": "1", "b": "2"}
    assert (dev.name, dev.queries) == ("dev", {"c": "C?"})


def test_judgements_on_documents_that_are_not_here_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = beir(tmp_path / "people", "1\tclass.md\t2\n1\tgone.md\t1\n1\tlist.md\t0\n2\tgone.md\t1\n")
    with caplog.at_level(logging.WARNING):
        found = labelled_set(folder, material.corpus())
    assert found is not None
    assert (found.name, found.unit, found.queries) == ("people", "document", {"1": "first"})
    assert found.qrels == {"1": {"class.md": 2}}
    assert "2 judgements" in caplog.text


def test_a_set_with_a_corpus_of_its_own_keeps_it(tmp_path: Path) -> None:
    folder = beir(
        tmp_path / "own",
        "1\td1\t1\n2\td2\t1\n",
        [{"_id": "d1", "title": "Title", "text": "text"}, {"_id": "d2", "title": "", "text": "other"}],
    )
    found = labelled_set(folder, material.corpus())
    assert found is not None
    assert found.unit == "segment"
    assert found.corpus is not None
    assert (found.corpus.ids, found.corpus.texts) == (("d1", "d2"), ("Title text", "other"))


def test_an_absent_folder_or_one_about_other_documents_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert labelled_set(tmp_path / "absent", material.corpus()) is None
        assert labelled_set(beir(tmp_path / "other", "1\tgone.md\t1\n"), material.corpus()) is None
    assert "absent" in caplog.text
    assert "other: no judged document" in caplog.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("queries.jsonl", '{"_id": "1", "text": "x"}\n{"_id": 2}\n', r"queries.jsonl, line 2: expected an object"),
        ("queries.jsonl", '{"_id": "1", "text": "x"}\n{\n', r"queries.jsonl, line 2: not JSON"),
        ("queries.jsonl", '{"_id": "1", "text": "x"}\n{"_id": "1", "text": "y"}', r"line 2: _id '1' occurs twice"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\tclass.md\n", r"test.tsv, line 2: .* got 2 columns"),
        ("qrels/test.tsv", "1\tclass.md\thigh\n", r"test.tsv, line 1: score 'high'"),
        ("qrels/test.tsv", "9\tclass.md\t1\n", r"test.tsv, line 1: query '9'"),
    ],
)
def test_what_is_malformed_is_named_with_its_line(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = beir(tmp_path / "people", "1\tclass.md\t1\n")
    (folder / file).write_text(content)
    with pytest.raises(EvaluationError, match=message):
        labelled_set(folder, material.corpus())


def test_a_missing_file_and_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "people", "1\tclass.md\t1\n")
    (folder / "queries.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match=r"queries.jsonl: not UTF-8"):
        labelled_set(folder, material.corpus())
    (folder / "queries.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"queries.jsonl: No such file"):
        labelled_set(folder, material.corpus())
