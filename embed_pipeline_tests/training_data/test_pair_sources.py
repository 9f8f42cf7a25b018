"""Which pairs the dataset is made of."""

from __future__ import annotations

from embed_pipeline.training_data.pair_sources import collect_pairs, structural_pairs
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
