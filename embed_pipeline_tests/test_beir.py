"""BEIR folders: what both rooms that read them rely on, and the file and line of what is malformed."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline.beir import read_beir
from embed_pipeline.row_files import LabelsError

BYTE_ORDER_MARK = "\ufeff"
HEADER = "query-id\tcorpus-id\tscore\n"


def write_beir(folder: Path, *, corpus: bool = True, **qrels: str) -> Path:
    """A BEIR folder of three queries and, if wanted, two passages."""
    (folder / "qrels").mkdir(parents=True)
    queries = [{"_id": f"q{n}", "text": f"question {n}", "metadata": {}} for n in range(3)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    if corpus:
        passages = [{"_id": "a", "title": "Title", "text": "first"}, {"_id": "b", "text": "second"}]
        (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)) + "\n")
    for side, text in qrels.items():
        (folder / "qrels" / f"{side}.tsv").write_text(HEADER + text)
    return folder


def test_a_whole_folder(tmp_path):
    found = read_beir(write_beir(tmp_path / "set", train="q0\ta\t1\nq0\tb\t0\nq1\tb\t-1\n", test="q1\tb\t2\n"))
    assert found.queries == {"q0": "question 0", "q1": "question 1", "q2": "question 2"}
    assert found.passages == {"a": "Title first", "b": "second"}
    assert {side: sorted(queries) for side, queries in found.judged.items()} == {"train": ["q0", "q1"], "test": ["q1"]}
    first, second = found.judged["train"]["q0"], found.judged["train"]["q1"]
    assert (first.positives, first.negatives, first.place) == (
        ["a"],
        ["b"],
        f"{tmp_path / 'set' / 'qrels' / 'train.tsv'}, line 2",
    )
    assert (second.positives, second.negatives) == ([], ["b"])
    assert found.judged["test"]["q1"].grades == {"b": 2}


def test_only_the_sides_asked_for_are_read(tmp_path):
    folder = write_beir(tmp_path / "set", train="not a judgement\n", test="q0\ta\t1\n")
    assert read_beir(folder, ("test",)).judged.keys() == {"test"}


def test_passages_may_be_those_of_the_documents(tmp_path):
    assert read_beir(write_beir(tmp_path / "set", corpus=False, test="q0\tguide.md\t1\n")).passages is None


@pytest.mark.parametrize("header", ["", HEADER, BYTE_ORDER_MARK + HEADER, "QID\tdocid\tgrade\n", "\n" + HEADER])
@pytest.mark.parametrize("score", ["1", "+1", "1.0", " 1 ", "01"])
def test_a_header_and_how_a_grade_is_written_do_not_matter(tmp_path, header, score):
    folder = write_beir(tmp_path / "set", test="")
    (folder / "qrels" / "test.tsv").write_bytes(f"{header}q0\ta\t{score}\r\n\r\nq1\tb\t0\r\n".encode())
    judged = read_beir(folder).judged["test"]
    assert {query: judgements.grades for query, judgements in judged.items()} == {"q0": {"a": 1}, "q1": {"b": 0}}


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    for name in ("queries.jsonl", "corpus.jsonl"):
        path = folder / name
        path.write_bytes((BYTE_ORDER_MARK + path.read_text()).encode())
    found = read_beir(folder)
    assert list(found.queries) == ["q0", "q1", "q2"]
    assert list(found.passages or {}) == ["a", "b"]


@pytest.mark.parametrize(
    ("passage", "text"),
    [
        ({"title": "T", "text": " text\n"}, "T  text"),
        ({"title": "", "text": " text\n"}, "text"),
        ({"title": None, "text": "text"}, "text"),
        ({"text": "line\u2028separator"}, "line\u2028separator"),
        ({"title": "T", "text": ""}, "T"),
    ],
)
def test_title_and_text_are_joined_as_beir_joins_them(tmp_path, passage, text):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    (folder / "corpus.jsonl").write_text(json.dumps({"_id": "a", **passage}, ensure_ascii=False), "utf-8")
    assert read_beir(folder).passages == {"a": text}


def test_of_several_judgements_the_highest_counts(tmp_path):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\nq0\ta\t0\nq0\tb\t1\nq0\tb\t2\n")
    assert read_beir(folder).judged["test"]["q0"].grades == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("queries.jsonl", '{"_id": "q0", "text": "x"}\n{"_id": 2}\n', "line 2: expected _id, a string or a whole"),
        ("queries.jsonl", '{"_id": true, "text": "x"}', "line 1: expected _id, a string or a whole number"),
        ("queries.jsonl", '{"_id": "q0", "text": "x"}\n\n{\n', "line 3: not JSON"),
        ("queries.jsonl", "[]", "line 1: expected an object"),
        ("queries.jsonl", '{"_id": "q0", "text": "x"}\n{"_id": "q0", "text": "y"}', "line 2: _id 'q0' occurs twice"),
        ("corpus.jsonl", '{"_id": "a", "text": "x", "title": ["t"]}', r"line 1: title is \['t'\], expected a string"),
        ("qrels/test.tsv", HEADER + "q0\ta\n", "line 2: expected query-id, corpus-id, score .* got 2 columns"),
        ("qrels/test.tsv", "q0 a 1\n", "line 1: expected query-id, corpus-id, score .* got 1 columns"),
        ("qrels/test.tsv", "q0,a,1\nq1,b\n", "line 2: expected query-id, .* separated by commas, got 2 columns"),
        ("qrels/test.tsv", "query-id,answer,score\nq0,a,1\n", "line 2: expected the columns .*found query-id, answer"),
        ("qrels/test.tsv", "q0\ta\rq1\tb\n", "line 1: new-line character"),
        ("qrels/test.tsv", "q0\ta\thigh\n", "line 1: score 'high' is not a whole number"),
        ("qrels/test.tsv", "q0\ta\t0.5\n", "line 1: score '0.5' is not a whole number"),
        ("qrels/test.tsv", "q0\ta\t²\n", "line 1: score '²' is not a whole number"),
    ],
)
def test_what_is_malformed_is_named_with_its_line(tmp_path, file, content, problem):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    (folder / file).write_text(content, "utf-8")
    with pytest.raises(LabelsError, match=f"{file}, {problem}"):
        read_beir(folder)


def test_what_is_missing_or_no_text_is_named(tmp_path):
    folder = write_beir(tmp_path / "set")
    with pytest.raises(LabelsError, match="set: there is no qrels/train.tsv or qrels/dev.tsv or qrels/test.tsv"):
        read_beir(folder)
    with pytest.raises(LabelsError, match="set: there is no qrels/test.tsv"):
        read_beir(folder, ("test",))
    (folder / "queries.jsonl").write_bytes(b'{"_id": "q0", "text": "x"}\n{"_id": "q1\xff"}')
    with pytest.raises(LabelsError, match="queries.jsonl, line 2: not UTF-8 at byte 11"):
        read_beir(folder)
    (folder / "queries.jsonl").rename(folder / "queries.jsonl.zst")
    with pytest.raises(LabelsError, match=r"queries.jsonl: No such file, .*holds \['corpus.jsonl', 'qrels', .*zst'\]"):
        read_beir(folder)


def test_judgements_on_queries_that_are_not_there_are_left_out_and_counted(tmp_path, caplog):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\nq9\ta\t1\nq8\tb\t0\n")
    assert list(read_beir(folder).judged["test"]) == ["q0"]
    assert "left out: 2, first 'q9'" in caplog.text
    (folder / "qrels" / "test.tsv").write_text("q9\ta\t1\n")
    with pytest.raises(LabelsError, match=r"no judged query is in its queries with a text, first 'q9' .*line 1"):
        read_beir(folder)


def test_whole_numbers_are_ids(tmp_path):
    folder = write_beir(tmp_path / "set", test="0\t1\t1\n")
    for name, rows in (("queries", [{"_id": 0, "text": "ask"}]), ("corpus", [{"_id": 1, "text": "answer"}])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_beir(folder)
    assert (found.queries, found.passages) == ({"0": "ask"}, {"1": "answer"})
    assert found.judged["test"]["0"].grades == {"1": 1}


@pytest.mark.parametrize(
    ("places", "columns"),
    [
        (("queries.parquet", "corpus.parquet", "qrels/test.parquet"), ("query-id", "corpus-id", "score")),
        (
            ("queries/part-0.parquet", "corpus/part-0.parquet", "data/test-0.parquet"),
            ("query_id", "corpus_id", "score"),
        ),
        (("queries/q.parquet", "corpus/c.parquet", "default/test.parquet"), ("Query-ID", "Corpus-ID", "Score")),
    ],
)
def test_parquet_as_hubs_keep_it(tmp_path, places, columns):
    frames = (
        pl.DataFrame({"_id": [7], "text": ["ask"]}),
        pl.DataFrame({"_id": ["a"], "title": ["T"], "text": ["answer"]}),
        pl.DataFrame({columns[0]: [7], columns[1]: ["a"], columns[2]: [2.0]}),
    )
    for place, frame in zip(places, frames, strict=True):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        frame.write_parquet(tmp_path / place)
    found = read_beir(tmp_path)
    assert (found.queries, found.passages) == ({"7": "ask"}, {"a": "T answer"})
    assert found.judged["test"]["7"].grades == {"a": 2}


def test_validation_is_the_dev_side(tmp_path):
    assert list(read_beir(write_beir(tmp_path / "set", validation="q0\ta\t1\n")).judged) == ["dev"]


def test_half_a_surrogate_pair_is_replaced_and_what_cannot_be_read_is_named(tmp_path):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    queries = folder / "queries.jsonl"
    queries.write_text('{"_id": "q0", "text": "pump \\ud83d hums \\ud83d\\ude00"}\n')
    assert read_beir(folder).queries == {"q0": "pump \ufffd hums \U0001f600"}
    for row, problem in (("[" * 100_000, "nested too deeply"), ('{"_id": ' + "9" * 5000 + "}", "not JSON")):
        queries.write_text(f"{row}\n")
        with pytest.raises(LabelsError, match=f"line 1: not JSON.*{problem}" if "nested" in problem else problem):
            read_beir(folder)
    queries.write_text('{"_id": "q0", "text": "x"}\n')
    (folder / "qrels" / "test.tsv").write_text(f"q0\ta\t{'9' * 5000}\n")
    with pytest.raises(LabelsError, match="is not a whole number"):
        read_beir(folder)
    (folder / "qrels" / "test.tsv").write_text(HEADER)
    with pytest.raises(LabelsError, match=r"there is no qrels/test.tsv with a judgement in it"):
        read_beir(folder, ("test",))


def test_ids_that_pandas_made_fractions_are_the_whole_numbers(tmp_path):
    folder = write_beir(tmp_path / "set")
    rows = {"query-id": [1.0, 2.0], "corpus-id": [7.0, 8.0], "score": [1, 0]}
    pl.DataFrame(rows).write_parquet(folder / "qrels" / "test.parquet")
    (folder / "queries.jsonl").write_text('{"_id": 1, "text": "x"}\n{"_id": "2", "text": "y"}\n')
    judged = read_beir(folder, ("test",)).judged["test"]
    assert {query: judgements.grades for query, judgements in judged.items()} == {"1": {"7": 1}, "2": {"8": 0}}


def test_packed_files_are_read(tmp_path):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    whole = read_beir(folder)
    for path in [*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")]:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_beir(folder) == replace(
        whole,
        judged={"test": {"q0": replace(whole.judged["test"]["q0"], place=f"{folder}/qrels/test.tsv.gz, line 2")}},
    )
    for path in folder.glob("*.gz"):
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
        (folder / path.name.replace("jsonl.gz", "json")).write_text(json.dumps(rows))
        path.unlink()
    assert replace(read_beir(folder), judged={}) == replace(whole, judged={})
    damaged = bytearray(
        gzip.compress("".join(f'{{"_id": "{n}", "text": "t {n * 7919}"}}\n' for n in range(5000)).encode())
    )
    damaged[200:260] = bytes(byte ^ 255 for byte in damaged[200:260])
    for content in (b"no gzip", bytes(damaged)):
        (folder / "corpus.jsonl.gz").write_bytes(content)
        with pytest.raises(LabelsError, match=r"corpus\.jsonl\.gz: "):
            read_beir(folder)
    (folder / "corpus.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(LabelsError, match=r"corpus\.jsonl\.gz: Not a gzipped file"):
        read_beir(folder)


@pytest.mark.parametrize(
    "lines", ["q0\ta\n", "query-id\tcorpus-id\nq0\ta\n", "q0\t0\ta\t1\n", "q0\tQ0\ta\t1.0\n", "q0 0  a 1\n"]
)
def test_judgements_without_a_grade_and_in_trecs_form_are_read(tmp_path, lines):
    folder = write_beir(tmp_path / "set", test="")
    (folder / "qrels" / "test.tsv").write_text(lines)
    assert read_beir(folder).judged["test"]["q0"].grades == {"a": 1}


def test_passages_without_a_text_are_left_out_and_equal_rows_are_one(tmp_path, caplog):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "b", "text": "second"}\n{"_id": "c", "title": "", "text": " "}\n')
        corpus.write('{"_id": "d", "text": "\\u200b\\ufeff"}\n{"_id": "e", "text": null}\n')
    assert read_beir(folder).passages == {"a": "Title first", "b": "second"}
    assert "passages without a text are left out: 3" in caplog.text


@pytest.mark.parametrize(
    "name", ["test.jsonl", "test.json", "test.ndjson.gz", "test.parquet", "TEST-00000-of-00001.jsonl"]
)
def test_judgements_may_be_in_every_form(tmp_path, name):
    folder = write_beir(tmp_path / "set")
    row = {"query-id": "q0", "corpus-id": "a", "score": 2}
    path = folder / "qrels" / name
    content = json.dumps(row).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    if path.suffix == ".parquet":
        pl.DataFrame([row]).write_parquet(path)
    assert read_beir(folder).judged["test"]["q0"].grades == {"a": 2}


def test_judgements_may_be_an_object_of_queries(tmp_path):
    folder = write_beir(tmp_path / "set")
    (folder / "qrels" / "test.json").write_text(json.dumps({"q0": {"a": 2, "b": 0}, "q1": {"b": 1}}, indent=1))
    judged = read_beir(folder).judged["test"]
    assert {query: judgements.grades for query, judgements in judged.items()} == {
        "q0": {"a": 2, "b": 0},
        "q1": {"b": 1},
    }


def test_a_side_is_in_files_named_exactly_for_it_and_the_others_are_named(tmp_path, caplog):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n", dev="q1\tb\t1\n", valid="q2\ta\t1\n")
    frame = pl.DataFrame({"query-id": ["q1"], "corpus-id": ["b"], "score": [1]})
    for name in ("testing-notes.parquet", "test-0.parquet", "tests.jsonl", "test.tsv.gz", "test-old.tsv"):
        frame.write_parquet(folder / "qrels" / name)
    (folder / "queries.json").write_text("[]")
    found = read_beir(folder, ("test", "dev")).judged
    assert {side: list(queries) for side, queries in found.items()} == {"test": ["q0"], "dev": ["q1"]}
    passed = "test-0.parquet, test-old.tsv, test.tsv.gz, testing-notes.parquet, tests.jsonl, valid.tsv"
    assert f"{folder / 'qrels'}: passed over: {passed}" in caplog.text
    assert f"{folder}: passed over: queries.json" in caplog.text
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / "test.tsv.gz").unlink()
    frame.write_parquet(folder / "qrels" / "test-1.parquet")
    assert list(read_beir(folder, ("test",)).judged["test"]) == ["q1"]
    for path in folder.glob("qrels/test-[01].parquet"):
        path.unlink()
    with pytest.raises(LabelsError, match="in it; qrels holds dev.tsv, .*; there are those of dev"):
        read_beir(folder, ("test",))


@pytest.mark.parametrize(
    "lines",
    [
        "query-id\titeration\tcorpus-id\tscore\nq0\t7\ta\t2\n",
        "query-id  iteration  corpus-id  score\nq0  7  a  2\n",
        "qid 0 docid rel\nq0 7 a 2\n",
        "topic iter docno rel\nq0 Q0 a 2\n",
        "docid\trel\tquery_id\titer\na\t2\tq0\t0\n",
        "corpus-id\tquery-id\tscore\na\tq0\t2\n",
        "score\tCorpus ID\tQuery ID\n2\ta\tq0\n",
        "query-id\tquery\tcorpus-id\ttitle\tscore\tjudge\nq0\tasked\ta\tT\t2\tme\n",
        'query-id\tcorpus-id\tscore\n"q0"\t"a"\t"2"\n',
        '"query-id"\t"corpus-id"\t"score"\r\n"q0"\t"a"\t"2"\r\n',
        "query-id,corpus-id,score\nq0,a,2\n",
        '"corpus-id", "query-id", "score"\n"a", "q0", "2"\n',
        "qid;docid;rel\nq0;a;2\n",
        "q0,a,2\n",
        "q0, 0, a, 2\n",
        "q0\t0\ta\t2\n",
    ],
)
@pytest.mark.parametrize("name", ["test.tsv", "test.csv", "test.txt", "test.qrels"])
def test_columns_are_those_that_the_header_names_whatever_separates_them(tmp_path, name, lines):
    folder = write_beir(tmp_path / "set")
    (folder / "qrels" / name).write_text(lines)
    judged = read_beir(folder).judged["test"]
    assert {query: judgements.grades for query, judgements in judged.items()} == {"q0": {"a": 2}}


def test_ids_may_hold_what_separates_columns_elsewhere(tmp_path):
    folder = write_beir(tmp_path / "set", corpus=False)
    queries = [{"_id": key, "text": "x"} for key in ("q0", "1")]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for lines, grades in (
        ("q0\tnotes, old; new.md\t1\n", {"notes, old; new.md": 1}),
        ("q0\tmy file 1\t1\n", {"my file 1": 1}),
        ('query-id,corpus-id,score\nq0,"notes, ""old"".md",1\n', {'notes, "old".md': 1}),
        ("q0 0 a,b 1\n", {"a,b": 1}),
    ):
        (folder / "qrels" / "test.tsv").write_text(lines)
        assert read_beir(folder).judged["test"]["q0"].grades == grades


def test_columns_of_judgements_in_rows_may_have_other_usual_names(tmp_path):
    folder = write_beir(tmp_path / "set")
    (folder / "qrels" / "test.jsonl").write_text('{"docid": "a", "qid": "q0", "relevance": 2}')
    assert read_beir(folder).judged["test"]["q0"].grades == {"a": 2}


@pytest.mark.parametrize("empty", ["", " ", "\u200b", None])
def test_a_query_without_a_text_is_left_out_with_its_judgements_and_counted(tmp_path, caplog, empty):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\nq1\ta\t1\nq1\tb\t1\n")
    queries = [{"_id": "q0", "text": "x"}, {"_id": "q1", "text": empty}, {"_id": "unjudged", "text": empty}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    found = read_beir(folder)
    assert (found.queries, list(found.judged["test"])) == ({"q0": "x"}, ["q0"])
    assert "queries without a text are left out: 2" in caplog.text
    assert "judgements on queries that are missing or have no text are left out: 2, first 'q1'" in caplog.text
    (folder / "qrels" / "test.tsv").write_text("q1\ta\t1\n")
    with pytest.raises(LabelsError, match=r"no judged query is in its queries with a text, first 'q1' .*line 1"):
        read_beir(folder)


def test_a_title_may_be_a_whole_number(tmp_path):
    folder = write_beir(tmp_path / "set", test="q0\ta\t1\n")
    (folder / "corpus.jsonl").write_text('{"_id": "a", "title": 1984, "text": "first"}\n')
    assert read_beir(folder).passages == {"a": "1984 first"}


def test_a_side_whose_grades_are_all_zero_is_named(tmp_path, caplog):
    folder = write_beir(tmp_path / "set", train="q0\ta\t1\n", test="q0\ta\t0\nq1\tb\t-1\n")
    assert read_beir(folder).judged["test"]["q0"].positives == []
    assert caplog.messages == [f"{folder}: no grade of test is 1 or more, so no passage answers a query of it"]


@pytest.mark.parametrize(("encoding", "end"), [("utf-16", "\r\n"), ("utf-8", "\r"), ("utf-8-sig", "\r\n")])
def test_judgements_are_read_as_excel_writes_them(tmp_path, encoding, end):
    folder = write_beir(tmp_path / "set", test="")
    (folder / "qrels" / "test.tsv").write_bytes(f"{HEADER}q0\ta\t1\nq1\tb\t0\n".replace("\n", end).encode(encoding))
    assert {query: found.grades for query, found in read_beir(folder).judged["test"].items()} == {
        "q0": {"a": 1},
        "q1": {"b": 0},
    }
