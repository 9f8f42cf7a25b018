from __future__ import annotations

from itertools import pairwise

import pytest

from embed_pipeline.text.markdown import markdown_blocks, plain_inline, replace_headings, seen_markdown


def _headings(text: str) -> list[tuple[int, str]]:
    return [(block.level, block.text) for block in markdown_blocks(text) if block.kind == "heading"]


def _parts(text: str) -> list[tuple[str, str]]:
    return [(block.kind, text[block.start : block.end]) for block in markdown_blocks(text)]


def test_atx_headings() -> None:
    text = "# One\ntext\n## Two ##\n#NoSpace\n   ### Three\n    # code\n####### seven\n#\n"
    assert _headings(text) == [(1, "One"), (2, "Two"), (3, "Three")]


def test_underlined_headings_are_those_of_commonmark() -> None:
    text = "Title\n=====\n\nPart\n-\n\nKey: value\n---\n\nSmall\n~~~~~\n~~~~~\n\nA rule\n\n***\n"
    assert _headings(text) == [(1, "Title"), (2, "Part"), (2, "Key: value")]


@pytest.mark.parametrize("line", ["***", "___", ":::", "^^^", '"""', "+++", "...", "~~~"])
def test_a_line_of_signs_below_a_paragraph_makes_no_heading(line: str) -> None:
    assert _headings(f"# Top\n\nThe last sentence of a box.\n{line}\n\nMore.\n") == [(1, "Top")]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("The `open()` [call](http://x.y) and *its* ![icon](i.png)", "The open() call and its icon"),
        ("Props {#props}", "Props"),
        ("Props {#props .wide}", "Props"),
        ("Props {-}", "Props"),
        ("Sets {1, 2}", "Sets {1, 2}"),
        (r'Suspended versioning\-buckets<a name="x"></a>', "Suspended versioning-buckets"),
        ("AT&amp;T &lt;3", "AT&T <3"),
        ("docu\u00admen\u200btation con\ufb01g", "documentation config"),
        ("a" + " " * 20_000 + "b", "a b"),
        ("#", "#"),
    ],
)
def test_a_heading_is_what_its_readers_see(content: str, shown: str) -> None:
    assert plain_inline(content) == shown
    assert _headings(f"# {content}\n") == ([(1, shown)] if shown != "#" else [])


def test_a_heading_may_be_a_link_defined_elsewhere() -> None:
    assert _headings("## [1.0.0] - today\n\ntext\n\n[1.0.0]: https://example.invalid\n") == [(2, "1.0.0 - today")]


@pytest.mark.parametrize(
    "text",
    [
        "```python\n# a comment\n```\n",
        "~~~\nTitle\n=====\n~~~\n",
        "````\n```\n# inside\n```\n````\n",
        "| a | b |\n|---|---|\n",
        "- item\n---\n",
        "text\n\n---\n\nmore\n",
        "    indented\n    ========\n",
        "> # quoted\n> text\n",
        "plain text\n",
        "",
    ],
)
def test_what_is_no_heading(text: str) -> None:
    assert _headings(text) == []


def test_an_unclosed_fence_hides_the_rest() -> None:
    assert _headings("# One\n```\n# Two\n") == [(1, "One")]


def test_every_part_is_a_block_with_its_place() -> None:
    text = (
        "# Head\n\nA paragraph\nof two lines.\n\n- a\n- b\n\n  ```py\n  # c\n  ```\n\n  after\n- c\n\n"
        "> quoted\n\n| a |\n|---|\n| 1 |\n\n    code\n\n[x]: /u\n\n::: tip\nBoxed.\n\n## In\n:::\n"
    )
    assert _parts(text) == [
        ("heading", "# Head\n"),
        ("paragraph", "A paragraph\nof two lines.\n"),
        ("list", "- a\n- b\n"),
        ("code", "  ```py\n  # c\n  ```\n"),
        ("list", "  after\n- c\n"),
        ("quote", "> quoted\n"),
        ("table", "| a |\n|---|\n| 1 |\n"),
        ("code", "    code\n"),
        ("metadata", "[x]: /u\n"),
        ("paragraph", "Boxed.\n"),
        ("heading", "## In\n"),
    ]


def test_a_long_text_is_parsed_in_pieces_as_in_one() -> None:
    section = "## Part\n\nText of it.\n\n- a\n\n  # In a list\n\n- b\n\n```\n# code\n\n# more\n```\n\n"
    text = section * 1500 + "```\n" + "# code\n" * 9000
    blocks = markdown_blocks(text)
    assert [block.text for block in blocks if block.kind == "heading"] == ["Part", "In a list"] * 1500
    assert text[blocks[-1].start :].startswith("```\n# code")
    assert blocks[-1].end == len(text)
    assert all(before.end <= after.start for before, after in pairwise(blocks))


def test_what_no_reader_sees_is_left_out() -> None:
    badge = "[![build](https://x.invalid/b.svg)](https://ci.invalid)"
    unseen = ["<!-- comment -->\n<p align='center'><img src='logo.svg'></p>\n", f"{badge} {badge}\n", "![](a.png)\n"]
    unseen += ["<style>\n.a { color: red }\n</style>\n", "<script>let a = 1 < 2</script>\n"]
    seen = ["![The regulator seen from the left](r.png)\n", "<b>Bold</b> text\n", "Text with ![a](b.png) in it.\n"]
    text = "\n".join([*unseen, *seen])
    kept = "\n".join(seen)
    assert seen_markdown(text) == (kept, markdown_blocks(kept))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{% hint style="info" %}\nKeep it dry.\n{% endhint %}\n\nNext.\n', "Keep it dry.\n\nNext.\n"),
        ("{{< note >}}\nKeep it dry.\n{{< /note >}}\n", "Keep it dry.\n"),
        ('{{% tab "one" %}} {{% /tab %}}\n\nKeep it dry.\n', "\nKeep it dry.\n"),
        ('import Tabs from "@theme/Tabs";\nimport {A, B} from "./x"\n\nexport const a = 3;\n\nDry.\n', "\n\nDry.\n"),
        ('```js\nimport x from "y"\n{% raw %}\n```\n', '```js\nimport x from "y"\n{% raw %}\n```\n'),
        ('import duties are paid "here"\n', 'import duties are paid "here"\n'),
        ("Text {% inline %} stays.\n", "Text {% inline %} stays.\n"),
    ],
)
def test_what_tells_a_sites_generator_what_to_do_is_left_out(text: str, kept: str) -> None:
    assert seen_markdown(text)[0] == kept


def test_headings_are_replaced_by_their_words_or_by_nothing() -> None:
    text = "# The *top*\n\nOne.\n\nPart\n----\nTwo.\n"
    assert replace_headings(text, keep=True) == "The top\n\nOne.\n\nPart\nTwo.\n"
    assert replace_headings(text, keep=False) == "\n\nOne.\n\n\nTwo.\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_any_line_end_ends_a_line(end: str) -> None:
    text = end.join(["# One", "a", "b", "", "- c", "", "## Two", ""])
    assert [(kind, part.rstrip()) for kind, part in _parts(text)] == [
        ("heading", "# One"), ("paragraph", f"a{end}b"), ("list", "- c"), ("heading", "## Two"),
    ]  # fmt: skip
    badges = end.join(["![](a.png)", "", "Text.", ""])
    assert seen_markdown(badges)[0] == f"Text.{end}"


def test_text_after_a_style_sheet_on_its_line_is_seen() -> None:
    text = "<style>x{}</style> Text after\n"
    assert seen_markdown(text) == (text, markdown_blocks(text))


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("{{% notice tip %}}Close it.{{% /notice %}}", "Close it."),
        ('{{< tabs "x" >}}{{< tab "Linux" >}}Run it.{{< /tab >}}{{< /tabs >}}', "Run it."),
        ('{% hint style="info" %}Close it.{% endhint %}', "Close it."),
        ('See {{< ref "page.md" >}} and {{ name }} there.', 'See {{< ref "page.md" >}} and {{ name }} there.'),
        ("Write `{{< x >}}a{{< /x >}}` there.", "Write `{{< x >}}a{{< /x >}}` there."),
    ],
)
def test_tags_around_a_text_on_its_line_are_no_text(line: str, kept: str) -> None:
    assert seen_markdown(f"First.\n\n{line}\n")[0] == f"First.\n\n{kept}\n"
