"""CSV and TSV: quotes that are text, what Excel writes, and rows that are no rows."""

from __future__ import annotations

import pytest

from embed_pipeline.delimited import delimited_rows, list_in_cell


def cells(content: str) -> list[list[str | None]]:
    """The cells of every row."""
    return [list(row.values()) for _, row in delimited_rows(content.encode())]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_quotes_in_tab_separated_rows_that_merge_none_are_text(end):
    lines = ["a\tb", 'what\t"Open it, he said', "how?\tClose it", 'who\tends with"', '"x" is?\t"never', "z\ty", ""]
    assert cells(end.join(lines)) == [
        ["what", '"Open it, he said'],
        ["how?", "Close it"],
        ["who", 'ends with"'],
        ['"x" is?', '"never'],
        ["z", "y"],
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('"a ""b"""\tc', ['a "b"', "c"]),
        ('"a\tb"\tc', ["a\tb", "c"]),
        ('a\t"first\nsecond"', ["a", "first\nsecond"]),
        ('"first\n\nsecond"\tc', ["first\n\nsecond", "c"]),
        ('"a\nb"\t"c\nd"', ["a\nb", "c\nd"]),
        ('""\tc', [None, "c"]),
        ("a", ["a", None]),
        ('5" pipe\tc', ['5" pipe', "c"]),
        ("\tc", [None, "c"]),
    ],
)
def test_quoted_cells_of_tab_separated_rows(row, expected):
    assert cells(f"x\ty\n{row}\nlast\trow\n") == [expected, ["last", "row"]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_excel_writes_is_read(encoding):
    content = "frage\tantwort\nwie?\tgr\u00fcn\n".encode(encoding)
    assert list(delimited_rows(content)) == [(1, {"frage": "wie?", "antwort": "gr\u00fcn"})]


@pytest.mark.parametrize(
    ("said", "separator"), [("sep=;\r\n", ";"), ('"sep=|"\n', "|"), ("SEP=\t\n", "\t"), ("sep=,\n", ",")]
)
def test_the_line_that_tells_excel_the_separator_is_no_header(said, separator):
    text = f"{said}q{separator}a; b, c\n1{separator}2\n"
    if separator in ";,":
        text = text.replace("a; b, c", "a")
    assert [list(row.values()) for _, row in delimited_rows(text.encode())] == [["1", "2"]]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_of_one_name_are_one_list(separator):
    text = "q,pos,pos,n\na,b,c,d\na,b,,d\na,,,d\n".replace(",", separator)
    assert [row["pos"] for _, row in delimited_rows(text.encode())] == [["b", "c"], "b", None]


def test_separators_in_a_quoted_column_name_are_no_separators():
    assert cells('"a",b,"note; c; d; e"\n1,2,3\n') == [["1", "2", "3"]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,b\n1,2\n1,2,3\n", "row 2: 3 cells under 2 columns; put quotes around a cell that holds ','"),
        (b"a\tb\n1\t2\t3\n", "row 1: 3 cells under 2 columns; put quotes around a cell that holds a tab"),
        ("a,b\n1,\u2019\n".encode("cp1252"), "line 2: not UTF-8 at byte 6; save the file as UTF-8"),
        (b'a,b\n1,"2\n', "not a readable CSV file: "),
    ],
)
def test_what_is_malformed_is_named(content, problem):
    with pytest.raises(ValueError, match=problem):
        list(delimited_rows(content))


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("['a', 'b']", ["a", "b"]),
        ("""['it\\'s' "b's"\n 'c, d']""", ["it's", "b's", "c, d"]),
        ('["a \\"b\\"", "\\ud83d"]', ['a "b"', "\ufffd"]),
        ("[1, 2]", [1, 2]),
        ("[]", []),
        ("[see the manual]", None),
        ("['a'] and ['b']", None),
        ("['\\x']", None),
        ("a, b", None),
    ],
)
def test_a_cell_may_hold_a_list_as_pandas_numpy_and_json_write_it(cell, found):
    assert list_in_cell(cell) == found
