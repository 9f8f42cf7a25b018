"""Pairs from the documents' own structure."""

from __future__ import annotations

import polars as pl

from embed_pipeline.training_data.pair_sources import structure_pairs
from embed_pipeline_tests.training_data import material


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
            ("", "Compare :doc:`the yield page <guide/yield>` and ![image text](calls.md)."),
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
