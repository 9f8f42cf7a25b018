"""What is mined for: train questions, and augmentation of a small set from documents that are not held out."""

from __future__ import annotations

from collections import Counter

import polars as pl

from embed_pipeline.reviews import ReviewVerdict
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.questions import training_questions
from embed_pipeline.training_data.split import split_dataset
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import prose, settings


def task(options: Settings) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Thirty documents with two questions each, and ten that nobody asks about; document 35 is a copy of 34."""
    texts = {f"d{i:02}.md": [prose(i, 25), f"{prose(100 + i, 12)}."] for i in range(40)}
    texts["d35.md"] = [texts["d34.md"][0] + " copied", texts["d34.md"][1]]
    titles = {f"d{i:02}.md": f"Everything about topic{i} matters" for i in range(40)}
    corpus = material.corpus(texts, titles)
    asked = {
        f"q{i:02}{n}": (f"What is the t{i}w{n} of part{i}x{n}?", [f"d{i:02}.md#{n}"])
        for i in range(30)
        for n in range(2)
    }
    qa = material.pairs(corpus, asked)
    return qa, split_dataset(qa, corpus, options), corpus


def test_only_train_questions_with_their_sources():
    options = settings(augment_below=0)
    qa, split, corpus = task(options)
    found = training_questions(qa, split, corpus, options)
    train = split.filter(pl.col("split") == "train")
    assert found["qa_id"].to_list() == sorted(train["qa_id"])
    assert set(found["origin"]) == {"generated"}
    source = dict(qa.select("qa_id", "segment_ids").iter_rows())
    assert all(row["positive_segment_ids"] == source[row["qa_id"]] for row in found.to_dicts())


def test_a_small_set_is_augmented_in_order_up_to_the_cap():
    options = settings(augmentations=["title", "keywords", "crop"], max_augmented_share=0.7)
    qa, split, corpus = task(options)
    train = (split["split"] == "train").sum()
    counts = Counter(training_questions(qa, split, corpus, options)["origin"])
    unheld = 40 - split.filter(pl.col("split").is_in(["dev", "test"])).explode("paths")["paths"].n_unique()
    assert counts["generated"] == train
    assert counts["title"] == unheld
    assert counts["keywords"] == train
    assert counts["crop"] > 0
    assert counts.total() - train == int(train * 0.7 / 0.3)


def test_enough_is_enough():
    options = settings(max_augmented_share=1)
    qa, split, corpus = task(options)
    train = (split["split"] == "train").sum()
    enough = settings(max_augmented_share=1, augment_below=train + 5)
    assert training_questions(qa, split, corpus, enough).height == train + 5
    assert training_questions(qa, split, corpus, settings(augment_below=train)).height == train


def test_nothing_comes_from_held_out_documents_or_their_copies():
    options = settings(augmentations=["title", "crop"], max_augmented_share=1)
    qa, split, corpus = task(options)
    moved = split.with_columns(
        split=pl.when(pl.col("qa_id").str.starts_with("q00")).then(pl.lit("test")).otherwise(pl.col("split")),
        document_ids=pl.when(pl.col("qa_id") == "q000")
        .then(pl.lit([corpus.filter(pl.col("path") == "d34.md")["document_id"][0]]))
        .otherwise(pl.col("document_ids")),
    )
    found = training_questions(qa, moved, corpus, options).filter(pl.col("origin") != "generated")
    used = {segment.split("#")[0] for ids in found["positive_segment_ids"] for segment in ids}
    held = moved.filter(pl.col("split").is_in(["dev", "test"])).explode("paths")["paths"]
    assert not used & {*held, "d34.md", "d35.md"}
    assert {"d33.md", "d36.md"} <= used


def test_augmented_questions_repeat_no_held_out_question():
    options = settings(augmentations=["title"], max_augmented_share=1)
    qa, split, corpus = task(options)
    test = split.filter(pl.col("split") == "test")["qa_id"][0]
    renamed = split.with_columns(
        question=pl.when(pl.col("qa_id") == test)
        .then(pl.lit("everything about topic36 matters?"))
        .otherwise("question")
    )
    before = set(training_questions(qa, split, corpus, options)["question"])
    after = set(training_questions(qa, renamed, corpus, options)["question"])
    assert before - after == {"Everything about topic36 matters"}


def test_row_order_changes_nothing():
    options = settings(max_augmented_share=0.3)
    qa, split, corpus = task(options)
    found = training_questions(qa, split, corpus, options)
    assert training_questions(qa.reverse(), split.reverse(), corpus.reverse(), options).equals(found)
    assert found["qa_id"].n_unique() == found.height


def test_keyword_form_keeps_the_content_words_and_all_positives():
    corpus = material.corpus({f"{i}.md": [prose(i)] for i in range(3)})
    qa = material.pairs(corpus, {"a": ("How does the yield statement differ from return?", ["0.md#0", "1.md#0"])})
    split = split_dataset(qa, corpus, settings()).with_columns(split=pl.lit("train"))
    found = training_questions(qa, split, corpus, settings(augmentations=["keywords"]))
    (keywords,) = found.filter(pl.col("origin") == "keywords").to_dicts()
    assert keywords["question"] == "yield statement differ return"
    assert keywords["positive_segment_ids"] == ["0.md#0", "1.md#0"]


def test_a_marked_answer_is_a_positive_where_training_may_read_it_and_else_no_negative():
    options = settings(augmentations=["keywords"], max_augmented_share=0.5)
    qa, split, corpus = task(options)
    sides = {row["qa_id"]: row["split"] for row in split.to_dicts()}
    one = next(key for key in sorted(sides) if sides[key] == "train")
    held = next(key for key in sorted(sides) if sides[key] == "test")
    source = dict(qa.select("qa_id", "segment_ids").iter_rows())
    marked = frozenset({"d39.md#0", source[held][0], "gone"})
    verdicts = {one: ReviewVerdict(positives=marked), held: ReviewVerdict(positives=frozenset({"d38.md#0"}))}
    found = {row["qa_id"]: row for row in training_questions(qa, split, corpus, options, reviewed=verdicts).to_dicts()}
    assert found[one]["positive_segment_ids"] == sorted([*source[one], "d39.md#0"])
    assert found[one]["other_answer_ids"] == [source[held][0]]
    copies = [
        row for row in found.values() if row["origin"] == "keywords" and "d39.md#0" in row["positive_segment_ids"]
    ]
    assert [row["other_answer_ids"] for row in copies] == [[source[held][0]]]
    others = [row for key, row in found.items() if key != one and row not in copies]
    assert all(row["other_answer_ids"] == [] for row in others)
