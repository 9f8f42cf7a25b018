from __future__ import annotations

import logging
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline.beir import LabelsError
from embed_pipeline.evaluation.query_sets import generated_set, labelled_set
from embed_pipeline_tests.evaluation import material
from embed_pipeline_tests.test_beir import write_beir


def test_generated_questions_come_from_one_side_with_their_slices() -> None:
    qa = pl.DataFrame(
        {
            "qa_id": ["b", "a", "c"],
            "question": ["B?", "A?", "C?"],
            "segment_ids": [["s1", "s2"], ["s3"], ["s4"]],
            "hop_count": [2, 1, 1],
            "query_type": ["multi_hop", None, "structural"],
            "reasoning_type": ["causal", None, "factual"],
        }
    )
    split = pl.DataFrame({"qa_id": ["a", "b", "c"], "split": ["test", "test", "dev"]})
    test, dev = generated_set(qa, split, "test"), generated_set(qa, split, "dev")
    assert (test.name, test.ids, test.unit) == ("generated", ["a", "b"], "segment")
    assert test.qrels["b"] == {"s1": 1, "s2": 1}
    assert test.slices["hop_count"] == {"a": "1", "b": "2"}
    assert test.slices["query_type"] == {"b": "multi_hop"}, "nobody said of what type a label's question is"
    assert (dev.name, dev.queries) == ("dev", {"c": "C?"})


def test_judgements_on_documents_that_are_not_here_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged = "q1\tclass.md\t2\nq1\tgone.md\t1\nq1\tlist.md\t0\nq2\tgone.md\t1\n"
    folder = write_beir(tmp_path / "people", corpus=False, test=judged)
    with caplog.at_level(logging.WARNING):
        found = labelled_set(folder, material.corpus())
    assert found is not None
    assert (found.name, found.unit, found.queries) == ("people", "document", {"q1": "question 1"})
    assert found.qrels == {"q1": {"class.md": 2}}
    assert "2 judgements" in caplog.text


def test_a_set_with_a_corpus_of_its_own_keeps_it(tmp_path: Path) -> None:
    found = labelled_set(write_beir(tmp_path / "own", test="q0\ta\t1\nq1\tb\t1\n"), material.corpus())
    assert found is not None
    assert found.unit == "segment"
    assert found.corpus is not None
    assert (found.corpus.ids, found.corpus.texts) == (("a", "b"), ("Title first", "second"))


def test_an_absent_folder_or_one_about_other_documents_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert labelled_set(tmp_path / "absent", material.corpus()) is None
        elsewhere = write_beir(tmp_path / "other", corpus=False, test="q1\tgone.md\t1\n")
        assert labelled_set(elsewhere, material.corpus()) is None
    assert "absent" in caplog.text
    assert "other: no judged document" in caplog.text


def test_test_judgements_are_needed(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"people: there is no qrels/test.tsv"):
        labelled_set(write_beir(tmp_path / "people", train="q0\ta\t1\n"), material.corpus())
