"""Which pairs the dataset is made of, those from the documents' own structure among them."""

from __future__ import annotations

import polars as pl

from embed_pipeline.training_data.pair_sources import collect_pairs, structural_pairs, structure_pairs
from embed_pipeline.training_data.questions import training_questions
from embed_pipeline.training_data.split import split_dataset, split_failures
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import many_documents, prose, settings


def test_generated_alone_by_default():
    corpus, qa = many_documents(3)
    assert collect_pairs(qa, corpus, settings()).equals(qa)


def test_structure_pairs_alone_make_a_whole_data_set():
    documents = {f"d{i:02}.md": [f"{prose(i, 20)}.", f"{prose(100 + i, 20)}."] for i in range(30)}
    corpus = material.corpus(documents, {path: f"All of subject{path}" for path in documents})
    options = settings(sources=["structure"], augmentations=["title", "crop", "keywords"])
    pairs = collect_pairs(many_documents(30)[1], corpus, options)
    assert set(pairs["origin"]) == {"title", "crop"}
    assert pairs["overall"].null_count() == pairs["batch"].null_count() == pairs.height
    assert pairs.height == 90
    split = split_dataset(pairs, corpus, options)
    assert split_failures(split, pairs, options) == []
    questions = training_questions(pairs, split, corpus, options)
    assert set(questions["origin"]) == {"title", "crop", "keywords"}


def test_both():
    corpus, qa = many_documents(3)
    both = collect_pairs(qa, corpus, settings(sources=["generated", "structure"]))
    assert both.height == qa.height + structural_pairs(corpus, settings()).height


def document(path: str, title: str, *segments: tuple[str, str]) -> pl.DataFrame:
    frame = material.corpus({path: [text for _, text in segments]}, {path: title})
    return frame.with_columns(heading_path=pl.Series([heading for heading, _ in segments]))


CORPUS = pl.concat(
    [
        document(
            "guide/yield.md",
            "Yield expressions",
            ("", "stub"),
            ("", "A yield expression turns a function into a generator, see [calling functions](../calls.md#top)."),
            ("Usage", "Write yield inside the body to hand a value to the caller and wait there."),
            ("Usage > Closing a generator", "Calling close raises GeneratorExit at the point of the last yield."),
            (
                "Usage > Closing a generator",
                "Afterwards the generator is finished and raises StopIteration when asked.",
            ),
        ),
        document(
            "calls.md", "Calls", ("Usage", "A call evaluates its arguments first and then the body of the function.")
        ),
        document(
            "other.rst",
            "Module internals explained",
            ("", "Compare [the yield page](guide/yield) and ![image text](calls.md)."),
        ),
    ]
)


def found(*origins: str) -> set[tuple[str, str]]:
    return {(pair.question, pair.segment_id) for pair in structure_pairs(CORPUS, origins, 5)}


def test_titles_lead_to_the_first_long_segment():
    assert found("title") == {("Yield expressions", "guide/yield.md#1"), ("Module internals explained", "other.rst#0")}


def test_headings_lead_to_their_section_with_the_title_where_several_share_it():
    assert found("heading") == {
        ("Yield expressions: Usage", "guide/yield.md#2"),
        ("Calls: Usage", "calls.md#0"),
        ("Closing a generator", "guide/yield.md#3"),
    }


def test_links_lead_to_the_opening_of_their_target():
    assert found("link") == {("calling functions", "calls.md#0"), ("the yield page", "guide/yield.md#1")}


def test_crops_are_sentences_of_their_segment():
    crops = found("crop")
    texts = dict(CORPUS.select("segment_id", "text").iter_rows())
    assert len(crops) == 6
    for question, segment in crops:
        assert question.rstrip(".") in texts[segment]


def test_what_leads_to_two_places_is_no_question():
    twice = pl.concat([CORPUS, document("copy.md", "Yield expressions", ("", "Another page of that very same name."))])
    questions = {pair.question for pair in structure_pairs(twice, ("title",), 5)}
    assert questions == {"Module internals explained"}


def test_order_is_that_of_the_origins():
    origins = [pair.origin for pair in structure_pairs(CORPUS, ("crop", "title"), 5)]
    assert origins == sorted(origins)
