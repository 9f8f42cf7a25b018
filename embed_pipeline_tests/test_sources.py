"""Pairs from elsewhere than a language model, through sdg and prep: labels, and the documents' structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embed_pipeline_tests.project import Project, small_project
from embed_pipeline_tests.stub_endpoint import Stub, stub_endpoint


def write_labels(folder: Path, count: int) -> Path:
    """A BEIR folder of questions and passages about things that no document knows."""
    (folder / "qrels").mkdir(parents=True)
    corpus, queries, judged = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(count):
        thing = f"{'abcdefghij'[number % 10]}{'klmnopqrst'[number // 10]}"
        text = f"The {thing}ra of {thing}vel number {number} turns {thing}mi into {thing}do at {number} degrees."
        corpus.append(json.dumps({"_id": f"p{number}", "title": "", "text": text}))
        queries.append(json.dumps({"_id": f"q{number}", "text": f"what turns {thing}mi into {thing}do"}))
        judged.append(f"q{number}\tp{number}\t1")
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    (folder / "qrels" / "train.tsv").write_text("\n".join(judged) + "\n")
    return folder


def labelled_project(root: Path, model: Path, stub: Stub, count: int) -> Project:
    """A project that learns from the labels in ``root/turns`` alone."""
    labels = str(write_labels(root / "turns", count))
    sources = {"training_data__label_sets": labels, "training_data__sources": ""}
    return small_project(root / "project", model, stub.base_url, **sources)


def nobody(request: dict) -> object:
    raise AssertionError("the language model was asked")


@pytest.mark.slow
def test_labels_alone_become_training_examples_and_nobody_is_asked(tiny_model, tmp_path):
    with stub_endpoint(nobody) as stub:
        project = labelled_project(tmp_path, tiny_model, stub, 40)
        for stage in ("sdg", "prep"):
            status, output = project.command(stage)
            assert status == 0, output
        assert stub.requests == []
    pairs, corpus = project.table("qa_dataset"), project.table("corpus")
    assert pairs.height == 40
    assert pairs.select("origin", "label_set", "side").unique().rows() == [("labelled", "turns", None)]
    assert (corpus["label_set"] == "turns").sum() == 40
    status, output = project.command("lineage", pairs["qa_id"][0])
    assert status == 0, output
    assert "labels/turns/p" in output
    assert "(labelled, label set turns)" in output
    assert "SCORES  none: only generated pairs are judged" in output
    assert len(set(project.table("training_examples")["question"]) & set(pairs["question"])) > 20


@pytest.mark.slow
def test_structure_alone_needs_no_language_model(tiny_model, tmp_path):
    with stub_endpoint(nobody) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url, training_data__sources="structure")
        for stage in ("sdg", "prep"):
            status, output = project.command(stage)
            assert status == 0, output
        status, output = project.command("estimate")
        assert status == 0, output
        assert "0 questions to write" in output
        assert stub.requests == []
    assert set(project.table("qa_dataset")["origin"]) <= {"title", "heading", "link", "crop"}
    assert project.table("training_examples").height > 0


@pytest.mark.slow
def test_labels_that_change_are_read_again(tiny_model, tmp_path):
    with stub_endpoint(nobody) as stub:
        project = labelled_project(tmp_path, tiny_model, stub, 20)
        assert project.command("sdg")[0] == 0
        status, output = project.command("sdg")
        assert "sdg  0 made" in output, output
        judged = tmp_path / "turns" / "qrels" / "train.tsv"
        judged.write_text("".join(judged.read_text().splitlines(keepends=True)[:-5]))
        status, output = project.command("sdg")
        assert status == 0, output
    assert project.table("qa_dataset").height == 15
