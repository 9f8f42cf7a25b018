"""Judged search results become a query set that the evaluation reads."""

from __future__ import annotations

import json

import pytest

from embed_pipeline.beir import read_beir
from embed_pipeline.inspection.judged_searches import write_judged_queries
from embed_pipeline.row_files import LabelsError


def saved(path, *rows):
    names = ("query", "path", "segment_id", "judgement")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def test_the_set_is_read_back_as_it_was_judged(tmp_path):
    first = saved(
        tmp_path / "a.jsonl",
        ("red  lamp", "a/é x.md", "s1", "wrong"),
        ("red lamp", "a/é x.md", "s2", "right"),
        ("red lamp", "b.md", "s3", "wrong"),
        ("fee", "b.md", "s3", "right"),
        ("only wrong", "b.md", "s3", "wrong"),
    )
    second = saved(tmp_path / "b.jsonl", ("fee", "b.md", "s3", "wrong"), ("fee", "c.md", "s4", "right"))
    assert write_judged_queries([first, second], tmp_path / "set") == (2, 1)
    found = read_beir(tmp_path / "set", ("test",))
    judged = {found.queries[key]: one.grades for key, one in found.judged["test"].items()}
    assert judged == {"red lamp": {"a/é x.md": 1, "b.md": 0}, "fee": {"b.md": 0, "c.md": 1}}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (("q", "p", "s", "perhaps"), "line 1: judgement is 'perhaps'"),
        (("", "p", "s", "right"), "line 1: expected the texts"),
        (("q", 7, "s", "right"), "line 1: expected the texts"),
        (("q", "p", "s", "wrong"), "no query has a result that was judged right"),
    ],
)
def test_what_is_no_judgement_is_refused(tmp_path, row, said):
    with pytest.raises(LabelsError, match=said):
        write_judged_queries([saved(tmp_path / "a.jsonl", row)], tmp_path / "set")
    assert not (tmp_path / "set").exists()
