"""Labels: what a file may hold, their passages in the corpus, their split respected, their negatives used."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.row_files import LabelsError
from embed_pipeline.training_data.audit import negatives_failures
from embed_pipeline.training_data.labels import read_labels, with_labelled_passages
from embed_pipeline.training_data.negatives import mine_hard_negatives
from embed_pipeline.training_data.pair_sources import collect_pairs
from embed_pipeline.training_data.questions import training_questions
from embed_pipeline.training_data.split import split_dataset, split_failures
from embed_pipeline_tests.test_beir import write_beir
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import GivenVectors, many_documents, prose, settings


def count(texts):
    return [len(text.split()) for text in texts]


def write_rows(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_passages_of_labels_join_the_corpus_once(tmp_path):
    corpus = material.corpus({"guide.md": ["second", "other"]})
    rows = [{"question": "what", "positives": ["first text", "other"], "negatives": ["wrong text"]}] * 2
    sets = [write_beir(tmp_path / "beir", train="q0\ta\t1\n"), write_rows(tmp_path / "own rows.jsonl", *rows)]
    grown = with_labelled_passages(corpus, sets, count)
    added = grown.filter(pl.col("label_set").is_not_null())
    assert sorted(added["text"]) == ["Title first", "first text", "wrong text"]
    assert added.filter(pl.col("text") == "Title first").select("path", "label_set").rows() == [
        ("labels/beir/a", "beir")
    ]
    assert added.sort("text")["token_count"].to_list() == [2, 2, 2]
    assert grown.height == corpus.height + 3
    assert with_labelled_passages(grown, sets, count).equals(grown)
    assert with_labelled_passages(tables.CORPUS.empty(), sets, count).height == 5


def test_ids_name_passages_segments_and_documents(tmp_path):
    corpus = material.corpus({"guide.md": ["about the lexer only", "a generator yields values"], "b": [prose(1)]})
    sets = [
        write_beir(tmp_path / "beir", train="q0\ta\t1\nq1\tb\t1\n"),
        write_rows(
            tmp_path / "own.jsonl",
            {"question": "what does a generator yield", "positive_ids": ["guide.md"], "negative_ids": ["guide.md#0"]},
        ),
    ]
    labels = {label.question: label for label in read_labels(sets, with_labelled_passages(corpus, sets, count))}
    texts = dict(with_labelled_passages(corpus, sets, count).select("segment_id", "text").iter_rows())
    assert [texts[s] for s in labels["question 1"].positives] == ["second"]
    generator = labels["what does a generator yield"]
    assert (generator.positives, generator.negatives) == (["guide.md#1"], ["guide.md#0"])


def left_out(**copies: str) -> pl.DataFrame:
    """The table of documents that the corpus leaves out: copy to the document that stayed."""
    same = {"document_id": "d", "batch": "b1", "reason": "duplicate", "resemblance": 1.0}
    return tables.LEFT_OUT_DOCUMENTS.frame(
        [{"path": f"{copy}.md", "duplicate_of": f"{stayed}.md", **same} for copy, stayed in copies.items()]
    )


@pytest.mark.parametrize("ids", ["guide.md, b.md", "guide.md;b.md", "guide.md|b.md|"])
def test_a_cell_may_name_several_documents(tmp_path, ids):
    path = write_rows(tmp_path / "own.jsonl", {"question": "what is x", "positive_ids": ids})
    corpus = material.corpus({"guide.md": ["x"], "b.md": ["y"], "c, d.md": ["z"]})
    assert read_labels([path], corpus)[0].positives == ["b.md#0", "guide.md#0"]
    path = write_rows(tmp_path / "whole.jsonl", {"question": "what is z", "positive_ids": "c, d.md"})
    assert read_labels([path], corpus)[0].positives == ["c, d.md#0"]
    path = write_rows(tmp_path / "unknown.jsonl", {"question": "what is z", "positive_ids": "guide.md, gone.md"})
    with pytest.raises(LabelsError, match="'guide.md, gone.md' is no passage"):
        read_labels([path], corpus)


def test_labels_on_a_copy_hold_for_the_document_that_stayed(tmp_path, caplog):
    rows = [
        {"question": "what is a lexer", "positive_ids": ["copy.md", "guide.md"], "negative_ids": ["other-copy.md"]},
        {"question": "what is gone", "positive_ids": ["copy-of-gone.md"]},
    ]
    corpus = material.corpus({"guide.md": ["about the lexer only", "a generator"], "other.md": ["x"]})
    copies = left_out(copy="guide", **{"other-copy": "other", "copy-of-gone": "gone"})
    (label,) = read_labels([write_rows(tmp_path / "own.jsonl", *rows)], corpus, left_out=copies)
    assert (label.positives, label.negatives) == (["guide.md#0"], ["other.md#0"])
    assert "own: 1 passages are not in the corpus" in caplog.text


def test_what_is_not_in_the_corpus_is_left_out_and_counted(tmp_path, caplog):
    path = write_rows(
        tmp_path / "own.jsonl",
        {"question": "one", "positive_ids": ["guide.md", "gone.md"], "negative_ids": ["lost.md"]},
        {"question": "two", "positive_ids": ["gone.md"]},
    )
    (label,) = read_labels([path], material.corpus({"guide.md": ["x"]}))
    assert (label.question, label.positives, label.negatives) == ("one", ["guide.md#0"], [])
    assert "own: 3 passages are not in the corpus and are left out, and 1 of 2 questions" in caplog.text
    assert "line 1: 'gone.md'" in caplog.text


def test_a_beir_folder_may_judge_documents_that_its_corpus_lacks(tmp_path):
    folder = write_beir(tmp_path / "set", train="q0\ta\t1\nq0\tX\t1\nq1\tY\t1\nq2\tb\t1\nq2\tZ\t0\n")
    corpus = with_labelled_passages(tables.CORPUS.empty(), [folder], count)
    found = read_labels([folder], corpus)
    assert sorted(label.question for label in found) == ["question 0", "question 2"]
    assert {len(label.positives) for label in found} == {1}


def test_an_unknown_id_is_named_with_its_line(tmp_path):
    path = write_rows(tmp_path / "own.jsonl", {"question": "what", "positive_ids": ["gide.md"]})
    with pytest.raises(LabelsError, match=r"own.jsonl, line 1: 'gide.md' is no passage"):
        read_labels([path], material.corpus({"guide.md": ["x"]}))
    path = write_rows(tmp_path / "own.jsonl", {"question": "what", "positives": ["not there"]})
    with pytest.raises(LabelsError, match=r"line 1: the passage 'not there' is not in the corpus"):
        read_labels([path], material.corpus({"guide.md": ["x"]}))


def test_two_sets_of_one_name_are_refused(tmp_path):
    (tmp_path / "sub").mkdir()
    paths = [
        write_rows(folder / "own.jsonl", {"question": "q", "positives": "x"}) for folder in (tmp_path, tmp_path / "sub")
    ]
    with pytest.raises(LabelsError, match="both named 'own'"):
        read_labels(paths, material.corpus({"guide.md": ["x"]}))


def labelled_task(tmp_path: Path, **rows: str):
    corpus, qa = many_documents(30)
    labels = [
        {"question": f"label {side} number{i}?", "positive_ids": [f"d{i:03}.md#0"], "split": side}
        for side in ("train", "dev", "test")
        for i in range(4)
    ]
    path = write_rows(
        tmp_path / "own.jsonl", *labels, {"question": rows["leak"], "positive_ids": ["d001.md#0"], "split": "train"}
    )
    options = settings(label_sets=[path])
    everything = collect_pairs(qa, corpus, options)
    return corpus, qa, everything, options


def test_a_labels_own_split_is_respected_and_moves_no_document(tmp_path):
    corpus, qa, everything, options = labelled_task(tmp_path, leak="LABEL test number2")
    split = split_dataset(everything, corpus, options)
    assert split_failures(split, everything, options) == []
    of = {row["question"]: row for row in split.to_dicts()}
    for side in ("train", "dev", "test"):
        assert {
            (of[f"label {side} number{i}?"]["split"], of[f"label {side} number{i}?"]["reason"]) for i in range(4)
        } == {(side, "given")}
    assert (of["LABEL test number2"]["split"], of["LABEL test number2"]["reason"]) == ("held_out", "repeats_test")
    alone = split_dataset(qa, corpus, options)
    assert split.join(alone, on="qa_id", how="semi").equals(alone)
    again = split_dataset(everything, corpus, options, previous=split)
    assert again.equals(split)
    labels_alone = split_dataset(everything.filter(pl.col("origin") == "labelled"), corpus, options)
    assert split_dataset(qa, corpus, options, previous=labels_alone).equals(alone)


def test_labels_alone_without_a_split_are_split_here(tmp_path):
    corpus, _ = many_documents(30)
    rows = [{"question": f"what is t{i}w{n}?", "positive_ids": [f"d{i:03}.md#0"]} for i in range(30) for n in range(2)]
    options = settings(label_sets=[write_rows(tmp_path / "own.jsonl", *rows)], sources=[])
    everything = collect_pairs(many_documents(30)[1], corpus, options)
    assert everything.height == 60
    assert everything.select("origin", "label_set", "side").unique().rows() == [("labelled", "own", None)]
    for unsaid in ("batch", "overall", "round_trip_rank", "answer", "query_type", "complexity", "generator"):
        assert everything[unsaid].null_count() == 60
    split = split_dataset(everything, corpus, options)
    assert {"train", "test"} <= set(split["split"])
    assert split_failures(split, everything, options) == []


def test_labelled_negatives_come_first_and_need_no_ceiling(tmp_path):
    corpus = material.corpus({f"{i}": [prose(i)] for i in range(5)})
    row = {"question": "what?", "positive_ids": ["0#0"], "negative_ids": ["3#0", "0#0"], "split": "train"}
    options = settings(label_sets=[write_rows(tmp_path / "own.jsonl", row)], sources=[], augment_below=0)
    qa = collect_pairs(tables.QA_DATASET.empty(), corpus, options)
    split = split_dataset(qa, corpus, options)
    questions = training_questions(qa, split, corpus, options)
    assert questions["origin"].to_list() == ["labelled"]
    near = {"what?": [1.0, 0.0], prose(0): [1.0, 0.5], prose(3): [1.0, 0.1]}
    vectors = near | {prose(i): [1.0, float(i + 1)] for i in (1, 2, 4)}
    frame = mine_hard_negatives(questions, corpus, options, GivenVectors(vectors))
    (mined,) = frame.to_dicts()
    assert mined["negative_segment_ids"] == ["3#0", "1#0"]
    assert mined["labelled_negatives"] == 1
    assert mined["negative_similarities"][0] > mined["ceiling"] > mined["negative_similarities"][1]
    assert negatives_failures(frame, corpus, options) == []


def test_rows_of_one_question_and_positive_keep_all_their_negatives(tmp_path):
    rows = [{"anchor": "a b", "positive": "p", "negative": f"n{number}"} for number in (1, 2, 1, 3)]
    sets = [write_rows(tmp_path / "triplets.jsonl", *rows)]
    corpus = with_labelled_passages(tables.CORPUS.empty(), sets, count)
    (label,) = read_labels(sets, corpus)
    texts = dict(corpus.select("segment_id", "text").iter_rows())
    assert [texts[segment] for segment in label.negatives] == ["n1", "n2", "n3"]


@pytest.mark.parametrize(("sides", "kept"), [(("train", "test"), "test"), (("train", "dev"), "dev")])
def test_a_label_on_several_sides_is_not_trained_on(tmp_path, caplog, sides, kept):
    folder = tmp_path / "set"
    folder.mkdir()
    for side in sides:
        write_rows(folder / f"{side}.jsonl", {"anchor": "a b", "positive": "p"})
    (label,) = read_labels([folder], with_labelled_passages(tables.CORPUS.empty(), [folder], count))
    assert label.side == kept
    assert "labels: 1 are on several sides" in caplog.text


@pytest.mark.parametrize("named", ["./café.md", "cafe\u0301.md", "café.md", ".\\café.md", "/café.md", "caf%C3%A9.md"])
def test_paths_are_compared_however_they_are_written(tmp_path, named):
    corpus = material.corpus({"caf\u00e9.md": ["about coffee"]})
    (label,) = read_labels([write_rows(tmp_path / "x.jsonl", {"query": "coffee", "positive_ids": [named]})], corpus)
    assert label.positives == ["caf\u00e9.md#0"]
