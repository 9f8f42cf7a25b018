"""The split: whole groups, stable sides, nothing of the test in train."""

from __future__ import annotations

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.training_data import split as document_groups
from embed_pipeline.training_data.split import SplitError, interval_half_width, split_dataset, split_failures
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import many_documents, prose, settings


def side_of(split: pl.DataFrame) -> dict[str, str]:
    return dict(split.select("qa_id", "split").iter_rows())


def shares(split: pl.DataFrame) -> dict[str, float]:
    return {row[0]: row[1] / split.height for row in split.group_by("split").len().iter_rows()}


def test_sides_have_their_shares_and_documents_one_side():
    corpus, qa = many_documents(100)
    split = split_dataset(qa, corpus, settings(dev_share=0.1, test_share=0.2))
    assert shares(split) == pytest.approx({"train": 0.7, "dev": 0.1, "test": 0.2}, abs=0.02)
    assert split.explode("paths").group_by("paths").agg(pl.col("split").n_unique())["split"].max() == 1
    assert split_failures(split, qa, settings()) == []


def test_row_order_changes_nothing_and_the_seed_does():
    corpus, qa = many_documents(40)
    options = settings()
    split = split_dataset(qa, corpus, options)
    shuffled = split_dataset(qa.sample(fraction=1, shuffle=True, seed=1), corpus.reverse(), options)
    assert shuffled.equals(split)
    assert not split_dataset(qa, corpus, options.model_copy(update={"seed": 5})).equals(split)


def test_near_duplicate_documents_are_one_group():
    documents = {f"d{i:02}.md": [prose(i % 20, 100) + f" version {i}"] for i in range(60)}
    corpus = material.corpus(documents)
    qa = material.pairs(
        corpus, {f"q{i:02}": (f"what is topic{i} about thing{i}", [f"d{i:02}.md#0"]) for i in range(60)}
    )
    split = split_dataset(qa, corpus, settings())
    sides = side_of(split)
    for i in range(20):
        assert len({sides[f"q{i + j:02}"] for j in (0, 20, 40)}) == 1
    assert split["group_id"].n_unique() == 20


def test_multi_hop_questions_join_documents_while_the_group_stays_small(monkeypatch):
    monkeypatch.setattr(document_groups, "LARGEST_GROUP_SHARE", 0.2)
    corpus, qa = many_documents(20, per_document=2)
    chain = material.pairs(
        corpus,
        {
            f"m{i:02}": (f"how do t{i}w1 and t{i + 1}w1 differ", [f"d{i:03}.md#0", f"d{i + 1:03}.md#0"])
            for i in range(19)
        },
    )
    everything = pl.concat([qa, chain])
    split = split_dataset(everything, corpus, settings())
    largest = (
        split.filter(pl.col("group_id") != "").explode("paths").group_by("group_id").agg(pl.col("paths").n_unique())
    )
    assert largest["paths"].max() == 4
    assert split_failures(split, everything, settings()) == []
    joined = split.filter(pl.col("qa_id").str.starts_with("m"))
    assert set(joined.filter(pl.col("group_id") != "")["split"]) <= {"train", "dev", "test"}
    held = joined.filter(pl.col("split") == "held_out")
    assert held.height > 0
    assert set(held["reason"]) == {"spans_sides"}
    sides = dict(
        split.filter(~pl.col("qa_id").str.starts_with("m")).explode("paths").select("paths", "split").iter_rows()
    )
    for row in joined.iter_rows(named=True):
        around = {sides[path] for path in row["paths"]}
        assert row["split"] == (around.pop() if len(around) == 1 else "held_out")


def test_two_documents_stay_apart_though_a_question_joins_them():
    corpus, qa = many_documents(2, per_document=12)
    both = material.pairs(corpus, {"m": ("how do both differ", ["d000.md#0", "d001.md#0"])})
    split = split_dataset(pl.concat([qa, both]), corpus, settings())
    assert side_of(split)["m"] == "held_out"
    assert {"train", "test"} <= set(split["split"])


def test_a_document_asked_about_only_across_groups_follows_the_other(monkeypatch):
    monkeypatch.setattr(document_groups, "LARGEST_GROUP_SHARE", 0.01)
    corpus, qa = many_documents(12, per_document=4)
    asked = qa.filter(~pl.col("qa_id").str.starts_with("q011"))
    spans = {"d000.md#0", "d001.md#0", "d002.md#0"}
    across = material.pairs(
        corpus,
        {"m": ("how do t0w1 and t11w1 relate", ["d000.md#0", "d011.md#0"]), "n": ("what unites them", sorted(spans))},
    )
    everything = pl.concat([asked, across])
    split = split_dataset(everything, corpus, settings())
    assert side_of(split)["m"] != "held_out"
    assert split_failures(split, everything, settings(min_test_questions=1)) == []


def test_test_documents_stay_and_edits_keep_their_side():
    corpus, qa = many_documents(40)
    options = settings()
    first = split_dataset(qa, corpus, options)
    texts = {f"d{i:03}.md": [prose(i) + " edited"] for i in range(40)} | {
        f"n{i:03}.md": [prose(500 + i)] for i in range(30)
    }
    grown = material.corpus(texts)
    asked = {row["qa_id"]: (row["question"], [f"{row['paths'][0]}#0"]) for row in first.to_dicts()}
    asked |= {f"x{i:03}": (f"what of t{500 + i}w1 now", [f"n{i:03}.md#0"]) for i in range(30)}
    more = material.pairs(grown, asked)
    second = split_dataset(more, grown, options, previous=first)
    sides = side_of(second)
    assert {key: sides[key] for key in side_of(first)} == side_of(first)
    assert {sides[f"x{i:03}"] for i in range(30)} == {"train", "dev", "test"}


def test_a_renamed_document_keeps_its_side():
    corpus, qa = many_documents(30)
    first = split_dataset(qa, corpus, settings())
    renamed = corpus.with_columns(pl.col("path").str.replace("d", "a/z"))
    reordered = split_dataset(qa, renamed, settings(), previous=first)
    assert side_of(reordered) == side_of(first)


def test_a_group_with_a_test_document_moves_to_test_whole():
    corpus, qa = many_documents(30)
    first = split_dataset(qa, corpus, settings())
    test = first.filter(pl.col("split") == "test")["paths"][0][0]
    train = first.filter(pl.col("split") == "train")["paths"][0][0]
    texts = {path: [text] for path, text in corpus.select("path", "text").iter_rows()}
    texts["both.md"] = [texts[test][0] + " " + texts[train][0]]
    joined = material.corpus(texts)
    second = split_dataset(qa, joined, settings(), previous=first)
    of_path = {row["paths"][0]: row["split"] for row in second.to_dicts()}
    assert of_path[train] == of_path[test] == "test"
    before = {row["paths"][0]: row["split"] for row in first.to_dicts()}
    assert {p: s for p, s in of_path.items() if p != train} == {p: s for p, s in before.items() if p != train}


def test_multi_hop_questions_never_join_documents_of_different_earlier_sides(monkeypatch):
    monkeypatch.setattr(document_groups, "LARGEST_GROUP_SHARE", 1)
    corpus, qa = many_documents(30)
    first = split_dataset(qa, corpus, settings())
    test = first.filter(pl.col("split") == "test")["paths"][0][0]
    train = first.filter(pl.col("split") == "train")["paths"][0][0]
    across = material.pairs(corpus, {"m": ("how do they differ", [f"{test}#0", f"{train}#0"])})
    second = split_dataset(pl.concat([qa, across]), corpus, settings(), previous=first)
    sides = side_of(second)
    assert sides.pop("m") == "held_out"
    assert sides == side_of(first)


def test_questions_that_repeat_a_test_question_are_held_out():
    corpus, qa = many_documents(40)
    first = split_dataset(qa, corpus, settings())
    test = first.filter(pl.col("split") == "test")["question"].to_list()
    trains = first.filter(pl.col("split") == "train")["qa_id"].to_list()
    repeated = qa.with_columns(
        question=pl.when(pl.col("qa_id") == trains[0])
        .then(pl.lit(test[0].upper() + "?"))
        .when(pl.col("qa_id") == trains[1])
        .then(pl.lit(" ".join(reversed(test[1].split()))))
        .otherwise(pl.col("question"))
    )
    split = split_dataset(repeated, corpus, settings())
    held = split.filter(pl.col("split") == "held_out")
    assert sorted(held["qa_id"]) == sorted(trains[:2])
    assert set(held["reason"]) == {"repeats_test"}
    assert split_failures(split, repeated, settings()) == []


def test_a_small_set_gives_the_test_its_minimum():
    corpus, qa = many_documents(16, per_document=2)
    split = split_dataset(qa, corpus, settings(min_test_questions=10, test_share=0.1))
    assert 10 <= (split["split"] == "test").sum() <= 12
    assert split_failures(split, qa, settings(min_test_questions=10)) == []


@pytest.fixture
def sound():
    """A split of forty documents that nothing forbids, and the pairs that it splits."""
    corpus, qa = many_documents(40)
    return split_dataset(qa, corpus, settings()), qa


def changed(split: pl.DataFrame, qa_id: str, column: str, value: str) -> pl.DataFrame:
    here = pl.col("qa_id") == qa_id
    return split.with_columns(pl.when(here).then(pl.lit(value)).otherwise(pl.col(column)).alias(column))


def first_of(split: pl.DataFrame, side: str) -> dict[str, object]:
    return split.filter(pl.col("split") == side).row(0, named=True)


def test_a_pair_moved_alone_tears_its_group_its_document_and_its_file(sound):
    split, qa = sound
    moved = changed(split, first_of(split, "train")["qa_id"], "split", "test")
    failures = split_failures(moved, qa, settings())
    assert [message.split(" on two sides")[0] for message in failures] == [
        "1 document group is",
        "1 document is",
        "1 file is",
    ]


def test_a_train_question_that_repeats_one_of_the_test_is_a_failure(sound):
    split, qa = sound
    leaked = changed(split, first_of(split, "train")["qa_id"], "question", first_of(split, "test")["question"])
    [failure] = split_failures(leaked, qa, settings())
    assert failure.startswith("1 train question repeats a test question")


def test_too_few_test_questions_are_a_failure_that_says_how_wide_the_interval_would_be(sound):
    [failure] = split_failures(*sound, settings(min_test_questions=100))
    assert "below training_data.min_test_questions = 100" in failure
    assert "at most ±0.10" in failure


def test_a_pair_without_a_row_is_a_failure(sound):
    split, qa = sound
    assert f"pairs in only one of qa_dataset and dataset_split: 1, first ['{split['qa_id'][0]}']" in split_failures(
        split[1:], qa, settings()
    )


def test_an_empty_split_is_a_failure():
    failures = split_failures(tables.DATASET_SPLIT.empty(), tables.QA_DATASET.empty(), settings())
    assert failures[0] == "no question is on the train side"


def test_a_hundred_questions_give_an_interval_of_a_tenth():
    assert interval_half_width(100) == pytest.approx(0.098)
    assert interval_half_width(0) == 1


def test_a_pair_on_a_missing_document_is_refused():
    corpus, qa = many_documents(4)
    with pytest.raises(SplitError, match=r"pair 'q000-0': documents .* are not in the corpus"):
        split_dataset(qa, corpus.filter(pl.col("path") != "d000.md"), settings())
