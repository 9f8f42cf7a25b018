from __future__ import annotations

import json

import pytest

from embed_pipeline.corpus.formats import Limits, read_file, read_markdown, read_notebook, split_front_matter, title_of


@pytest.mark.parametrize(
    ("front", "title"),
    [
        ('---\ntitle: "Regulator: guide"\ntags: [a]\n---\n', "Regulator: guide"),
        ("---\n# a comment\ntitle: Guide\n---\n", "Guide"),
        ("---\ntitle: 1.10\n...\n", "1.10"),
        ("---\ntitle: <em>Foo</em> &amp; Bar\n---\n", "Foo & Bar"),
        ('+++\ntitle = "Guide"\ndate = 2024-05-01\ndraft = false\n+++\n', "Guide"),
        ("---\ntitle: {{ page }} of: all\nother: [unclosed\n---\n", "{{ page }} of: all"),
        ("---\ntags:\n  - a\n---\n", ""),
        ("---\n\ntags: [a]\n---\n", ""),
        ("---\n# title: Old\n---\n", ""),
        ("---\nnosearch: true\n---\n", ""),
        ("+++\n+++\n", ""),
        ("---\njupytext:\n  text_representation: a sentence of more than four words.\n---\n", ""),
        ("---\ntitle:\n  nested: 1\n---\n", ""),
        ("+++\ntitle = Guide without quotes\n+++\n", "Guide without quotes"),
        ('{\n  "title": "Guide",\n  "tags": ["a"]\n}\n', "Guide"),
        ("% Guide\n% A. Author\n% 2024-05-01\n", "Guide"),
        ("% A guide whose title\n  goes on\n% A. Author\n", "A guide whose title goes on"),
        ("Title: Guide\nAuthor: A. Author\n", "Guide"),
        ("Title: Guide\nSave_as: guide.html\nReviewer: A. Author\n", "Guide"),
        ("---\ntitle: Guide\nsubject: All that a pump does.\n---\n", "Guide"),
    ],
)
def test_the_title_is_that_of_the_metadata_and_nothing_of_it_is_text(front: str, title: str) -> None:
    metadata, rest = split_front_matter(f"{front}\nThe text.\n")
    assert (title_of(metadata), rest) == (title, "The text.\n")


@pytest.mark.parametrize(
    "text",
    [
        "---\n\nA rule first.\n\n---\n\nMore.\n",
        "---\nJust a paragraph\n---\n",
        "---\n- a list\n---\n",
        "---\ntitle: never closed\n",
        "Text\n---\ntitle: x\n---\n",
        "+++\n",
        "",
        '{"key": 1}\n\ntext\n',
        '{"title": "never closed"\n\ntext\n',
        '{"title": "x"} and text\n',
        "Title: one line alone\n\ntext\n",
        "Title: x\nand a sentence.\n",
        "%comment\ntext\n",
        "Title: Pump does not start\nSymptom: The pump hums.\nCause: Scale.\n",
        "Title: Pump does not start\nSymptom: The pump hums.\nCause: Scale.\n\ntext\n",
        "Title: Guide\nAuthor: A. Author\nWarning: Never open it while it runs.\n\ntext\n",
        "Title: Guide\nAuthor: A. Author\n",
        "---\nWarning: never open it.\n---\n\nText.\n",
        "---\nNote: remember to close the valve\n---\n\nText.\n",
        "---\nNote: first: second\n---\n\nText.\n",
        "---\nFirst line of prose: it says\nsecond: x\n---\n\nText.\n",
        "---\nin short: it works\n---\n\nText.\n",
        "---\n\nnote: see below\n\n---\n\nText.\n",
        "---\nnote: it is a long way to the pump\n---\n\nText.\n",
        "---\n# A heading\n---\n\nText.\n",
    ],
)
def test_what_is_no_metadata_stays(text: str) -> None:
    assert split_front_matter(text) == ({}, text)


@pytest.mark.slow
def test_hostile_metadata_is_passed_over() -> None:
    for value in ("[" * 30_000, "&a [*a, *a]", "!!python/object/apply:os.system [ls]"):
        assert split_front_matter(f"---\ntitle: {value}\n---\ntext\n")[1] == "text\n"


def test_the_title_of_a_page_is_the_metadatas_else_the_first_heading() -> None:
    page = "## Before you begin\n\nText.\n"
    assert read_markdown(f"---\ntitle: Guide\n---\n\n{page}").title == "Guide"
    read = read_markdown(page)
    assert (read.title, read.text) == ("Before you begin", page)
    assert read_markdown("Text alone.\n").title == ""


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


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('<div>\n<h1 align="center">\n <img src=a>\n <br>Turbine &amp; Kit\n</h1>\n\n## Use\n', "Turbine & Kit"),
        ("<h1>Turbine</h1>\n\n# Own\n", "Own"),
        ("# Own\n\n<h1>Turbine</h1>\n", "Own"),
        ("```html\n<h1>Turbine</h1>\n```\n\n## Install\n", "Install"),
        ("<h1>Never closed\n\n## Install\n", "Install"),
    ],
)  # fmt: skip
def test_a_title_in_html_before_all_headings_is_the_title(text: str, title: str) -> None:
    assert read_markdown(text).title == title


def test_the_title_of_the_metadata_is_one_line() -> None:
    assert read_markdown("---\ntitle: |\n  Two\n  lines\n---\n\nText.\n").title == "Two lines"


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({"kernelspec": None}, "python"),
        ({"kernelspec": {"name": "ir"}, "language_info": {"name": "R"}}, "R"),
        ({"kernelspec": {"language": "julia"}, "language_info": {"name": "R"}}, "julia"),
    ],
)
def test_code_of_a_notebook_has_its_language(metadata: dict[str, object], language: str) -> None:
    notebook = {"cells": [_cell("code", "x")], "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}
    assert read_notebook(json.dumps(notebook)).text == f"```{language}\nx\n```\n"


@pytest.mark.parametrize(
    "changed",
    [
        {"cells": [{"cell_type": "markdown", "source": ["# A\n", None, "\nb"]}, {"cell_type": "code", "source": "x"}]},
        {"cells": [_cell("markdown", "# A\n\nb"), None, {"source": None}, {"source": "x", "outputs": None}]},
        {"cells": [{}, {"cell_type": "raw", "source": None}, _cell("markdown", "# A\n\nb"), _cell("code", "x")]},
        {"metadata": None},
        {"nbformat": None, "nbformat_minor": None},
        {"cells": [_cell("markdown", "# A\n\nb"), _cell("code", "x") | {"outputs": [None, {"data": None}]}]},
    ],
    ids=["no metadata of cells", "null", "no source", "no metadata", "no version", "outputs"],
)
def test_what_a_notebook_lacks_costs_no_text(changed: dict[str, object]) -> None:
    cells = [_cell("markdown", "# A\n\nb"), _cell("code", "x")]
    read = read_notebook(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | changed))
    assert (read.title, read.text) == ("A", "# A\n\nb\n\n```python\nx\n```\n")


def test_a_notebook_of_version_3_is_read() -> None:
    cells = [
        {"cell_type": "heading", "level": 2, "source": ["Pumps\n", "and valves"]},
        {"cell_type": "markdown", "source": "Text."},
        {"cell_type": "code", "input": ["x = 1\n", "y"], "language": "python", "outputs": [], "prompt_number": 1},
    ]
    read = read_notebook(json.dumps({"metadata": {"name": ""}, "nbformat": 3, "worksheets": [{"cells": cells}]}))
    assert read.text == "## Pumps and valves\n\nText.\n\n```python\nx = 1\ny\n```\n"


def test_any_line_end_in_a_cell_ends_a_line() -> None:
    read = read_notebook(_notebook(_cell("markdown", "a\rb\n\nc\r\n\r\n# d")))
    assert read.text == "a\nb\n\nc\n\n# d\n"
    assert [block.kind for block in read.blocks] == ["paragraph", "paragraph", "heading"]


@pytest.mark.parametrize(("suffix", "charset"), [(".html", "windows-1251"), (".txt", "utf-8")])
def test_a_damaged_byte_is_said(suffix: str, charset: str) -> None:
    words = "Насос работает при трёх барах. " * 5
    head = f'<meta charset="{charset}">' if suffix == ".html" else ""
    content = head.encode() + words.encode(charset) + b"\x98 " + words.encode(charset)
    limits = Limits(max_unpacked_bytes=0, conversion_megabytes=0, conversion_seconds=0, word_comments=False)
    read = read_file(suffix, content, limits)
    assert read.text.strip() == f"{words}\ufffd {words}".strip()
    assert read.left_out == ("bytes that are not of its encoding: 1, each U+FFFD in the text",)
    assert read_file(".txt", "Said: \ufffd".encode(), limits).left_out == ()


def test_code_of_mdx_is_no_text() -> None:
    text = (
        "---\ntitle: Valve\n---\n\nimport Tabs from '@theme/Tabs';\nimport {\n  A,\n  B,\n} from './parts';\n"
        "export const meta = {\n  name: 'x}',\n\n  list: [1, 2],\n};\n\n{/* A note\nto writers */}\n\n# Open it\n\n"
        "import the part from a box, and export it.\n\n```js\n\nimport a from 'b';\n{/* shown */}\n```\n\n"
        "export default ({children}) => (\n  <div>{children}</div>\n);\n\nLast.\n"
    )
    limits = Limits(max_unpacked_bytes=0, conversion_megabytes=0, conversion_seconds=0, word_comments=False)
    read = read_file(".mdx", text.encode(), limits)
    shown = "```js\n\nimport a from 'b';\n{/* shown */}\n```"
    sentence = "import the part from a box, and export it."
    assert read.title == "Valve"
    assert [read.text[b.start : b.end].strip() for b in read.blocks] == ["# Open it", sentence, shown, "Last."]


def test_what_no_bracket_closes_in_mdx_stays() -> None:
    limits = Limits(max_unpacked_bytes=0, conversion_megabytes=0, conversion_seconds=0, word_comments=False)
    assert "Last." in read_file(".mdx", b"export const a = {\n  b: 1,\n\nLast.\n", limits).text
