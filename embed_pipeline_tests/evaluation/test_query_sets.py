"""Query sets: generated and labelled questions, and their slices by document."""

from __future__ import annotations

import dataclasses
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embed_pipeline.evaluation.query_sets import (
    Passages,
    generated_set,
    labelled_set,
    modification_times,
    sampled_set,
    with_document_slices,
)
from embed_pipeline.evaluation.ranking import rank_by_model
from embed_pipeline.row_files import LabelsError
from embed_pipeline.tables import LEFT_OUT_DOCUMENTS
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
    assert sampled_set(qa, 9).ids == ["a", "b", "c"]
    assert sampled_set(qa, 2).queries == {"a": "A?", "b": "B?"}
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
    assert "2 judgements are on documents not in the corpus, first 'gone.md'" in caplog.text


def test_judgements_on_a_copy_hold_for_the_document_that_stayed(tmp_path: Path) -> None:
    judged = "q1\tcopy.md\t3\nq1\tclass.md\t1\nq2\tcopy.md\t1\n"
    row = {"path": "copy.md", "document_id": "d", "batch": "b1", "duplicate_of": "class.md"}
    left_out = LEFT_OUT_DOCUMENTS.frame([row | {"reason": "near_duplicate", "resemblance": 0.97}])
    found = labelled_set(write_beir(tmp_path / "people", corpus=False, test=judged), material.corpus(), left_out)
    assert found is not None
    assert found.qrels == {"q1": {"class.md": 3}, "q2": {"class.md": 1}}


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
    expected = "people: there is no qrels/test.tsv .* those of train, which a copy named test would judge by"
    with pytest.raises(LabelsError, match=expected):
        labelled_set(write_beir(tmp_path / "people", train="q0\ta\t1\n"), material.corpus())


START = datetime(2026, 1, 1, tzinfo=UTC)
# Document i has 2 i + 1 tokens in two segments; the later documents are the older ones.
CORPUS = material.corpus().with_columns(token_count=pl.int_range(20, dtype=pl.Int64))
TIMES = {f"d{i}": START - timedelta(days=i) for i in range(10)}


def test_questions_are_sliced_by_age_and_length_of_what_answers_them() -> None:
    sliced = with_document_slices(material.generated(), CORPUS, TIMES)
    # The answers are in documents 0, 1, 2, 4, 6 and 7 of ten.
    ages = [sliced.slices["document_age"][f"q{i}"].split()[0] for i in range(6)]
    assert ages == ["newest", "newest", "newest", "middle", "oldest", "oldest"]
    lengths = [sliced.slices["document_length"][f"q{i}"].split()[0] for i in range(6)]
    assert lengths == ["shortest", "shortest", "shortest", "middle", "middle", "longest"]
    assert sliced.slices["hop_count"] == material.generated().slices["hop_count"]


def test_a_question_with_several_documents_is_sliced_by_the_newest_and_the_longest() -> None:
    both = dataclasses.replace(material.labelled(), qrels={"p1": {"value.md": 1, "list.md": 1}, "p2": {"python.md": 1}})
    sliced = with_document_slices(both, CORPUS, TIMES)
    assert sliced.slices["document_age"] == {"p1": "newest third", "p2": "middle third"}
    assert sliced.slices["document_length"] == {"p1": "longest third", "p2": "middle third"}


def test_documents_that_are_alike_and_foreign_corpora_are_not_sliced() -> None:
    same = dict.fromkeys(TIMES, START)
    assert "document_age" not in with_document_slices(material.generated(), CORPUS, same).slices
    assert "document_age" not in with_document_slices(material.generated(), CORPUS).slices
    own = dataclasses.replace(material.generated(), corpus=Passages(("s00",), ("text",)))
    assert with_document_slices(own, CORPUS, TIMES) == own


def test_the_newest_file_tells_a_documents_age() -> None:
    def batch(**rows: datetime) -> pl.DataFrame:
        names = [name.split("_")[0] for name in rows]
        return pl.DataFrame(
            {"document_id": names, "modified_at": list(rows.values()), "deleted": [name == "gone" for name in rows]}
        )

    later = START + timedelta(days=1)
    found = modification_times({"b2": batch(a=START), "b1": batch(a=later, b=START, gone=START)})
    assert found == {"a": later, "b": START}


def test_a_query_that_is_a_passage_is_not_its_own_answer(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "arguments", test="a\tb\t1\nq1\tb\t1\n")
    asked = {"a": "Title first", "b": "no passage says this", "q1": "question 1"}
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": k, "text": v}) for k, v in asked.items()))
    found = labelled_set(folder, material.corpus())
    assert found is not None
    assert found.itself == {"a": "a"}
    vectors = np.eye(2, dtype=np.float32)
    ranked = rank_by_model(found, ["a", "b"], ["a", "b"], vectors, vectors[[0, 0]], depth=10)
    assert ranked == {"a": ["b"], "q1": ["a", "b"]}


@pytest.mark.parametrize("written", ["./class.md", "/class.md", "cl%61ss.md"])
def test_documents_are_found_however_their_paths_are_written(tmp_path: Path, written: str) -> None:
    folder = write_beir(tmp_path / "people", corpus=False, test=f"q1\t{written}\t2\nq1\tclass.md\t1\n")
    found = labelled_set(folder, material.corpus())
    assert found is not None
    assert found.qrels == {"q1": {"class.md": 2}}
