"""The Python reference as sample documents, and the hand-written questions that go with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from embed_pipeline.corpus import sample
from embed_pipeline.storage import StorageError
from embed_pipeline.text.markdown import markdown_blocks

QUESTIONS = Path(__file__).parents[2] / "data" / "sample" / "python-reference"
TWO_DOCUMENTS = QUESTIONS.parent / "two-documents"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> list[Path]:
    return sample.write_sample("python", tmp_path_factory.mktemp("documents"))


@pytest.mark.slow
def test_every_topic_is_written_under_its_name(written):
    assert [path.name for path in written] == [f"{topic}.md" for topic in sorted(topics)]
    assert {path.parent.name for path in written} == {"python-reference"}
    assert {path.name for path in written[0].parent.iterdir()} == {path.name for path in written}


def test_every_topic_begins_with_its_title_as_a_heading(written):
    for path in written:
        title = topics[path.stem].lstrip().split("\n", 1)[0]
        text = path.read_bytes().decode("utf-8")
        assert text.startswith(f"# {title}\n"), path.name
        assert text.endswith("\n")
        assert "\r" not in text
        assert "\n\n\n" not in text
        assert markdown_blocks(text)[0].level == 1


def test_underlined_titles_become_headings_of_their_depth():
    text = "Top\n***\n\n\nMiddle\n======\n\n\nLow\n---\n\n\nLeast\n~~~~~\n\ntext\n"
    assert sample.topic_to_markdown(text) == "# Top\n\n## Middle\n\n### Low\n\n#### Least\n\ntext\n"


def test_code_and_grammar_are_fenced_and_bodies_of_definitions_are_not():
    text = (
        "Top\r\n***\r\n\r\n"
        "   top ::= middle\r\n          | low\r\n\r\n"
        "An example:\r\n\r\n   if x:\r\n       y()\r\n\r\n   z()\r\n\r\n"
        "object.__len__(self)\r\n\r\n   Called to implement len().\r\n\r\n"
        "   >>> len('a')\r\n   1\r\n\r\n   More text.\r\n\r\n"
        "Note:\r\n\r\n  A note.\r\n\r\n"
        "These:\r\n\r\n   * an item\r\n"
    )
    assert sample.topic_to_markdown(text) == (
        "# Top\n\n"
        "```\ntop ::= middle\n       | low\n```\n\n"
        "An example:\n\n```\nif x:\n    y()\n\nz()\n```\n\n"
        "object.__len__(self)\n\n   Called to implement len().\n\n```\n>>> len('a')\n1\n```\n\n   More text.\n\n"
        "Note:\n\n  A note.\n\n"
        "These:\n\n   * an item\n"
    )


def test_no_word_of_a_topic_is_lost(written):
    marks = str.maketrans("", "", "`#*=-~ \n")
    for path in written:
        assert path.read_text("utf-8").translate(marks) == topics[path.stem].translate(marks), path.name


def test_second_call_rewrites_only_what_changed(tmp_path):
    paths = sample.write_sample("python", tmp_path)
    changed, *kept = paths
    changed_text = changed.read_text("utf-8")
    changed.write_text("edited", "utf-8")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}
    assert sample.write_sample("python", tmp_path) == paths
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept} == before
    assert changed.read_text("utf-8") == changed_text


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    folder = tmp_path / "python-reference"
    folder.mkdir()
    (folder / "assert.md").write_text("old", "utf-8")

    def refuse(self: Path, target: Path) -> Path:
        raise OSError("no space")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="no space"):
        sample.write_sample("python", tmp_path)
    assert [path.name for path in folder.iterdir()] == ["assert.md"]
    assert (folder / "assert.md").read_text("utf-8") == "old"


def test_unknown_sample_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(sample.SampleError, match=r"'ruby' is unknown; the samples are: python"):
        sample.write_sample("ruby", tmp_path)
    assert list(tmp_path.iterdir()) == []


def _queries(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]


def _rows(file: Path, header: str) -> list[list[str]]:
    first, *rows = file.read_text("utf-8").splitlines()
    assert first == header
    return [row.split("\t") for row in rows]


def _judgements(folder: Path) -> list[list[str]]:
    return _rows(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore")


@pytest.mark.parametrize(("folder", "least"), [(QUESTIONS, 80), (TWO_DOCUMENTS, 60)])
def test_questions_are_many_and_distinct(folder, least):
    queries = _queries(folder)
    assert len(queries) >= least
    assert all(set(row) == {"_id", "text"} and row["text"].strip() == row["text"] != "" for row in queries)
    assert len({row["_id"] for row in queries}) == len(queries)
    assert len({row["text"].casefold() for row in queries}) == len(queries)


@pytest.mark.parametrize("folder", [QUESTIONS, TWO_DOCUMENTS])
def test_every_question_is_judged_and_every_judgement_has_its_question(folder):
    judgements, ids = _judgements(folder), {row["_id"] for row in _queries(folder)}
    assert {query for query, _, _ in judgements} == ids
    assert len({(query, document) for query, document, _ in judgements}) == len(judgements)
    assert {score for _, _, score in judgements} == {"1", "2"}
    assert {query for query, _, score in judgements if score == "2"} == ids
    assert f"{len(ids)} questions" in (folder / "README.md").read_text("utf-8")
    assert f"{len(judgements)} judgements" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("folder", [QUESTIONS, TWO_DOCUMENTS])
def test_judged_documents_are_documents_of_the_sample(folder, written):
    documents = {f"python-reference/{path.name}" for path in written}
    judged = {document for _, document, _ in _judgements(folder)}
    # The set of topics differs a little between interpreter versions; the first set was judged on 3.11 to 3.13.
    assert len(judged & documents) >= 0.95 * len(judged)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="judged on the sentences of Python 3.11's topics")
def test_each_question_needs_two_documents_and_no_topic_holds_both_halves(written):
    texts = {
        f"python-reference/{path.name}": " ".join(path.read_text("utf-8").replace("-\n", "-").split())
        for path in written
    }
    holders: dict[str, dict[str, set[str]]] = {}
    for query, side, sentence in _rows(TWO_DOCUMENTS / "evidence.tsv", "query-id\tside\tsentence"):
        found = {document for document, text in texts.items() if sentence in text}
        assert found, f"{query}: no topic says {sentence!r}"
        holders.setdefault(query, {}).setdefault(side, set()).update(found)
    grades: dict[str, dict[str, str]] = {}
    for query, document, score in _judgements(TWO_DOCUMENTS):
        grades.setdefault(query, {})[document] = score
    assert set(holders) == {row["_id"] for row in _queries(TWO_DOCUMENTS)}
    for query, sides in holders.items():
        first, second = sides["1"], sides["2"]
        assert not first & second, f"{query}: {first & second} hold both halves"
        assert first | second == set(grades[query])
        assert [sum(grades[query][document] == "2" for document in side) for side in (first, second)] == [1, 1], query


def test_readme_counts_the_kinds_of_questions():
    readme = (QUESTIONS / "README.md").read_text("utf-8")
    kinds = [row["_id"].rpartition("-")[0] for row in _queries(QUESTIONS)]
    for kind in set(kinds):
        assert f"| `{kind}` | {kinds.count(kind)} |" in readme
