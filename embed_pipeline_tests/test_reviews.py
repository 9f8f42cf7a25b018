"""What people said: stored for good, folded to a verdict, carried to other stores."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from typer.testing import CliRunner
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.cli import app
from embed_pipeline.reviews import (
    ReviewError,
    ReviewJournal,
    ReviewVerdict,
    apply_edits,
    export_reviews,
    fold_reviews,
    import_reviews,
    read_reviews,
    review_row,
)
from embed_pipeline_tests.synthesis import material

START = datetime(2026, 1, 1, tzinfo=UTC)


def frame(*said: dict[str, str]) -> pl.DataFrame:
    """Reviews of ``q1`` by Eva, a minute apart."""
    rows = [
        review_row(**{"qa_id": "q1", "reviewer": "Eva", **one}, reviewed_at=START + timedelta(minutes=number))
        for number, one in enumerate(said)
    ]
    return tables.QA_REVIEWS.frame(rows)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ([{"action": "accept"}], ReviewVerdict(accepted=True, reviewer="Eva")),
        (
            [{"action": "accept"}, {"action": "reject", "reviewer": "Ivo"}],
            ReviewVerdict(accepted=False, reviewer="Ivo"),
        ),
        ([{"action": "comment", "comment": "hm"}], ReviewVerdict()),
        (
            [{"action": "edit", "question": "B?"}, {"action": "edit", "answer": "C"}],
            ReviewVerdict(accepted=True, question="B?", answer="C", reviewer="Eva"),
        ),
        (
            [{"action": "edit", "question": "B?"}, {"action": "reject"}],
            ReviewVerdict(accepted=False, question="B?", reviewer="Eva"),
        ),
        (
            [{"action": "positive", "segment_id": "s1"}, {"action": "positive", "segment_id": "s2"}],
            ReviewVerdict(positives=frozenset({"s1", "s2"}), reviewer="Eva"),
        ),
        (
            [{"action": "accept"}, {"action": "positive", "segment_id": "s1"}, {"action": "withdraw"}],
            ReviewVerdict(reviewer="Eva"),
        ),
    ],
)
def test_the_newest_word_counts(said, verdict):
    reviews = frame(*said)
    assert fold_reviews(reviews) == fold_reviews(reviews.reverse()) == {"q1": verdict}
    assert fold_reviews(None) == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"action": "praise"}, "action is 'praise'"),
        ({"action": "accept", "reviewer": " "}, "reviewer is empty"),
        ({"action": "accept", "qa_id": ""}, "qa_id is empty"),
        ({"action": "edit", "question": " \n"}, "needs question or answer"),
        ({"action": "positive"}, "needs segment_id"),
        ({"action": "comment"}, "needs comment"),
        ({"action": "edit", "question": "x" * 4001}, "question has 4001 characters, may have 4000"),
    ],
)
def test_a_review_says_what_its_action_needs(given, said):
    with pytest.raises(ReviewError, match=said):
        review_row(**{"qa_id": "q1", "reviewer": "Eva", **given})


def test_several_writers_add_and_nothing_is_overwritten(tmp_path):
    root = UPath(tmp_path)
    assert read_reviews(root) is None
    first, second = ReviewJournal(root), ReviewJournal(root)
    for number in range(3):
        first.append([review_row(f"a{number}", "accept", "Eva")])
        second.append([review_row(f"b{number}", "reject", "Ivo")])
    reviews = read_reviews(root)
    assert sorted(reviews["qa_id"]) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert reviews["reviewed_at"].is_sorted()
    with pytest.raises(tables.TableError):
        first.append([{"qa_id": "broken"}])
    first.append([review_row("a3", "accept", "Eva")])
    assert read_reviews(root).height == 7


def test_pairs_get_the_words_that_people_gave_them():
    pairs = material.pairs(material.pair_row("q1", "A?", "s1"), material.pair_row("q2", "B?", "s2"))
    edited = apply_edits(
        pairs, {"q1": ReviewVerdict(accepted=True, question="New?"), "q2": ReviewVerdict(accepted=True, answer="New.")}
    )
    assert edited.select("question", "answer").rows() == [("New?", pairs["answer"][0]), ("B?", "New.")]
    assert apply_edits(pairs, {"q1": ReviewVerdict(accepted=True)}).equals(pairs)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_reviews_go_to_another_store_and_back(tmp_path, form):
    root = UPath(tmp_path)
    folder = tmp_path / "tables" / "qa_pairs"
    folder.mkdir(parents=True)
    material.pairs(material.pair_row("q1", "A?", "s1")).write_parquet(folder / "b1.parquet")
    reviews = frame(
        {"action": "accept"}, {"action": "edit", "answer": 'a "b",\nc; <é>'}, {"action": "reject", "qa_id": "zz"}
    )
    path = tmp_path / f"reviews.{form}"
    export_reviews(reviews, path)
    added = import_reviews(path, root, "nobody")
    assert (added.new, added.known, added.unknown) == (2, 0, ["zz"])
    assert read_reviews(root).equals(reviews.head(2))
    again = import_reviews(path, root, "nobody")
    assert (again.new, again.known) == (0, 2)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "", "reviews are .csv or .jsonl"),
        ("a.csv", "qa_id,action\nq1,accept\nq2,praise\n", "row 2: action is 'praise'"),
        ("a.csv", "qa_id,action,stars\nq1,accept,5\n", "row 1: unknown columns stars"),
        ("a.csv", "qa_id,action\nzz,accept\n", "no pair of it is stored here, first zz"),
        ("a.jsonl", "{", "row 1: not JSON"),
        ("a.jsonl", "[]", "row 1: expected an object"),
        ("a.jsonl", '{"qa_id": 7, "action": "accept"}', "qa_id is 7, expected a text"),
        ("a.jsonl", '{"qa_id": "q1", "action": "accept", "reviewed_at": "soon"}', "reviewed_at is 'soon'"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_row(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ReviewError, match=said):
        import_reviews(tmp_path / name, UPath(tmp_path), "Eva")
    assert read_reviews(UPath(tmp_path)) is None


def test_a_plain_list_of_others_is_enough(tmp_path):
    folder = tmp_path / "tables" / "qa_pairs"
    folder.mkdir(parents=True)
    material.pairs(material.pair_row("q1", "A?", "s1")).write_parquet(folder / "b1.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps({"qa_id": "q1", "action": "reject"}) + "\n\n")
    assert import_reviews(tmp_path / "a.jsonl", UPath(tmp_path), "Eva").new == 1
    assert read_reviews(UPath(tmp_path)).row(0, named=True)["reviewer"] == "Eva"


def test_the_commands_carry_reviews_to_another_store(tmp_path, monkeypatch):
    def command(store, *arguments):
        monkeypatch.setenv("EMBED_PIPELINE_PATHS__STORE", str(tmp_path / store))
        done = CliRunner().invoke(app, ["reviews", *arguments])
        return done.exit_code, done.output

    monkeypatch.chdir(tmp_path)
    for store in ("a", "b"):
        folder = tmp_path / store / "tables" / "qa_pairs"
        folder.mkdir(parents=True)
        material.pairs(material.pair_row("q1", "A?", "s1")).write_parquet(folder / "b1.parquet")
    ReviewJournal(UPath(tmp_path / "a")).append([review_row("q1", "accept", "Eva"), review_row("zz", "reject", "Eva")])
    assert command("a", "export", "x.csv") == (0, "2 reviews in x.csv\n")
    status, said = command("b", "import", "x.csv")
    assert (status, said.splitlines()[0]) == (0, "1 review added; stored before: 0")
    assert "not stored here: 1, first zz" in said
    assert command("b", "import", "x.csv")[1].startswith("0 reviews added; stored before: 1")
