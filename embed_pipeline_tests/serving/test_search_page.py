"""The search page: what it finds is what the models find, and it keeps to itself."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
from upath import UPath

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.inspection.judged_searches import write_judged_queries
from embed_pipeline.release.releases import promote
from embed_pipeline.serving import search_page as search
from embed_pipeline.serving.served_model import ServedModel
from embed_pipeline.settings import Paths
from embed_pipeline.storage import write_whole
from embed_pipeline_tests.serving.endpoint import MODEL, changed, corpus_of, eventually, running

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TEXTS = [f"class {index} of python value {'in ' * (index % 20)}" for index in range(60)]


def corpus(store: Path) -> Path:
    frame = corpus_of(TEXTS).with_columns(path=pl.format("a/{}.md", "position"), heading_path=pl.lit("A > B"))
    (store / "tables").mkdir(parents=True)
    frame.write_parquet(store / "tables" / "corpus.parquet")
    return store


@pytest.fixture(scope="module")
def compared(bundle, tmp_path_factory):
    """Base and tuned model over the corpus."""
    store = corpus(tmp_path_factory.mktemp("store"))
    shutil.copytree(bundle, store / "release" / "1")
    both = store / "release" / "1"
    shutil.copytree(both / "onnx", both / "base_onnx")
    manifest = json.loads((both / "manifest.json").read_text())
    for name, digest in list(manifest["files"].items()):
        if name.startswith("onnx/"):
            manifest["files"][f"base_{name}"] = digest
    (both / "manifest.json").write_text(json.dumps(manifest))
    both = changed(both, store / "release" / "2", "base_onnx/embedding_config.json", query_prefix="how ")
    with running(both, store=store, reload_seconds=0.02) as served:
        yield served


def found(served, query: str) -> dict:
    answer = {}

    def ready() -> bool:
        response = served.client.get("/search", params={"q": query})
        assert response.status_code == 200, response.text
        answer.update(response.json())
        return answer["state"] == "ready"

    eventually(ready)
    return answer


def test_both_models_show_what_each_ranks_first(compared):
    answer = found(compared, "value of 7")
    assert [system["name"] for system in answer["systems"]] == [MODEL, f"{MODEL}-base"]
    bundle = compared.server._bundle
    for system, folder in zip(answer["systems"], ("onnx", "base_onnx"), strict=True):
        encoder = Encoder(OnnxBackend(bundle / folder, threads=1))
        scores = (encoder.encode(TEXTS, "passage") @ encoder.encode(["value of 7"], "query")[0]).tolist()
        expected = sorted(range(len(TEXTS)), key=lambda index: -scores[index])[:10]
        assert [result["rank"] for result in system["results"]] == list(range(1, 11))
        assert np.allclose([result["score"] for result in system["results"]], [scores[i] for i in expected], atol=1e-5)
        first = system["results"][0]
        index = int(first["segment_id"][1:])
        assert (first["path"], first["heading_path"], first["text"]) == (f"a/{index}.md", "A > B", TEXTS[index])
    assert (answer["segments"], answer["indexed"], answer["done"], answer["total"]) == (60, 60, 120, 120)


@pytest.mark.slow
def test_another_release_is_indexed_anew(bundle, tmp_path):
    store = corpus(tmp_path)
    shutil.copytree(bundle, store / "release" / "1")
    changed(bundle, store / "release" / "2", "onnx/embedding_config.json", query_prefix="how ")
    with running(store / "release" / "1", store=store, reload_seconds=0.02) as served:
        before = found(served, "class")["systems"][0]
        promote(Paths(store=store), "2")
        eventually(lambda: served.service.version == "2")
        after = found(served, "class")["systems"][0]
    assert (before["version"], after["version"]) == ("1", "2")
    assert before["results"] != after["results"]


@pytest.mark.slow
def test_a_search_whose_release_is_replaced_is_answered_by_the_next(bundle, tmp_path, monkeypatch):
    store, embed = corpus(tmp_path), ServedModel.embed
    shutil.copytree(bundle, store / "release" / "1")
    changed(bundle, store / "release" / "2", "onnx/embedding_config.json", query_prefix="how ")
    with running(store / "release" / "1", store=store, reload_seconds="never") as served:
        found(served, "class")

        async def late(model, *arguments):
            if model.manifest.version == "1":
                await asyncio.to_thread(served.service.load, store / "release" / "2")
            return await embed(model, *arguments)

        monkeypatch.setattr(ServedModel, "embed", late)
        assert found(served, "class")["systems"][0]["version"] == "2"


@pytest.mark.parametrize(("query", "status"), [("", 400), ("  ", 400), ("x" * 1001, 400)])
def test_what_is_no_query_is_refused(compared, query, status):
    answer = compared.client.get("/search", params={"q": query})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, "q")


def test_a_store_without_a_corpus_is_said(endpoint):
    answer = endpoint.client.get("/search", params={"q": "class"})
    assert answer.status_code == 404
    assert "run the pipeline up to the corpus first" in answer.json()["detail"]


def test_of_a_large_corpus_the_first_part_is_searched_and_that_is_said(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MAX_SEGMENTS", 7)
    with running(bundle, store=corpus(tmp_path)) as served:
        answer = found(served, "class")
    assert (answer["segments"], answer["indexed"], len(answer["systems"][0]["results"])) == (60, 7, 7)


def test_the_page_has_nothing_from_elsewhere_and_runs_nothing_else(endpoint):
    answer = endpoint.client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.findall(r"""(?:src|href)=|url\(|https?://|@import|innerHTML|\son\w+=""", answer.text)
    assert 'lang="en"' in answer.text
    assert all(f'aria-label="{name}"' in answer.text for name in ("Query", "API key", "Results"))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_both_models_side_by_side(compared, tmp_path):
    found(compared, "value of 7")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    page = f"{compared.url}/?q=value%20of%207"
    done = subprocess.run([*command, "--virtual-time-budget=20000", page], capture_output=True, text=True, check=True)
    assert re.findall(r'<section aria-label="([^"]+)"', done.stdout) == [f"{MODEL}-base", MODEL]
    assert done.stdout.count("<li ") == 20
    assert "60 segments searched" in done.stdout
    assert "<mark" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_results_are_judged_kept_in_the_browser_and_saved_as_a_query_set(compared, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    found(compared, "value of 7")
    with playwright.sync_playwright() as running_browser:
        browser = running_browser.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        faults = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(f"{compared.url}/?q=value%20of%207")
        first = page.locator("section li").first
        first.get_by_role("button", name="It answers the query").click()
        page.locator("section li").nth(1).get_by_role("button", name="It does not").click()
        page.reload()
        pressed = page.locator("section").first.locator('button[aria-pressed="true"]')
        assert pressed.count() == 2
        with page.expect_download() as saving:
            page.get_by_role("button", name="Save 1 judged query").click()
        saving.value.save_as(tmp_path / "saved.jsonl")
        page.get_by_role("button", name="Forget them").click()
        assert not page.locator("#judged").is_visible()
        browser.close()
    assert [text for text in faults if "favicon" not in text and "404" not in text] == []
    assert write_judged_queries([tmp_path / "saved.jsonl"], tmp_path / "set") == (1, 0)
    judged = [json.loads(line) for line in (tmp_path / "saved.jsonl").read_text().splitlines()]
    assert [row["judgement"] for row in judged] == ["right", "wrong"]
    assert {row["query"] for row in judged} == {"value of 7"}


def test_the_key_guards_the_search_and_not_the_empty_page(bundle, tmp_path):
    with running(bundle, store=corpus(tmp_path), api_key="clef") as guarded:
        assert guarded.client.get("/").status_code == 200
        assert guarded.client.get("/search", params={"q": "class"}).status_code == 401
        answer = guarded.client.get("/search", params={"q": "class"}, headers={"authorization": "Bearer clef"})
        assert answer.status_code == 200


def test_the_page_can_be_left_out(bundle):
    with running(bundle, search_page=False) as served:
        assert served.client.get("/").status_code == served.client.get("/search").status_code == 404
        assert "/search" not in served.client.get("/openapi.json").json()["paths"]


@pytest.mark.slow
def test_a_corpus_of_another_version_or_a_damaged_one_is_said_with_what_to_run(bundle, tmp_path):
    store = corpus(tmp_path)
    path = store / "tables" / "corpus.parquet"
    whole = pl.read_parquet(path)
    whole.drop("path").write_parquet(path)
    with running(bundle, store=store, reload_seconds=0.02) as served:

        def refused(reason: str) -> bool:
            answer = served.client.get("/search", params={"q": "class"})
            said = f"the corpus cannot be searched: {path} {reason}"
            return (answer.status_code, answer.json()["detail"]) == (503, said) and "retry-after" in answer.headers

        missing = "table corpus: missing columns ['path'], unknown columns []"
        assert refused(f"was stored by another version ({missing}); run: embed-pipeline sdg")
        assert served.embed("class").status_code == 200
        whole.write_parquet(path)
        found(served, "class")
        path.write_bytes(b"words")
        eventually(lambda: served.client.get("/search", params={"q": "class"}).status_code == 503)
        assert "make it again with: embed-pipeline sdg --force" in served.client.get("/search?q=class").text


@pytest.mark.slow
def test_what_is_taken_out_of_the_corpus_is_found_no_more_and_nothing_else_is_embedded_again(bundle, tmp_path):
    store = corpus(tmp_path)
    path = store / "tables" / "corpus.parquet"
    whole = pl.read_parquet(path)
    with running(bundle, store=store, reload_seconds=0.02) as served:
        before = found(served, "value of 7")["systems"][0]["results"]
        gone = before[0]["segment_id"]
        write_whole(UPath(path), parquet(whole.filter(pl.col("segment_id") != gone)))
        answers = []

        def smaller() -> bool:
            answers.append(served.client.get("/search", params={"q": "value of 7"}).json())
            return answers[-1]["segments"] == 59

        eventually(smaller)
        # Ready at once: the vectors of what stays are taken over.
        assert {answer["state"] for answer in answers} == {"ready"}
        after = answers[-1]["systems"][0]["results"]
        assert gone not in [result["segment_id"] for result in after]
        assert [result["segment_id"] for result in after[:9]] == [result["segment_id"] for result in before[1:]]
        new = whole.with_columns(
            text=pl.when(pl.col("segment_id") == "s003").then(pl.lit("a new string")).otherwise("text")
        )
        write_whole(UPath(path), parquet(new))
        eventually(lambda: "a new string" in json.dumps(found(served, "a new string")["systems"]))
        path.unlink()
        eventually(lambda: served.client.get("/search", params={"q": "class"}).status_code == 404)
        write_whole(UPath(path), parquet(whole))
        eventually(lambda: served.client.get("/search", params={"q": "class"}).status_code == 200)
        assert found(served, "value of 7")["systems"][0]["results"] == before


@pytest.mark.slow
def test_what_goes_while_a_query_waits_for_the_model_is_not_shown(bundle, tmp_path, monkeypatch):
    store = corpus(tmp_path)
    path = store / "tables" / "corpus.parquet"
    whole, embed = pl.read_parquet(path), ServedModel.embed
    with running(bundle, store=store, reload_seconds=0.02) as served:
        gone = found(served, "value of 7")["systems"][0]["results"][0]["segment_id"]

        async def slow(model, *arguments):
            answer = await embed(model, *arguments)
            write_whole(UPath(path), parquet(whole.filter(pl.col("segment_id") != gone)))
            await asyncio.sleep(0.1)
            return answer

        monkeypatch.setattr(ServedModel, "embed", slow)
        answer = served.client.get("/search", params={"q": "value of 7"}).json()
    assert (answer["state"], answer["segments"]) == ("ready", 59)
    assert gone not in [result["segment_id"] for result in answer["systems"][0]["results"]]


def parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


HOSTILE = "<img src=/x onerror=document.title=1> <script>document.title=2</script> [y](javascript:alert(1)) in of"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_makes_no_element_of_what_a_document_says(bundle, tmp_path):
    store = corpus(tmp_path / "store")
    path = store / "tables" / "corpus.parquet"
    columns = {name: pl.lit(HOSTILE) for name in ("text", "path", "heading_path", "title")}
    pl.read_parquet(path).with_columns(**columns).write_parquet(path)
    with running(bundle, store=store) as served:
        found(served, "in of")
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
        page = f"{served.url}/?q={quote('<img src=x onerror=alert(1)> in of')}"
        done = subprocess.run(
            [*command, "--virtual-time-budget=20000", page], capture_output=True, text=True, check=True
        )
    assert "&lt;script&gt;" in done.stdout
    shown = done.stdout.partition("<main")[2]
    assert set(re.findall(r"<(img|script|a|svg)\b", shown.partition("</main>")[0])) == set()
    assert "<title>Search" in done.stdout


@pytest.mark.slow
def test_segments_are_indexed_as_the_release_embeds_them(bundle, tmp_path):
    store = corpus(tmp_path)
    titled = changed(bundle, store / "release" / "1", "onnx/embedding_config.json")
    manifest = json.loads((titled / "manifest.json").read_text())
    manifest["model"]["passage_context"] = "path"
    (titled / "manifest.json").write_text(json.dumps(manifest))
    with running(titled, store=store, reload_seconds=0.02) as served:
        (system,) = found(served, "value of 7")["systems"]
    encoder = Encoder(OnnxBackend(titled / "onnx", threads=1))
    passages = [f"A > B\n\n{text}" for text in TEXTS]
    scores = encoder.encode(passages, "passage") @ encoder.encode(["value of 7"], "query")[0]
    shown = [result["score"] for result in system["results"]]
    assert np.allclose(shown, sorted(scores.tolist(), reverse=True)[:10], atol=1e-5)
    assert system["results"][0]["text"] in TEXTS
