from __future__ import annotations

import json

import pytest

from embed_pipeline.corpus.rows import NoRowsError, read_csv, read_json_lines


def test_rows_are_sections_named_by_their_title() -> None:
    text = "id;title;pressure\n1;Relief valve;3 bar\n2;;4 bar\n"
    assert read_csv(text).text == "## Relief valve\n\nid: 1\npressure: 3 bar\n\n## 2\n\npressure: 4 bar\n"
    lines = '{"title": "Pump", "bar": 2, "parts": ["seal", "shaft"], "note": null}\n\n{"bar": 5}\n'
    read = read_json_lines(lines)
    assert read.text == "## Pump\n\nbar: 2\nparts: seal, shaft\n\n## Row 2\n\nbar: 5\n"
    assert [(b.kind, b.level, b.text) for b in read.blocks if b.kind == "heading"] == [
        ("heading", 2, "Pump"),
        ("heading", 2, "Row 2"),
    ]
    assert read.title == ""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('name,text\nvalve,"opens, then\ncloses"\n', "## valve\n\ntext: opens, then\ncloses\n"),
        (
            'name,size,note\nPipe,"3"" long, steel",none\nRod,"4"" long, iron",none\n',
            '## Pipe\n\nsize: 3" long, steel\nnote: none\n\n## Rod\n\nsize: 4" long, iron\nnote: none\n',
        ),
        ("sep=;\nname;bar\nvalve;3,5\n", "## valve\n\nbar: 3,5\n"),
        ("name,note,note\nvalve,slow,leaks\n", "## valve\n\nnote: slow\nnote: leaks\n"),
        ("note\nOpens; closes, later\nLeaks, a little\n",
         "## Row 1\n\nnote: Opens; closes, later\n\n## Row 2\n\nnote: Leaks, a little\n"),
        ("name,bar\nvalve,3,extra,more\npump\n", "## valve\n\nbar: 3\nmore: extra, more\n\n## pump\n"),
        ('name, text\nvalve, "a, b"\n', "## valve\n\ntext: a, b\n"),
        ("name\tbar\nvalve\t3\n", "## valve\n\nbar: 3\n"),
        ("name,it's\nvalve's,o'clock\n", "## valve's\n\nit's: o'clock\n"),
        ("name,\nvalve,3\n", "## valve\n\ncolumn 2: 3\n"),
        ("#,name,bar\n1,valve,3\n", "## valve\n\n#: 1\nbar: 3\n"),
        ("name,text\nvalve,<p>It <b>opens</b>.</p><h2>Late</h2><p>x</p>\n",
         "## valve\n\ntext:\n\nIt **opens**.\n\n## Late\n\nx\n"),
        ('name,text,note\nvalve,"Say \\"hi\\", go",x\nrod,"C:\\new\\",\ncap,"\\"c\\"","d\\\\"\n',
         '## valve\n\ntext: Say "hi", go\nnote: x\n\n## rod\n\ntext: C:\\new\\\n\n## cap\n\ntext: "c"\nnote: d\\\n'),
        ('text\n"He said \\"hi\\",\nand left"\n', '## Row 1\n\ntext: He said "hi",\nand left\n'),
        (",,\n\n,,\nname,bar,note\nvalve,3,x\n,,\npump,2,y\n",
         "## valve\n\nbar: 3\nnote: x\n\n## pump\n\nbar: 2\nnote: y\n"),
        ("sep=;\n ;\nname;bar;note\nvalve;3,5;x\n", "## valve\n\nbar: 3,5\nnote: x\n"),
    ],
    ids=["lines", "inches", "sep", "twice", "one column", "ragged", "space", "tab", "apostrophe", "unnamed", "number",
         "html", "backslashes", "backslashes in one column", "empty cells", "empty cells after sep"],
)  # fmt: skip
def test_cells_keep_what_is_in_them(text: str, kept: str) -> None:
    read = read_csv(text)
    assert (read.text, read.left_out) == (kept, ())


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_the_index_that_pandas_writes_is_no_text(name: str) -> None:
    text = f"{name},title,text\n0,Pump,It runs.\n1,Valve,It opens.\n"
    assert read_csv(text).text == "## Pump\n\ntext: It runs.\n\n## Valve\n\ntext: It opens.\n"
    assert "column 1: north" in read_csv(",title,text\nnorth,Pump,It runs.\n").text


def test_objects_that_no_line_end_parts_are_rows() -> None:
    found = read_json_lines('{"title": "Pump"}{"title": "Valve"} {"title": "Seal", "text": "Dry."}\n{"title": "Cap"}\n')
    assert [block.text for block in found.blocks if block.kind == "heading"] == ["Pump", "Valve", "Seal", "Cap"]
    assert not found.left_out
    indented = read_json_lines('  {"title": "Pump"}\n\t{"title": "Valve"} \n')
    assert [block.text for block in indented.blocks if block.kind == "heading"] == ["Pump", "Valve"]


def test_a_doubled_quote_late_in_the_file_and_a_long_cell_are_read() -> None:
    rows = "".join(f"{number},plain text of it\n" for number in range(6000))
    text = f'id,text\n{rows}9999,"He said ""open it"" and left."\n10000,"{"word " * 40_000}"\n'
    read = read_csv(text)
    assert '## 9999\n\ntext: He said "open it" and left.\n' in read.text
    assert read.text.count("word") == 40_000


def test_a_damaged_row_takes_no_other_along() -> None:
    read = read_csv('name,text\na,fine\nb,"never closed\nc,fine too\nd,"also, fine"\n')
    assert read.text == "## a\n\ntext: fine\n\n## c\n\ntext: fine too\n\n## d\n\ntext: also, fine\n"
    assert [part[:8] for part in read.left_out] == ["line 3: "]
    lines = read_json_lines('{"title": "A", "x": 1}\n[2]\n{"title": "B", "te\n{"title": "C", "x": 3}\n')
    assert [b.text for b in lines.blocks if b.kind == "heading"] == ["A", "C"]
    assert [part[:15] for part in lines.left_out] == ["line 2 is no JS", "line 3 is not J"]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ('1\t"Open it, now\tx\n2\tClosed\ty\n3\tat once"\tz\n',
         '## 1\n\ntext: "Open it, now\nnote: x\n\n## 2\n\ntext: Closed\nnote: y\n\n## 3\n\ntext: at once"\nnote: z\n'),
        ('1\t"Never closed\tx\n2\t3"\ty\n', '## 1\n\ntext: "Never closed\nnote: x\n\n## 2\n\ntext: 3"\nnote: y\n'),
        ('1\tfine\tx\n2\t"open\ty\n', '## 1\n\ntext: fine\nnote: x\n\n## 2\n\ntext: "open\nnote: y\n'),
        ('1\ta\t"Two\nlines"\n2\t"three\nmore\nlines"\tb\n',
         '## 1\n\ntext: a\nnote: Two\nlines\n\n## 2\n\ntext: three\nmore\nlines\nnote: b\n'),
    ],
    ids=["merging", "never closed", "at the end", "lines"],
)  # fmt: skip
def test_a_quote_between_tabs_is_text_where_it_would_merge_rows(rows: str, kept: str) -> None:
    read = read_csv(f"id\ttext\tnote\n{rows}")
    assert (read.text, read.left_out) == (kept, ())


def test_text_in_a_cell_ends_with_it() -> None:
    text = (
        '{"title": "A", "text": "# Inner\\n\\nRun:\\n```sh\\n# make\\nmake"}\n{"title": "B", '
        '"text": "Plain\\nlines."}\n'
        '{"title": "C", "text": "Intro\\n===\\n\\n## Deep"}\n'
    )
    headings = [(b.level, b.text) for b in read_json_lines(text).blocks if b.kind == "heading"]
    assert headings == [(2, "A"), (3, "Inner"), (2, "B"), (2, "C"), (3, "Intro"), (4, "Deep")]


def test_nested_values_are_their_texts() -> None:
    text = (
        '{"id": 7, "messages": [{"role": "user", "content": "How?\\nIt is stuck."}, {"role": "assistant", "content": '
        '"Turn it."}], "meta": {"tags": ["a", "b"], "deep": {"x": 1}}, "lone": "a \\ud83d b"}\n'
    )
    assert read_json_lines(text).text == (
        "## 7\n\nmessages: user: How?\nIt is stuck.\nassistant: Turn it.\nmeta: tags: a, b, deep: "
        "x: 1\nlone: a \ufffd b\n"
    )
    parts = '[{"type": "text", "text": "How?"}, {"type": "image_url", "image_url": {"url": "x"}}]'
    assert read_json_lines(f'{{"messages": [{{"role": "user", "content": {parts}}}]}}').text.endswith("user: How?\n")
    deep = '{"a": ' + "[" * 400 + "]" * 400 + "}"
    assert read_json_lines(f'{deep}\n{{"b": 1}}\n').text.endswith("b: 1\n")


def test_all_fields_of_messages_and_next_to_them_are_kept() -> None:
    turns = [
        {"role": "user", "name": "Ann", "title": "Boss", "content": [{"type": "text", "text": "Look:"}, "```\nx = 1"]},
        {"role": "assistant", "reasoning": "It is one.", "content": "It is\n\none."},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "stop"}]},
    ]
    calls = {"type": "tool_use", "name": "run"}
    row = {
        "system": "Be brief.",
        "messages": turns,
        "title": "T",
        "data": {"role": "user", "content": [calls], "id": 1},
    }
    assert read_json_lines(json.dumps(row)).text == (
        "## T\n\nsystem: Be brief.\nmessages: user:\n\nLook:\n\n```\nx = 1\n\nuser name: Ann\nuser title: Boss\n"
        "assistant: It is\n\none.\n\nassistant reasoning: It is one.\nassistant tool_calls: name: stop\n"
        "data: user: type: tool_use, name: run, user id: 1\n"
    )
    assert read_json_lines(json.dumps(turns[0])).text == (
        "## Boss\n\nrole: user\nname: Ann\ncontent:\n\nLook:\n\n```\nx = 1\n"
    )


def test_a_nul_that_json_escapes_is_dropped() -> None:
    assert read_json_lines('{"title": "A\\u0000", "text": "a\\u0000b"}\n').text == "## A\n\ntext: ab\n"


def test_an_array_is_its_elements() -> None:
    assert read_json_lines('[\n {"title": "a",\n  "x": 1},\n {"title": "b"}\n]\n').text == "## a\n\nx: 1\n\n## b\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [('{"a": \n', "line 1 is not JSON"), ("1\n", "line 1 is no JSON object"), ("[" * 100_000, "line 1 is not JSON")],
)
def test_a_file_without_any_row_is_refused(text: str, says: str) -> None:
    with pytest.raises(NoRowsError, match=says):
        read_json_lines(text)


def test_comments_before_the_rows_are_no_rows_and_are_named() -> None:
    read = read_csv("# exported on a Monday\nname;bar\nvalve;3,5\npump;2,5\n")
    assert read.text == "## valve\n\nbar: 3,5\n\n## pump\n\nbar: 2,5\n"
    assert read.left_out == ("line 1 is a comment",)


def test_any_line_end_in_a_value_ends_a_line() -> None:
    assert read_json_lines('{"title": "A", "text": "a\\rb\\n\\nc"}\n').text == "## A\n\ntext: a\nb\n\nc\n"
    read = read_json_lines('{"title": "A", "text": "a\\r\\n\\r\\nb\\r\\n- c"}\n')
    assert [block.kind for block in read.blocks][2:] == ["paragraph", "paragraph", "list"]
    assert "\r" not in read.text


def test_a_title_that_is_too_long_for_a_heading_stays_in_its_row() -> None:
    question = f"How do I {'really ' * 25}replace the seal?"
    text = read_csv(f"question,answer\n{question},Turn it.\n").text
    assert text == f"## {question[:120]}\n\nquestion: {question}\nanswer: Turn it.\n"


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("<b>Foo</b> &amp; Bar", "Foo & Bar"),
        ('<p class="x">Foo<br/>Bar H<sub>2</sub>O</p>', "Foo Bar H2O"),
        ("List<String> in a <b and c> d, a&lt;b&gt;", "List<String> in a <b and c> d, a<b>"),
        ("?a=1&copy=2 *not* AT&T;", "?a=1&copy=2 *not* AT&T;"),
        ("Foo<br>Bar <br> or <b>?", "Foo Bar <br> or <b>?"),
        ("<b></b>", "Row 1"),
    ],
)
def test_a_title_is_shown_without_its_html(written: str, title: str) -> None:
    read = read_json_lines(json.dumps({"title": written, "bar": 3}))
    assert (read.blocks[0].text, read.text) == (title, f"## {title}\n\nbar: 3\n")
