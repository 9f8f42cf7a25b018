from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import polars as pl

from embed_pipeline.evaluation.query_sets import Passages, modification_times, with_document_slices
from embed_pipeline_tests.evaluation import material

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
