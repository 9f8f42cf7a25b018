from __future__ import annotations

import json

import pytest

from embed_pipeline.corpus.notebooks import read_notebook


def _cell(kind: str, source: str) -> dict[str, object]:
    cell: dict[str, object] = {"cell_type": kind, "metadata": {}, "source": source}
    return cell | ({"outputs": [{"output_type": "stream", "name": "stdout", "text": "printed"}], "execution_count": 1}
                   if kind == "code" else {})  # fmt: skip


def _notebook(*cells: dict[str, object]) -> str:
    return json.dumps({"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 4})


def test_markdown_is_text_and_code_is_code() -> None:
    text = _notebook(
        _cell("markdown", "# Valves\n\nThey open.\n\n```\nnever closed"),
        _cell("code", "# open it\nvalve.open()"),
        _cell("markdown", "## Pumps\n\n![p](data:image/png;base64,AAAA)"),
    )
    read = read_notebook(text)
    assert read.title == "Valves"
    assert [(b.kind, b.text) for b in read.blocks] == [
        ("heading", "Valves"), ("paragraph", ""), ("code", ""), ("code", ""), ("heading", "Pumps"), ("paragraph", ""),
    ]  # fmt: skip
    assert "```python\n# open it\nvalve.open()\n```" in read.text
    assert "printed" not in read.text
    assert "base64" not in read.text


def test_metadata_in_the_first_cell_names_it() -> None:
    read = read_notebook(_notebook(_cell("raw", "---\ntitle: The lab\n---\n"), _cell("markdown", "Text.")))
    assert (read.title, read.text) == ("The lab", "Text.\n")


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"cells": 3, "nbformat": 4}'])
def test_what_is_no_notebook_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it is no notebook"):
        read_notebook(text)
