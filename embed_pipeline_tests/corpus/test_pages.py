from __future__ import annotations

import pytest

from embed_pipeline.corpus.pages import read_html


def _kept(body: str, head: str = "") -> str:
    return read_html(f"<html><head>{head}</head><body>{body}</body></html>").text


def test_html_becomes_markdown_without_its_furniture() -> None:
    read = read_html(
        "<html><head><title>The\n page</title><style>p {}</style></head><body><nav>Home</nav>"
        "<h1>Setup<a class='headerlink' href='#s'>¶</a></h1><p>Press <b>start</b>.</p><script>alert(1)</script>"
        "<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2|3</td></tr></table>"
        "<pre><code class='language-sh'># run\nmake</code></pre><ul><li>x<ul><li>y</li></ul></li></ul>"
        "<footer>imprint</footer><!-- gone --></body></html>"
    )
    assert read.title == "Setup"
    assert [(b.kind, read.text[b.start : b.end]) for b in read.blocks] == [
        ("heading", "# Setup\n"),
        ("paragraph", "Press **start**.\n"),
        ("table", "| k | v |\n| --- | --- |\n| 1 | 2\\|3 |\n"),
        ("code", "```sh\n# run\nmake\n```\n"),
        ("list", "- x\n  - y\n"),
    ]


@pytest.mark.parametrize(
    ("page", "title"),
    [
        ("<title>Page – Docs</title><main><article><header><h1>Guide</h1></header><p>x</p></article></main>", "Guide"),
        ("<title>Page</title><header id=title-block-header><h1>Pandoc's</h1></header><p>x</p>", "Pandoc's"),
        ("<title>Page</title><header><h1>Site</h1></header><h1>Page's own</h1><p>x</p>", "Page's own"),
        ("<title>The page</title><h2>Part</h2><p>x</p>", "The page"),
        ("<h2>Part</h2><p>x</p>", "Part"),
        ("<title>Only a title</title><p>x</p>", "Only a title"),
        ("<svg><title>Logo</title></svg><p>x</p>", ""),
        ("<h1>Guide<a class='hash-link' href='#x'>\u200b</a></h1>", "Guide"),
        ("<h1><a class='anchor' href='#x'>#</a>Guide</h1>", "Guide"),
        ("<h1><a href='#x'>#</a> Guide <a href='#x'>¶</a></h1>", "Guide"),
        ("<h1><code>#root</code></h1><p>x</p>", "#root"),
        ("<h1>Learn C#</h1><p>x</p>", "Learn C#"),
        ("<h1>§ 12 Liability</h1><p>x</p>", "§ 12 Liability"),
        ("<p>x", ""),
    ],
)
def test_the_title_is_the_pages_own(page: str, title: str) -> None:
    assert read_html(page).title == title


def test_notes_in_an_article_stay_and_menus_beside_it_go() -> None:
    kept = _kept(
        "<aside><a href=a>One</a> <a href=b>Two</a></aside><main><h1>T</h1><aside class=caution><p>Never open it."
        "</p></aside><p>Text.</p></main><aside>Related pages</aside>"
    )
    assert "Never open it." in kept
    assert "One" not in kept
    assert "Related" not in kept
    assert "Mind the cap." in _kept("<h1>T</h1><p>x</p><aside>Mind the cap.</aside>")


def test_old_pages_without_end_tags_are_read_as_browsers_do() -> None:
    read = read_html("<h1>T</h1><p>one<p>two<ul><li>a<li>b</ul><table><tr><td>1<td>2<tr><td>3<td>4</table>")
    assert [b.kind for b in read.blocks] == ["heading", "paragraph", "paragraph", "list", "table"]


def test_blocks_in_odd_places_and_text_between_blocks_are_kept() -> None:
    kept = _kept("loose <em>text</em><a name=x><h2>Two</h2><p>two</p></a><my-box><p>in a box</p></my-box>end")
    assert kept == "loose *text*\n\n## Two\n\ntwo\n\nin a box\n\nend\n"


def test_pictures_in_addresses_go_and_what_is_said_about_them_stays() -> None:
    kept = _kept("<p>a <img alt='the valve' src='data:image/png;base64,AAAA'> <a href='data:x/y,z'>b</a></p>")
    assert kept == "a the valve b\n"
    assert _kept(f"<p>图片data:image/png;base64,{'iVBOR/' * 40}。然后关闭阀门。</p>") == "图片。然后关闭阀门。\n"


def test_text_that_looks_like_a_heading_is_none() -> None:
    read = read_html("<h1>T</h1><p># 5 is a number</p><p>Text<br>===</p>")
    assert [b.text for b in read.blocks if b.kind == "heading"] == ["T"]


def test_letters_written_as_surrogates_are_one() -> None:
    assert _kept("<p>&#55357;&#56842; &#55357; done</p>") == "\U0001f60a \ufffd done\n"


def test_a_table_that_lays_out_a_page_is_the_page() -> None:
    read = read_html("<table><tr><td><h1>T</h1><p>text</p></td><td><table><tr><td>a<td>b</table></td></tr></table>")
    assert [b.kind for b in read.blocks] == ["heading", "paragraph", "table"]


@pytest.mark.slow
@pytest.mark.parametrize("opening", ["<div>", "<p><b>", "<ul><li>", "<table><tr><td>", "<blockquote>", "<my-x>"])
def test_however_deep_the_text_is_read(opening: str) -> None:
    assert "x marks it" in read_html("<h1>T</h1>" + opening * 3000 + "x marks it").text


@pytest.mark.parametrize(
    "code",
    [
        "<pre>make\n# then\nrun</pre>",
        "<pre><code><span class=token-line>make<br></span><span># then<br></span><span>run<br></span></code></pre>",
        "<pre><div class=ec><div>make</div></div><div class=ec><div># then\n</div></div><div class=ec>run</div></pre>",
        "<table><tr><td class=linenos><pre>1\n2\n3</pre></td><td><pre>make\n# then\nrun</pre></td></tr></table>",
        "<pre><i class=lineno>1 </i>make\n<i class=lineno>2 </i># then\n<i class=lineno>3 </i>run</pre>",
    ],
)
def test_lines_of_code_stay_lines_without_their_numbers(code: str) -> None:
    read = read_html(f"<main><h1>T</h1><p>Text before it.</p>{code}</main>")
    assert read.text == "# T\n\nText before it.\n\n```\nmake\n# then\nrun\n```\n"


def test_what_a_page_shows_beside_its_text_goes() -> None:
    kept = _kept(
        "<div id=mw-page-base>Jump to content</div><div role=main><h1>Pump</h1><div id=toc class=toc><h2>Contents</h2>"
        "<ul><li><a href=#a>History</a></li></ul></div><p>It moves fluids.</p><ul role=tablist><li>npm</li></ul>"
        "<clipboard-copy>copy</clipboard-copy><select><option>en</option></select><div class=toc><p>Not a list of "
        "links, but text.</p></div></div><div id=mw-navigation><h2>Navigation menu</h2></div>"
    )
    assert kept == "# Pump\n\nIt moves fluids.\n\nNot a list of links, but text.\n"
    around = _kept(
        "<div><h1>T</h1><p>Long text that stands before the main part of it all.</p></div><main><h1>x</h1></main>"
    )
    assert "Long text" in around


def test_sections_of_xhtml_are_text() -> None:
    page = '<?xml version="1.0"?><html><body><h1>T</h1><p>A<![CDATA[ < ]]>B</p><script>//<![CDATA[\nx<1//]]></script>'
    assert read_html(f"{page}</body></html>").text == "# T\n\nA < B\n"


def test_headings_in_lists_are_headings_and_paragraphs_in_headings_their_text() -> None:
    steps = "<ol><li><h3>One</h3><p>Do it.</p></li><li><h3><p>Two</p></h3>x</li></ol>"
    read = read_html(f"<h1>T</h1>{steps}<blockquote><h2>Q</h2></blockquote>")
    assert [(b.level, b.text) for b in read.blocks if b.kind == "heading"] == [(1, "T"), (3, "One"), (3, "Two")]
    assert "1. ### One\n\n   Do it.\n" in read.text
    assert read_html("<h3 align=center>\n<p>Run it\n</h3><p>x</p>").text == "### Run it\n\nx\n"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            "<table><tr><th>part<th>bar</tr><tr><td rowspan=2>A<td>1</tr><tr><td>2</td></tr></table>",
            "| part | bar |\n| --- | --- |\n| A | 1 |\n| A | 2 |\n",
        ),
        ("<div role=heading aria-level=3>Part</div><p>x</p>", "### Part\n\nx\n"),
        ("<p class=MsoTitle>Handbook</p><p class=MsoNormal>x</p>", "# Handbook\n\nx\n"),
        ("<h1><img src=a.png alt='The kit'></h1><p>x</p>", "# The kit\n\nx\n"),
        (
            "<p>It is <math><semantics><mrow><mi>E</mi></mrow><annotation>E=mc^2</annotation></semantics></math>.</p>",
            "It is E=mc^2.\n",
        ),
        ("<div>One.<br><br>Two,<br>on.</div>", "One.\n\nTwo,\non.\n"),
    ],
    ids=["rowspan", "role", "Word", "picture", "formula", "breaks"],
)  # fmt: skip
def test_what_pages_mean_by_other_elements(body: str, text: str) -> None:
    assert _kept(body) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<h2 id=c><a class=header-anchor href=#c><span>Cold start</span></a></h2>", "## Cold start\n"),
        ("<p>See <a class=anchor href=#y>section five</a> for details.", "See section five for details.\n"),
        ("<h2>A<a class=headerlink href=#a>\U0001f517</a></h2>", "## A\n"),
        ("<h2>A<a class=anchor href=#a><svg><title>Chain</title></svg></a></h2>", "## A\n"),
        ("<h2>A<a class=hash-link href=#a>Link to this heading</a></h2>", "## A\n"),
    ],
    ids=["heading", "sentence", "sign", "icon", "words"],
)
def test_a_link_to_a_place_goes_only_where_it_says_nothing(body: str, text: str) -> None:
    assert _kept(body) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<h2><button>How do I reset my badge?</button></h2><div>Ask.</div>", "## How do I reset my badge?\n\nAsk.\n"),
        ("<p>press <button>Start</button> and wait</p>", "press Start and wait\n"),
        ("<ul><li>Click <b><button>Stop</button></b></li></ul>", "- Click **Stop**\n"),
        ("<div>x <button>Copy</button></div><button>Menu</button>", "x\n"),
        ("<h3>Install <button>Copy link</button></h3><pre>make<button>Copy</button></pre>",
         "### Install\n\n```\nmake\n```\n"),
        ("<p><button>Share</button> <button>Print</button></p><nav>a <button>b</button> c</nav>x", "x\n"),
    ],
    ids=["heading", "sentence", "last", "lone", "neighbour", "row"],
)  # fmt: skip
def test_a_button_is_text_where_a_heading_or_a_sentence_names_it(body: str, text: str) -> None:
    assert _kept(body) == text


def test_a_form_around_the_page_is_text_and_one_of_fields_is_none() -> None:
    page = "<div><h3>Pump</h3><div>text</div><ul><li>x</li></ul></div>"
    assert _kept(f"<form id=aspnetForm><input type=text>{page}</form>") == "### Pump\n\ntext\n\n- x\n"
    assert _kept(f"<div><form><input type=hidden>{page}</form></div>") == "### Pump\n\ntext\n\n- x\n"
    long = "The pump moves water. " * 5
    assert long.strip() in _kept(f"<div><form><input type=search><div>{long}</div></form></div>")
    fields = "<form><h3>Newsletter</h3><label>Mail</label><input type=text><button>Go</button></form>"
    assert _kept(f"<div>Text.</div><div>{fields}</div>") == "Text.\n"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("10<sup>6</sup> Pa, 2<sup>n+1</sup>, <i>x</i><sup>-3</sup>", "10^6 Pa, 2^(n+1), *x*^-3\n"),
        ("the 1<sup>st</sup> Kit<sup>TM</sup>", "the 1st KitTM\n"),
        ("so<sup><a href=#n>1</a></sup> and<a href=#n><sup>2</sup></a> on<sup>[3]</sup>", "so1 and2 on[3]\n"),
        ("<h2>10<sup>6</sup></h2>", "## 10^6\n"),
        ("<table><tr><td>10<sup>6</sup></td><td>Pa</td></tr></table>", "| 10^6 | Pa |\n| --- | --- |\n"),
        ("is <math><mfrac><mn>1</mn> <mn>2</mn></mfrac></math> of it", "is 1/2 of it\n"),
        ("<math><mfrac><mrow><mi>a</mi><mo>+</mo><msup><mi>b</mi><mn>2</mn></msup></mrow><mi>c</mi></mfrac></math>",
         "(a+b^2)/c\n"),
    ],
    ids=["power", "ending", "footnote", "heading", "cell", "fraction", "nested"],
)  # fmt: skip
def test_powers_and_fractions_keep_their_sense(body: str, text: str) -> None:
    assert _kept(body) == text


@pytest.mark.parametrize(
    "ruby",
    [
        "<ruby>漢字<rt>かんじ</rt></ruby>",
        "<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rp>(</rp><rt>じ</rt><rp>)</rp></ruby>",
        "<ruby><rb>漢<rb>字<rt>かん<rt>じ</ruby>",
    ],
)
def test_of_ruby_the_text_is_kept_and_the_readings_are_not(ruby: str) -> None:
    assert _kept(f"<h2>{ruby}</h2><p>この{ruby}を読む") == "## 漢字\n\nこの漢字を読む\n"
    assert "字" in _kept("<ruby>漢<rt>かん<rb>字<rt>じ</ruby>")


@pytest.mark.parametrize(
    "table",
    [
        "<table border=1><td>Pump A<td>5 bar<tr><td>Pump B<td>6 bar</table>",
        "<table><tbody><td>Pump A</td> <td>5 bar</td><tr><td>Pump B<td>6 bar</tr></tbody></table>",
        "<table><th>Pump A<th>5 bar<tr><td>Pump B<td>6 bar</table>",
    ],
)
def test_cells_without_a_row_are_a_row(table: str) -> None:
    assert _kept(table) == "| Pump A | 5 bar |\n| --- | --- |\n| Pump B | 6 bar |\n"


def test_formulas_in_scripts_are_text_and_other_scripts_are_not() -> None:
    page = '<p>The energy is <script type="math/tex; mode=display">E = mc^2</script>, here.</p><script>let x</script>'
    assert _kept(page) == "The energy is E = mc^2, here.\n"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('<ol id="breadcrumbs"><li><a href="a">Space</a></li><li><a href="b">Pages</a></li></ol><p>Text.</p>', "Text."),
        ("<div hidden>Loading data</div><p>Text.</p>", "Text."),
        ('<p>Text<span style="color: red; display:none"> not seen</span>.</p>', "Text."),
        (f'<div role="tabpanel" hidden><p>{"word " * 12}</p></div>', "word " * 11 + "word"),
    ],
)
def test_what_a_page_hides_goes_but_for_what_a_click_shows(body: str, text: str) -> None:
    assert read_html(f"<body>{body}</body>").text == f"{text}\n"


def test_what_confluence_writes_around_a_page_is_left_out() -> None:
    body = (
        '<div id="page"><h1>Pump</h1><div class="page-metadata">Created by <span>A</span>, last modified today</div>'
        '<p>It <span aria-hidden="true">*</span>opens.</p></div>'
        '<div id="footer"><section><p>Document generated by Confluence</p></section></div>'
    )
    assert _kept(body) == "# Pump\n\nIt opens.\n"
    assert _kept('<h2><span aria-hidden="true">Named</span></h2><p>x</p>') == "## Named\n\nx\n"


def test_the_title_of_an_office_program_is_a_heading_where_it_is_the_first_paragraph() -> None:
    title = '<p class="c0 title"><span>Pump guide</span></p>'
    assert _kept(f"{title}<h1>Setup</h1><p>x</p>") == "# Pump guide\n\n# Setup\n\nx\n"
    assert _kept(f"<h1>Setup</h1>{title}<p>x</p>") == "# Setup\n\nPump guide\n\nx\n"
    assert _kept(f"{title}<p>x</p>{title}") == "Pump guide\n\nx\n\nPump guide\n"


def test_what_a_tab_shows_is_read_and_labels_of_tabs_are_not() -> None:
    tabs = '<ul role="tablist"><li role="tab">npm</li></ul><div role="tabpanel" hidden><p>Run yarn.</p></div>'
    assert _kept(f"<p>x</p>{tabs}") == "x\n\nRun yarn.\n"
    labels = '<div class="tabbed-labels"><label>Linux</label><label>Mac</label></div><div><p>Run x.</p></div>'
    assert _kept(labels) == "Run x.\n"
    assert _kept('<p>x</p><div hidden="until-found"><p>Answer.</p></div>') == "x\n\nAnswer.\n"


_ICON = '<td class="icon"><i class="fa" title="Note"></i></td>'


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (
            '<dl><dt>open(<a href="s"><span class="viewcode-link">[source]</span></a>)</dt><dd>Opens.</dd></dl>',
            "open()",
        ),
        ('<p>x</p><div class="printfooter">Retrieved from</div><div class="catlinks">Categories: x</div>', "x\n"),
        (f'<div class="admonitionblock"><table><tr>{_ICON}<td>Careful.</td></tr></table></div>', "Careful.\n"),
    ],
    ids=["sphinx", "mediawiki", "asciidoctor"],
)
def test_what_programs_add_to_a_page_is_left_out(body: str, kept: str) -> None:
    found = _kept(body)
    assert found.startswith(kept)
    assert not any(word in found for word in ("source", "Retrieved", "Categories", "|"))
