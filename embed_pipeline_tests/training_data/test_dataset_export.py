"""Exports: what other tools read is what was made."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.evaluation.query_sets import labelled_set
from embed_pipeline.text.passages import passage_texts
from embed_pipeline.training_data.dataset_export import ExportError, export_dataset
from embed_pipeline.training_data.label_files import read_label_set
from embed_pipeline.training_data.labels import read_labels, with_labelled_passages
from embed_pipeline.training_data.negatives import mine_hard_negatives
from embed_pipeline.training_data.questions import training_questions
from embed_pipeline.training_data.split import split_dataset
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import GivenVectors, many_documents, settings


@pytest.fixture(scope="module")
def data() -> dict[str, pl.DataFrame]:
    corpus, qa = many_documents(24, per_document=2)
    both = material.pairs(corpus, {"zz": ("what joins t0w9 and t1w9", ["d000.md#0", "d001.md#0"])})
    qa = pl.concat([qa, both])
    options = settings(augment_below=0, num_negatives=2, range_max=12)
    split = split_dataset(qa, corpus, options)
    questions = training_questions(qa, split, corpus, options)
    texts = sorted({*corpus["text"], *questions["question"]})
    vectors = {text: [1.0, (hash_of(text) % 97) / 20] for text in texts}
    mined = mine_hard_negatives(questions, corpus, options, GivenVectors(vectors))
    assert mined["negative_segment_ids"].list.len().n_unique() > 1
    return {"qa": qa, "split": split, "corpus": corpus, "hard_negatives": mined}


def hash_of(text: str) -> int:
    return int(material.document_id(text), 16)


def side(data: dict[str, pl.DataFrame], name: str) -> pl.DataFrame:
    return data["qa"].join(data["split"].filter(pl.col("split") == name), on="qa_id", how="semi")


def test_beir_is_read_back_by_the_evaluation_and_as_labels(tmp_path, data):
    folder = export_dataset("beir", tmp_path / "out", **data)
    test = labelled_set(folder, data["corpus"])
    expected = {row["qa_id"]: dict.fromkeys(row["segment_ids"], 1) for row in side(data, "test").to_dicts()}
    assert test is not None
    assert test.qrels == expected
    assert set(test.corpus.ids) == set(data["corpus"]["segment_id"])
    labels = read_label_set(folder).labels
    assert {label.side for label in labels} == {"train", "dev", "test"}
    assert sum(label.side == "train" for label in labels) == data["hard_negatives"].height


@pytest.mark.parametrize("context", ["none", "title"])
@pytest.mark.parametrize("kind", ["beir", "sentence-transformers", "nemo"])
def test_an_export_fed_back_gives_the_same_passages(tmp_path, data, kind, context):
    folder = export_dataset(kind, tmp_path / "out", **data, context=context)
    corpus = data["corpus"].with_columns(text=pl.col("text") + "\n")
    grown = with_labelled_passages(corpus, [folder], lambda texts: [1] * len(texts), context)
    assert grown.equals(corpus)
    labels = read_labels([folder], grown, context)
    asked = {row["question"]: set(row["positive_segment_ids"]) for row in data["hard_negatives"].to_dicts()}
    found: dict[str, set[str]] = {}
    for label in labels:
        if label.side == "train":
            found.setdefault(label.question, set()).update(label.positives)
    assert found == asked
    alone = with_labelled_passages(tables.CORPUS.empty(), [folder], lambda texts: [1] * len(texts))
    assert set(alone["text"]) <= set(passage_texts(data["corpus"], context))


def test_sentence_transformers_files_have_one_row_for_each_example(tmp_path, data):
    folder = export_dataset("sentence-transformers", tmp_path / "out", **data)
    files = sorted(folder.glob("train-*.parquet"))
    rows = [row for path in files for row in pl.read_parquet(path).iter_rows()]
    texts = dict(data["corpus"].select("segment_id", "text").iter_rows())
    expected = [
        (row["question"], texts[positive], *(texts[n] for n in row["negative_segment_ids"]))
        for row in data["hard_negatives"].to_dicts()
        for positive in row["positive_segment_ids"]
    ]
    assert sorted(rows) == sorted(expected)
    for path in files:
        width = int(path.stem.split("-")[1])
        columns = ["anchor", "positive", *(f"negative_{n + 1}" for n in range(width))]
        assert pl.read_parquet(path).columns == columns
    assert pl.read_parquet(folder / "test.parquet").height == side(data, "test")["segment_ids"].list.len().sum()


def test_nemo_files_name_segments_of_their_corpus(tmp_path, data):
    folder = export_dataset("nemo", tmp_path / "out", **data)
    train = json.loads((folder / "train.json").read_text())
    metadata = json.loads((folder / train["corpus"]["path"] / "merlin_metadata.json").read_text())
    assert metadata == {"corpus_id": train["data"][0]["corpus_id"], "class": "TextQADataset"}
    passages = dict(pl.read_parquet(folder / "corpus" / "train.parquet").select("id", "text").iter_rows())
    assert passages == dict(data["corpus"].select("segment_id", "text").iter_rows())
    assert len(train["data"]) == data["hard_negatives"]["positive_segment_ids"].list.len().sum()
    for row in train["data"]:
        assert len(row["pos_doc"]) == 1
        assert {item["id"] for item in (*row["pos_doc"], *row["neg_doc"])} <= passages.keys()
    assert len(json.loads((folder / "val.json").read_text())["data"]) == side(data, "dev").height
    assert labelled_set(folder / "eval_beir", data["corpus"]).queries.keys() == set(side(data, "test")["qa_id"])


@pytest.mark.parametrize("kind", ["beir", "sentence-transformers", "nemo"])
def test_the_same_data_gives_the_same_files(tmp_path, data, kind):
    one, other = (export_dataset(kind, tmp_path / name, **data) for name in ("one", "other"))
    shuffled = {name: frame.reverse() for name, frame in data.items()}
    export_dataset(kind, other, **shuffled)
    assert contents(one) == contents(other)


def test_a_folder_that_is_no_export_is_left_alone(tmp_path, data):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="exists and is no export"):
        export_dataset("beir", tmp_path / "mine", **data)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_export_leaves_the_earlier_one(tmp_path, data):
    folder = export_dataset("beir", tmp_path / "out", **data)
    before = contents(folder)

    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, allowed[1]))
    try:
        with pytest.raises(ExportError, match="File too large"):
            export_dataset("beir", folder, **data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_earlier_export_is_back_where_the_new_one_cannot_take_its_place(tmp_path, data, monkeypatch):
    folder = export_dataset("beir", tmp_path / "out", **data)
    before = contents(folder)
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise PermissionError(13, os.strerror(13))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(ExportError, match="Permission denied"):
        export_dataset("nemo", folder, **data)
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
