"""The general questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed_pipeline.evaluation.general_set import general_set, split_docstring
from embed_pipeline.evaluation.query_sets import EvaluationError

REST = "The rest of it says what there is to say in a good many more words than a first sentence has."


@pytest.mark.slow
def test_every_install_has_questions_apart_from_the_sample() -> None:
    questions, (ids, texts) = general_set(100)
    again, passages = general_set(100)
    assert (again, passages) == (questions, (ids, texts))
    assert len(questions) == 100
    assert len(ids) == len(texts) == len(set(texts)) == 300
    assert {item for rel in questions.qrels.values() for item in rel} <= set(ids)
    assert not [name for name in ids if "pydoc_data" in name or name.startswith("topics")]


def test_a_docstring_is_asked_for_by_its_first_sentence() -> None:
    assert split_docstring(f"Say what it is for.\n\n    {REST}\n") == ("Say what it is for.", REST)
    assert split_docstring(f"A first line without a stop\n\n{REST}") == ("A first line without a stop", REST)
    assert split_docstring(f"Too short. {REST}") is None
    assert split_docstring("Long enough to be asked. But too short an answer.") is None
    assert split_docstring(REST) is None


def test_modules_are_read_and_never_imported(tmp_path: Path) -> None:
    inner = f'class A:\n    """Tell what it holds now. {REST} Twice."""\n'
    text = f'"""Say what it is for. {REST}"""\nraise SystemExit\n\n{inner}'
    (tmp_path / "one.py").write_text(text)
    questions, _ = general_set(10, tmp_path, least=2)
    assert questions.queries == {"one": "Say what it is for.", "one.A": "Tell what it holds now."}
    with pytest.raises(EvaluationError, match="holds 2 usable docstrings, below 50"):
        general_set(10, tmp_path)
