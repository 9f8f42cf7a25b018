"""Label sets: what a file and a folder may hold, and what is refused."""

from __future__ import annotations

import gzip
import json
import math

import polars as pl
import pytest

from embed_pipeline.row_files import LabelsError
from embed_pipeline.training_data.label_files import read_label_set
from embed_pipeline_tests.test_beir import write_beir
from embed_pipeline_tests.training_data.test_labels import write_rows


def test_beir_folder_with_its_own_split(tmp_path):
    folder = write_beir(tmp_path / "set", train="q0\ta\t1\nq0\tb\t0\n", test="q1\tb\t2\nq2\ta\t0\n")
    found = read_label_set(folder)
    assert found.name == "set"
    assert found.passages == {"a": "Title first", "b": "second"}
    assert [(x.question, x.positive_ids, x.negative_ids, x.side) for x in found.labels] == [
        ("question 0", ["a"], ["b"], "train"),
        ("question 1", ["b"], [], "test"),
    ]


def test_train_judgements_alone_are_no_split_and_test_judgements_alone_are(tmp_path):
    assert [x.side for x in read_label_set(write_beir(tmp_path / "one", train="q0\ta\t1\n")).labels] == [None]
    assert [x.side for x in read_label_set(write_beir(tmp_path / "two", test="q0\ta\t1\n")).labels] == ["test"]


def test_jsonl_and_parquet_are_alike(tmp_path):
    rows = [
        {"question": "what", "positives": ["this\u2028text"], "negatives": ["that"], "split": "train"},
        {"question": "where", "positive_ids": ["guide.md"], "split": "test"},
    ]
    (tmp_path / "mine.jsonl").write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    found = read_label_set(tmp_path / "mine.jsonl")
    assert (found.name, found.passages) == ("mine", {})
    assert (found.labels[0].positives, found.labels[0].negatives) == (["this\u2028text"], ["that"])
    assert (found.labels[1].positive_ids, found.labels[1].side) == (["guide.md"], "test")
    pl.DataFrame(rows, schema_overrides={"positive_ids": pl.List(pl.String)}).write_parquet(tmp_path / "mine.parquet")
    same = read_label_set(tmp_path / "mine.parquet")
    drop = lambda labels: [(x.question, x.positives, x.positive_ids, x.negatives, x.side) for x in labels]  # noqa: E731 - a line
    assert drop(same.labels) == drop(found.labels)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: expected an object"),
        ('{"positives": ["a"]}', "line 1: question is missing .one of question, query, anchor; found"),
        ('{"question": "q"}', "line 1: neither positives nor positive_ids"),
        ('{"question": "q", "positives": [1]}', "line 1: positives is"),
        ('{"question": "q", "positives": [" "]}', "line 1: neither positives nor positive_ids"),
        ('{"question": "q", "positives": ["a"], "split": "holdout"}', "split is 'holdout'"),
        ('{"question": "q", "positives": ["a"], "positve": "b"}', "unknown field 'positve'; did you mean 'positives'"),
        (
            '{"question": "q", "positives": "a", "split": "dev"}\n{"question": "r", "positives": "a"}',
            "line 2: split is",
        ),
    ],
)
def test_a_malformed_row_is_named(tmp_path, line, problem):
    (tmp_path / "x.jsonl").write_text(line)
    with pytest.raises(LabelsError, match=problem):
        read_label_set(tmp_path / "x.jsonl")


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(LabelsError, match="neither a folder nor"):
        read_label_set(tmp_path / "absent")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(LabelsError, match="bad.parquet: not a readable Parquet file"):
        read_label_set(tmp_path / "bad.parquet")
    (tmp_path / "bad.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(LabelsError, match="bad.jsonl, line 1: not UTF-8 at byte 14"):
        read_label_set(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("row", "positives", "negatives"),
    [
        ({"anchor": "a", "positive": "p", "negative": "n"}, ["p"], ["n"]),
        (
            {"anchor": "a", "positive": "p", "negative_2": "m", "negative_1": "n", "negative_10": "o"},
            ["p"],
            list("nmo"),
        ),
        ({"query": "a", "positive": "p"}, ["p"], []),
        ({"query": "a", "pos": ["p", "q"], "neg": ["n"], "prompt": "x", "pos_scores": [1.0, 2.0]}, ["p", "q"], ["n"]),
        ({"question": "a", "positive": "p", "id": 3}, ["p"], []),
        ({"question": "a", "positives": ["p"], "negatives": ["", None, "n"]}, ["p"], ["n"]),
        ({"question": "a", "positives": ["p"], "negatives": None, "split": None}, ["p"], []),
        ({"Query": "a", " Positive": "p", "Hard Negatives": ["n"], "Hard-Negative 2": "m"}, ["p"], ["n", "m"]),
        ({"question": "a", "Question": "b", "positive": "p", "negative": math.nan}, ["p"], []),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_columns_of_every_common_form(tmp_path, row, positives, negatives, ending):
    path = tmp_path / f"set.{ending}"
    if ending == "jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    else:
        pl.DataFrame([row]).write_parquet(path)
    (label,) = read_label_set(path).labels
    assert (label.question, label.positives, label.negatives) == ("a", positives, negatives)


def test_ids_may_be_numbers_and_validation_is_dev(tmp_path):
    rows = [{"question": "a", "positive_ids": [3], "negative_ids": 4, "split": "validation"}]
    (label,) = read_label_set(write_rows(tmp_path / "set.jsonl", *rows)).labels
    assert (label.positive_ids, label.negative_ids, label.side) == (["3"], ["4"], "dev")


def test_a_folder_of_files_has_their_sides(tmp_path):
    for name in ("train-1", "nq_train.v2", "validation", "test"):
        write_rows(tmp_path / f"{name}.jsonl", {"anchor": name, "positive": "p"})
    found = read_label_set(tmp_path)
    assert {label.question: label.side for label in found.labels} == {
        "train-1": "train",
        "nq_train.v2": "train",
        "validation": "dev",
        "test": "test",
    }
    write_rows(tmp_path / "more.jsonl", {"anchor": "more", "positive": "p"})
    with pytest.raises(LabelsError, match="names say train, dev or test"):
        read_label_set(tmp_path)
    for path in tmp_path.glob("[mtv]*.jsonl"):
        if not path.name.startswith("train"):
            path.unlink()
    assert {label.side for label in read_label_set(tmp_path).labels} == {None}


def test_pairs_that_do_not_match_are_no_positives(tmp_path, caplog):
    pairs = [{"anchor": f"q{number}", "positive": f"p{number}", "label": number % 2} for number in range(4)]
    found = read_label_set(write_rows(tmp_path / "pairs.jsonl", *pairs))
    assert [label.question for label in found.labels] == ["q1", "q3"]
    assert "pairs that do not match: 2, of which 0 are negatives of their questions and 2 are left out" in caplog.text
    assert "are ignored" not in caplog.text


@pytest.mark.parametrize(("label", "is_read"), [(1, True), (0.7, True), (0.2, False), (-1, False), ("billing", True)])
def test_a_pair_matches_from_a_half_on(tmp_path, label, is_read):
    row = {"anchor": "a", "positive": "p", "label": label}
    assert bool(read_label_set(write_rows(tmp_path / "x.jsonl", row)).labels) is is_read


def test_snapshots_of_a_hub_and_empty_files_are_read(tmp_path, caplog):
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows = {"anchor": ["a"], "positive": ["p"], "hard_negatives": [["n"]]}
    pl.DataFrame(rows).write_parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "set" / "data" / "test.jsonl.zst").write_bytes(b"")
    (tmp_path / "set" / "README.md").write_text("about the set")
    (label,) = read_label_set(tmp_path / "set").labels
    assert (label.question, label.negatives, label.side) == ("a", ["n"], None)
    assert caplog.messages == [f"{tmp_path / 'set' / 'data'}: passed over: test.jsonl.zst"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "test.jsonl.zst").write_bytes(b"")
    with pytest.raises(LabelsError, match=r"names say train, dev or test; the folder holds \['test.jsonl.zst'\]"):
        read_label_set(tmp_path / "other")
    assert read_label_set(write_rows(tmp_path / "empty.jsonl")).labels == []
    assert "empty.jsonl holds no label" in caplog.text


def test_files_of_every_form_in_a_folder_are_read_and_the_others_are_named(tmp_path, caplog):
    write_rows(tmp_path / "train.jsonl", {"anchor": "a", "positive": "p"})
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(b'{"anchor": "b", "positive": "p"}'))
    (tmp_path / "dev.json").write_text('[{"anchor": "c", "positive": "p"}]')
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(b"anchor,positive\nd,p\n"))
    for name, content in (
        ("dataset_infos.json", '{"a": {}}'),
        ("sizes.csv", "a\n1\n"),
        ("train.arrow", ""),
        ("train.jsonl.gz", ""),
    ):
        (tmp_path / name).write_text(content)
    found = {label.question: label.side for label in read_label_set(tmp_path).labels}
    assert found == {"a": "train", "b": "test", "c": "dev", "d": "train"}
    assert f"{tmp_path}: passed over: dataset_infos.json, sizes.csv, train.arrow, train.jsonl.gz" in caplog.text


@pytest.mark.parametrize("name", ["set.jsonl.gz", "set.json.gz"])
def test_a_packed_file_is_a_set(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b'{"anchor": "a", "positive": "p"}'))
    found = read_label_set(tmp_path / name)
    assert (found.name, [label.question for label in found.labels]) == ("set", ["a"])


NEMO = {"corpus": {"path": "./corpus/"}, "data": [{"question": "q", "pos_doc": [{"id": "d1"}], "neg_doc": []}]}


@pytest.mark.parametrize("packed", [False, True])
def test_a_nemo_file_is_read_packed_or_not_in_a_folder_or_alone(tmp_path, caplog, packed):
    folder = tmp_path / "set"
    (folder / "corpus").mkdir(parents=True)
    pl.DataFrame({"id": ["d1"], "text": ["t"]}).write_parquet(folder / "corpus" / "train.parquet")
    raw = json.dumps(NEMO).encode()
    path = folder / ("train.json.gz" if packed else "train.json")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    write_rows(folder / "train_mined.automodel.jsonl", {"anchor": "again", "positive": "p"})
    for source in (folder, path):
        found = read_label_set(source)
        assert [(label.question, label.positive_ids) for label in found.labels] == [("q", ["d1"])]
        assert found.passages == {"d1": "t"}
    assert f"{folder}: passed over: train_mined.automodel.jsonl" in caplog.text


def test_a_corpus_that_nemo_names_and_that_is_missing_or_malformed_is_named(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(NEMO))
    corpus = tmp_path / "corpus"
    with pytest.raises(LabelsError, match=f"train.json: its corpus.path is {corpus}, which does not exist; put the"):
        read_label_set(tmp_path)
    corpus.mkdir()
    with pytest.raises(LabelsError, match=f"its corpus.path is {corpus}, which holds no file of passages"):
        read_label_set(tmp_path)
    pl.DataFrame({"_id": ["d1"], "text": ["t"]}).write_parquet(corpus / "train.parquet")
    with pytest.raises(LabelsError, match="train.parquet, row 1: expected the columns id and text of a passage, found"):
        read_label_set(tmp_path)
    (tmp_path / "train.json").write_text(json.dumps({**NEMO, "corpus": [{"path": "passages.jsonl.gz"}]}))
    (tmp_path / "passages.jsonl.gz").write_bytes(gzip.compress(b'{"id": "d1", "text": "t"}'))
    assert read_label_set(tmp_path).passages == {"d1": "t"}
    (tmp_path / "train.json").write_text(json.dumps({**NEMO, "corpus": [{"folder": "x"}]}))
    with pytest.raises(LabelsError, match="train.json: not NeMo's form, an object of corpus and data: 'path'"):
        read_label_set(tmp_path)


@pytest.mark.parametrize("column", ["label", "labels", "score", "margin"])
@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.4, 17.2, [3.1, -2.0]])
def test_a_number_next_to_a_negative_is_a_margin(tmp_path, caplog, column, margin):
    row = {"query": "a", "positive": "p", "negative": "n", column: margin}
    (label,) = read_label_set(write_rows(tmp_path / "x.jsonl", row)).labels
    assert (label.positives, label.negatives) == (["p"], ["n"])
    assert f"the columns ['{column}'] are ignored" in caplog.text


@pytest.mark.parametrize("named", [{"positive": "{}"}, {"positive_ids": ["{}"]}])
@pytest.mark.parametrize(
    "words",
    [
        ("entailment", "contradiction", "neutral"),
        ("Entailment", "CONTRADICTION", "not_entailment"),
        ("relevant", "Not-Relevant", "neutral"),
        ("yes", "no", "neutral"),
        (True, False, None),
        (1, 0, 0.3),
        ("1.0", "0", "-1"),
        ("100%", "0%", "10%"),
        ("positive", "Negative", "neutral"),
    ],
)
def test_pairs_that_do_not_match_are_negatives_of_their_question(tmp_path, caplog, named, words):
    yes, no, neither = words
    said = {"p": yes, "q": yes, "n": no, **({} if neither is None else {"x": neither})}
    ((column, form),) = named.items()
    fill = lambda text: form.format(text) if isinstance(form, str) else [text]  # noqa: E731 - a line
    rows = [{"anchor": "a", column: fill(text), "label": label} for text, label in said.items()]
    rows += [{"anchor": "a", column: fill("p"), "label": no}, {"anchor": "b", column: fill("n"), "label": no}]
    labels = read_label_set(write_rows(tmp_path / "x.jsonl", *rows)).labels
    positives = [(label.question, label.positives or label.positive_ids) for label in labels]
    assert positives == [("a", ["p"]), ("a", ["q"])]
    assert [label.negatives or label.negative_ids for label in labels] == [["n"], ["n"]]
    wrong = len(rows) - 2
    assert (
        f"do not match: {wrong}, of which 2 are negatives of their questions and {wrong - 2} are left out"
        in caplog.text
    )


@pytest.mark.parametrize("labels", [(0, 1, 2), ("entailment", "maybe"), (0.2, "high"), (3.5, 4.0)])
def test_labels_of_pairs_on_an_unknown_scale_are_refused(tmp_path, labels):
    rows = [{"anchor": "a", "positive": f"p{label}", "label": label} for label in labels]
    with pytest.raises(LabelsError, match=r"x.jsonl, line .: label is .*, expected a number from 0 to 1 .*entailment"):
        read_label_set(write_rows(tmp_path / "x.jsonl", *rows))


def test_a_pair_without_a_label_among_labelled_ones_is_left_out(tmp_path, caplog):
    labels = ("entailment", None, "-", "neutral")
    rows = [{"anchor": f"a{place}", "positive": "p", "label": label} for place, label in enumerate(labels)]
    found = read_label_set(write_rows(tmp_path / "x.jsonl", *rows)).labels
    assert [label.question for label in found] == ["a0"]
    assert "do not match: 3, of which 0 are negatives of their questions and 3 are left out" in caplog.text
    unlabelled = [{**row, "label": None} for row in rows]
    assert len(read_label_set(write_rows(tmp_path / "x.jsonl", *unlabelled)).labels) == len(labels)


@pytest.mark.parametrize(
    "row",
    [
        {"query": "", "positive": "p"},
        {"query": None, "positive": "p"},
        {"positive": "p"},
        {"query": "b", "positive": "\u200b"},
        {"query": "b", "pos": [], "negative": "n"},
    ],
)
def test_a_row_without_a_question_or_a_positive_is_left_out_and_counted(tmp_path, caplog, row):
    rows = [
        {"query": "a", "positive": "p", "label": 1},
        {**row, "label": 0},
        {"query": "c", "positive": "p", "label": 1},
    ]
    path = write_rows(tmp_path / "x.jsonl", *rows)
    assert [label.question for label in read_label_set(path).labels] == ["a", "c"]
    assert f"rows without a question or a positive are left out: 1, first {path}, line 2: " in caplog.text
    with pytest.raises(LabelsError, match=r"line 1: (question is|neither positives)"):
        read_label_set(write_rows(path, row))


@pytest.mark.parametrize("named", ["positive", "positive_ids"])
def test_a_list_with_a_label_for_each_entry_is_split_by_them(tmp_path, named):
    row = {"anchor": "a", named: ["p", "n", "x"], "labels": [1, 0, 0.2]}
    (label,) = read_label_set(write_rows(tmp_path / "x.jsonl", row)).labels
    assert (label.positives or label.positive_ids, label.negatives or label.negative_ids) == (["p"], ["n"])
    (tmp_path / "x.csv").write_text(f"anchor,{named},labels\na,\"['p', 'n']\",\"[1, 0]\"\n")
    (label,) = read_label_set(tmp_path / "x.csv").labels
    assert (label.positives or label.positive_ids, label.negatives or label.negative_ids) == (["p"], ["n"])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [([1], "positive has 2 entries and labels has 1, expected as many"), ([7.1, -3.0], "labels is 7.1, expected a")],
)
def test_a_list_whose_labels_do_not_fit_is_refused(tmp_path, labels, problem):
    row = {"anchor": "a", "positive": ["p", "n"], "labels": labels}
    with pytest.raises(LabelsError, match=f"line 1: {problem}"):
        read_label_set(write_rows(tmp_path / "x.jsonl", row))


def test_a_list_of_topics_splits_nothing(tmp_path):
    row = {"anchor": "a", "positive": ["p", "q"], "labels": ["billing"]}
    (label,) = read_label_set(write_rows(tmp_path / "x.jsonl", row)).labels
    assert label.positives == ["p", "q"]


@pytest.mark.parametrize("column", ["score", "similarity_score", "is_relevant", "Label", "Score"])
@pytest.mark.parametrize("values", [(1, 0), (True, False), (0.9, 0.0), ("true", "false")])
def test_a_score_that_is_a_verdict_is_read_as_one(tmp_path, caplog, column, values):
    caplog.set_level("INFO")
    rows = [{"anchor": "a", "positive": text, column: value} for text, value in zip("pn", values, strict=True)]
    (label,) = read_label_set(write_rows(tmp_path / "x.jsonl", *rows)).labels
    assert (label.positives, label.negatives) == (["p"], ["n"])
    assert f"whether a pair matches is read from the column '{column}'" in caplog.text


@pytest.mark.parametrize("values", [(12.5, 0.3), (0.4, -0.4), ("good", "bad")])
def test_a_score_on_another_scale_is_ignored_and_named(tmp_path, caplog, values):
    rows = [{"anchor": "a", "positive": text, "score": value} for text, value in zip("pn", values, strict=True)]
    assert len(read_label_set(write_rows(tmp_path / "x.jsonl", *rows)).labels) == len(rows)
    assert "the columns ['score'] are ignored" in caplog.text


@pytest.mark.parametrize(("words", "is_read"), [("abcd", True), ("aaa", True), ("aab", False), ("abc", False)])
def test_two_or_three_unknown_words_are_refused_and_topics_are_ignored(tmp_path, words, is_read):
    rows = [{"anchor": "a", "positive": f"p{place}", "label": f"so {word}"} for place, word in enumerate(words)]
    path = write_rows(tmp_path / "x.jsonl", *rows)
    if is_read:
        assert len(read_label_set(path).labels) == len(words)
        return
    with pytest.raises(LabelsError, match=r"line 1: label is 'so a', expected .* rename the column where it says"):
        read_label_set(path)


def test_lists_in_cells_are_read_in_columns_of_texts_and_ids_alone(tmp_path):
    (tmp_path / "x.csv").write_text(
        "question,pos,neg,positive_ids\n['q'],\"['p' 'q']\",[1],\"['a.md', 'b.md']\"\nr,p,[],\"[1, 2]\"\n"
    )
    first, second = read_label_set(tmp_path / "x.csv").labels
    assert (first.question, first.positives, first.negatives) == ("['q']", ["p", "q"], ["[1]"])
    assert (first.positive_ids, second.positive_ids, second.negatives) == (["a.md", "b.md"], ["1", "2"], [])


@pytest.mark.parametrize("name", ["questionId", "query_id", "anchor-ids"])
def test_an_id_of_the_question_is_ignored_and_named(tmp_path, caplog, name):
    (label,) = read_label_set(write_rows(tmp_path / "x.jsonl", {"query": "a", "positive": "p", name: 1})).labels
    assert label.question == "a"
    assert f"the columns ['{name}'] are ignored" in caplog.text


def test_whole_words_of_a_name_say_the_side_and_none_is_said(tmp_path, caplog):
    for folder in ("sides", "none"):
        (tmp_path / folder).mkdir()
    for name in ("my-training-set", "evaluation", "Testing_2"):
        write_rows(tmp_path / "sides" / f"{name}.jsonl", {"anchor": name, "positive": "p"})
    found = {label.question: label.side for label in read_label_set(tmp_path / "sides").labels}
    assert found == {"my-training-set": "train", "evaluation": "dev", "Testing_2": "test"}
    assert not caplog.messages
    for name in ("first", "second"):
        write_rows(tmp_path / "none" / f"{name}.jsonl", {"anchor": name, "positive": "p"})
    assert [label.side for label in read_label_set(tmp_path / "none").labels] == [None, None]
    assert "read without a split, as no name says train, dev or test: first.jsonl, second.jsonl" in caplog.text
