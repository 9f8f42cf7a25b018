"""Text of documents is text: in Markdown, in a terminal, and in a real browser on Dagster's page and in the report."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from embed_pipeline.escaping import TerminalFormatter, as_markdown, for_terminal
from embed_pipeline.orchestration.presentation import bars, picture, readable_sample, shown_list, shown_table
from embed_pipeline.terminal import err, out

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MUTATION = (
    'mutation{addDynamicPartition(partitionsDefName:"document_batch",partitionKey:"pwned",repositorySelector:'
    '{repositoryName:"__repository__",repositoryLocationName:"hostile.py"}){__typename}}'
)
HOSTILE = [
    f"![p](/graphql?query={MUTATION})",
    "# ![t](http://127.0.0.1:9/title.png) Invoice, [pay here](http://127.0.0.1:9/pay)",
    "<img src=x onerror=alert(1)><script>alert(2)</script><svg onload=alert(3)>",
    "visit http://evil.example/a?b=c or www.evil.example or mail a@evil.example",
    "<http://evil.example> [x]: http://evil.example [y](javascript:alert(1))",
    "__future__ and *raised* and ~~gone~~ `code` ``two`` ```three",
    "`ends with one`",
    "a | b \\| c \\\\| d | e\\",
    "``` | `` | ` | \\` | \\",
    "| --- | --- |",
    "line\nbreak\r\n\r\n# heading\n\n> quote\n\n    code\n- list",
    "&lt;b&gt; &#33; &amp;",
    "$x^2$ :smile: {{ 7*7 }} {% raw %}",
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("in_table", [False, True])
def test_nothing_in_a_text_is_markdown(text, in_table):
    shown = as_markdown(text, in_table=in_table)
    source = f"| head | tail |\n|---|---|\n| {shown} | end |" if in_table else f"- {shown}\n- end"
    page = MarkdownIt("commonmark", {"linkify": False}).enable("table").render(source)
    tags = {"table", "thead", "tbody", "tr", "th", "td"} if in_table else {"ul", "li"}
    assert set(re.findall(r"<(\w+)", page)) <= {*tags, "code"}
    cells = re.findall(r"<(?:td|li)>(.*?)</(?:td|li)>", page, re.DOTALL)
    plain = [re.sub(r"</?code>", "", cell) for cell in cells]
    unescaped = [cell.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"') for cell in plain]
    read = [cell.replace("&amp;", "&").replace("\u200b", "") for cell in unescaped]
    assert read == [" ".join(text.split()), "end"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x9b31m\x7f", r"\x1b[2J\x9b31m\x7f"),
        ("a\tb\nc", "a\tb\nc"),
        ("a\rb\x00", r"a\rb\x00"),
        ("user\u202egpj.exe", r"user\u202egpj.exe"),
        ("Ünïcödé 漢字 🙂 \u0915\u094d\u200d\u0937", "Ünïcödé 漢字 🙂 \u0915\u094d\u200d\u0937"),
        ("half \ud83d", r"half \ud83d"),
    ],
)
def test_a_terminal_is_told_nothing(text, shown):
    assert for_terminal(text) == shown
    assert as_markdown(text).strip("`") == for_terminal(" ".join(text.split()))


def test_what_is_logged_is_escaped_too():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TerminalFormatter("%(message)s"))
    handler.emit(logging.makeLogRecord({"msg": "read %s", "args": ("\x1b]0;x\x07.md",)}))
    handler.emit(logging.makeLogRecord({"msg": "read %s", "args": ("a\nerror: all is lost",)}))
    assert stream.getvalue() == "read \\x1b]0;x\\x07.md\nread a\\nerror: all is lost\n"


@pytest.mark.parametrize(
    "text", ["/srv/data[/prod]", "/srv/data [old]", "[red]x", "[link=http://evil.example]y[/link]", ":smile:"]
)
@pytest.mark.parametrize("console", [out, err])
def test_brackets_in_a_path_are_brackets(text, console):
    stream = io.StringIO()
    Console(file=stream, **{name: getattr(console, f"_{name}") for name in ("markup", "highlight", "emoji")}).print(
        text
    )
    assert stream.getvalue() == f"{text}\n"


def test_cells_are_text_in_every_kind_of_metadata():
    frame = pl.DataFrame({"path": HOSTILE, "number": range(len(HOSTILE))})
    sample = readable_sample(frame, 1)
    assert isinstance(sample, dg.TableMetadataValue)
    shown = {record.data["path"] for record in sample.records}
    assert shown <= {" ".join(text.split()) for text in HOSTILE}
    assert shown_table(["a"], [[None], [0.5], ["\x1b"], ["x" * 500]]).records[2].data == {"a": r"\x1b"}
    for value in (shown_list(HOSTILE), picture(b"png", HOSTILE[0]), *(bars({text: 1}) for text in HOSTILE)):
        page = MarkdownIt("commonmark").render(value.value)
        assert "<script" not in page
        assert re.findall(r'<img src="(?!data:image/(?:png;base64|svg\+xml),)', page) == []
        assert "<a " not in page


def dom(page: str, folder) -> str:
    """What a browser has made of a page once its scripts have run."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--window-size=1600,4000", page],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout


class Requests:
    """A server that notes what is asked of it: what a browser would fetch because a document says so."""

    def __enter__(self):
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(404)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


DEFINITIONS = """
import json, os
import dagster as dg
import polars as pl
from embed_pipeline.orchestration.checks import none_of
from embed_pipeline.orchestration.presentation import readable_sample, shown_list, shown_table

TEXTS = json.loads(os.environ["HOSTILE"])

@dg.asset
def documents(context: dg.AssetExecutionContext) -> None:
    frame = pl.DataFrame({"path": TEXTS, "text": TEXTS})
    context.add_output_metadata({
        "sample": readable_sample(frame, 1), "worst": shown_table(["text"], [[text] for text in TEXTS]),
        "cautions": shown_list(TEXTS), "first": TEXTS[0],
    })

@dg.asset_check(asset="documents")
def sound() -> dg.AssetCheckResult:
    return none_of([f"first 'q1': {text}" for text in TEXTS], {}, hard=False)

defs = dg.Definitions(assets=[documents], asset_checks=[sound])
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_on_dagsters_pages_makes_no_element_and_no_request_of_a_document(tmp_path):
    with Requests() as server, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        texts = [
            f"![p](/graphql?query={MUTATION})",
            f"![t]({server.url}/picture.png) <img src={server.url}/tag.png> [pay]({server.url}/pay)",
            *HOSTILE[:-1],
        ]
        home = tmp_path / "home"
        home.mkdir()
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        (tmp_path / "hostile.py").write_text(DEFINITIONS)
        environment = {**os.environ, "DAGSTER_HOME": str(home), "HOSTILE": json.dumps(texts)}
        dagster = [sys.executable, "-m", "dagster"]
        run = [*dagster, "asset", "materialize", "-f", "hostile.py", "--select", "documents"]
        subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True)
        serve = [str(Path(sys.executable).parent / "dagster-webserver"), "-f", "hostile.py", "-p", str(port)]
        with subprocess.Popen(serve, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as web:
            try:
                ui = f"http://127.0.0.1:{port}"
                deadline = time.monotonic() + 90
                while time.monotonic() < deadline:
                    try:
                        urllib.request.urlopen(f"{ui}/server_info", timeout=5)
                        break
                    except OSError:
                        time.sleep(0.3)
                pages = {
                    view: dom(f"{ui}/assets/documents?view={view}", tmp_path / view)
                    for view in ("overview", "checks", "events")
                }
            finally:
                web.terminate()
        for view, page in pages.items():
            assert "documents" in page, view
            for source in re.findall(r'<(?:img|script|a|svg)\b[^>]*?(?:src|href)="([^"]*)"', page):
                assert "graphql" not in source, view
                assert server.url not in source, view
                assert "evil.example" not in source, view
        assert "first" in pages["overview"], "the page shows the metadata"
        assert server.asked == []
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert instance.get_dynamic_partitions("document_batch") == []
