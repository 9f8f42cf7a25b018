"""The pages over HTTP: read-only by default, corrections from these pages alone, and text that stays text."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from embed_pipeline.reviews import read_reviews
from embed_pipeline_tests.inspection.material import FEE, LAMP, TECHNICIAN, inspected, write_store
from embed_pipeline_tests.synthesis.material import TEXTS

HOSTILE = "<img src=/x onerror=document.title=1> <script>document.title=2</script> \" ' {{ 7*7 }} \u202ekcab"
PAGES = ["/", "/documents", "/segments", "/evaluation", "/agreement", "/pairs/q1aa", "/pairs/q2aa", "/pairs/q3aa",
         "/pairs/q4aa", "/pairs/label1", "/pairs/q1aa/raw", "/documents/d1", "/segments/s2",
         "/segments?coverage=without"]  # fmt: skip


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    with inspected(write_store(tmp_path_factory.mktemp("store"))) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def correcting(tmp_path):
    told: list[str] = []
    root = write_store(tmp_path)
    with inspected(root, told=told, corrections=True) as url, httpx.Client(base_url=url) as client:
        client.root, client.told = root, told
        yield client


def send(client: httpx.Client, qa_id: str = "q2aa", *, of: str = "q2aa", headers: Any = None, **fields: str) -> Any:
    """Send a correction with the token of the page of a pair."""
    token = re.search(r'name="token" value="([^"]+)"', client.get(f"/pairs/{of}").text)[1]
    return client.post(f"/pairs/{qa_id}/reviews", data={"token": token, **fields}, headers=headers or {})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_and_takes_nothing_from_elsewhere(reading, page):
    answer = reading.get(page)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert answer.headers["cache-control"] == "no-store"
    assert '<html lang="en">' in answer.text
    assert not re.findall(r"""(?:src|href)="(?:https?:)?//|\son\w+=| style="|\bNone\b(?! of| survived)""", answer.text)
    assert answer.text.count('aria-current="page"') == 1
    assert answer.text.count("<main") == answer.text.count("<h1") == answer.text.count('aria-label="Pages"') == 1


def test_a_pairs_page_tells_the_whole_way(reading):
    lamp = reading.get("/pairs/q1aa").text
    told = (
        "d1.md",
        "<mark>A red lamp on the pump",
        "The text before it",
        "similarity 0.700",
        "no longer in the corpus",
    )
    for part in (*told, "tuned version 2", "because", "Side: <strong>train"):
        assert part in lamp, part
    rejected = reading.get("/pairs/q2aa").text
    assert "4, bound 6" in rejected
    assert "vague" in rejected
    lost = reading.get("/pairs/q3aa").text
    assert "Hop 2" in lost
    assert "beyond the deepest cut-off" in lost
    ranks = r'<td>BM25</td><td class="number" data-label="Rank">3</td><td [^>]+>0.500</td><td>nothing shares a word'
    assert re.search(ranks, lost)
    assert "Nobody judged it" in reading.get("/pairs/q4aa").text
    document = reading.get("/documents/d1").text
    assert "embed-pipeline forget d1.md" in document
    learned = document.partition("Models that learned from it")[2].partition("</details>")[0]
    assert "tuned version 2" in learned
    assert "by 1 question that" in learned
    assert f'<a href="/pairs/q1aa" dir="auto">{LAMP}</a>' in learned
    invalid = re.search(r"/pairs/x[0-9a-f-]+", reading.get("/?state=invalid").text)[0]
    assert "Why? 7" in reading.get(invalid).text


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("/pairs/none", 404, "there is no pair none"),
        ("/documents/none", 404, "there is no document none"),
        ("/segments/none", 404, "there is no segment none"),
        ("/?sort=secret", 400, "sort is"),
        ("/?zz=1", 400, "there is no filter"),
        ("/documents?sort=zz", 400, "sort is"),
        ("/documents?page=0", 400, "page is"),
        (f"/documents?page={'9' * 5000}", 400, "page is"),
        (f"/?page={'9' * 5000}", 400, "page is"),
        ("/evaluation?set=zz", 400, "set is"),
        ("/nothing", 404, "Not Found"),
    ],
)
def test_what_there_is_not_is_said_on_a_page(reading, address, status, said):
    answer = reading.get(address)
    assert (answer.status_code, said in answer.text, 'role="alert"' in answer.text) == (status, True, True)


@pytest.mark.parametrize(
    ("address", "heading", "listed"),
    [
        ("", "3 queries", ["FEE", "fee", "pump"]),
        ("?outcome=lost", "2 of 3 queries", ["FEE", "fee"]),
        ("?outcome=lost&set=people", "1 of 3 queries", ["fee"]),
        ("?outcome=won&set=generated", "0 of 3 queries", []),
        ("?q=Pump+STOPS", "1 of 3 queries", ["pump"]),
        ("?sort=change&order=descending", "3 queries", ["pump", "fee", "FEE"]),
    ],
)
def test_the_queries_that_the_tuned_model_lost_are_filtered_on_every_set(reading, address, heading, listed):
    page = reading.get(f"/evaluation{address}").text
    assert f"<h1>{heading} of the last evaluation" in page
    names = {FEE: "FEE", "fee": "fee", "pump &lt;b&gt;stops&lt;/b&gt;": "pump"}
    assert [names[text] for text in re.findall(r'<td class="question"><[^>]+>(.+?)</(?:a|span)>', page)] == listed
    assert ("No query has all of this" in page) == (not listed)


def test_without_the_setting_nothing_is_corrected(reading):
    assert reading.post("/pairs/q1aa/reviews", data={"action": "reject"}).status_code == 404
    assert "<button" not in reading.get("/pairs/q1aa").text


def test_other_names_of_this_machine_are_refused(reading):
    assert reading.get("/", headers={"host": "evil.example"}).status_code == 421
    assert reading.get("/", headers={"host": "localhost:8010"}).status_code == 200


@pytest.mark.slow
def test_corrections_are_stored_and_shown_at_once(correcting):
    assert send(correcting, action="accept").status_code == 303
    assert "the next run of sdg takes it over" in correcting.get("/pairs/q2aa").text
    words = {"question": "Who changes it?", "answer": "", "comment": "shorter"}
    back = send(correcting, action="edit", back="?state=rejected", **words)
    assert back.headers["location"] == "/pairs/q2aa?state=rejected#reviews"
    assert send(correcting, "q1aa", action="positive", segment_id="s3").status_code == 303
    assert send(correcting, "label1", action="comment", comment="fine").status_code == 303
    rows = read_reviews(correcting.root).to_dicts()
    assert [(row["qa_id"], row["action"], row["reviewer"]) for row in rows] == [
        ("q2aa", "accept", "Eva"), ("q2aa", "edit", "Eva"), ("q1aa", "positive", "Eva"), ("label1", "comment", "Eva"),
    ]  # fmt: skip
    assert (rows[1]["question"], rows[1]["answer"], rows[1]["comment"]) == ("Who changes it?", None, "shorter")
    assert len(correcting.told) == 4
    assert len(list((correcting.root / "tables" / "qa_reviews").glob("*.parquet"))) == 1
    page = correcting.get("/pairs/q2aa").text
    assert "Who changes it?" in page
    assert "As it was written" in page
    assert "from the next run of prep on" in correcting.get("/pairs/q1aa").text
    assert send(correcting, action="withdraw").status_code == 303
    assert "As it was written" not in correcting.get("/pairs/q2aa").text


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"token": "guessed"}, {}, 403),
        ({"token": ""}, {}, 403),
        ({}, {"origin": "https://evil.example"}, 403),
        ({}, {"origin": "null"}, 403),
        ({}, {"origin": "http://["}, 403),
        ({"back": f"?page={'9' * 5000}"}, {}, 400),
        ({}, {"sec-fetch-site": "cross-site"}, 403),
        ({"action": "drop"}, {}, 400),
        ({"action": "positive", "segment_id": "s5"}, {}, 400),
        ({"action": "comment", "comment": "x" * 5000}, {}, 400),
        ({"action": "comment", "comment": "x" * 200_000}, {}, 413),
    ],
)
def test_what_does_not_come_from_these_pages_or_says_nothing_is_refused(correcting, fields, headers, status):
    assert send(correcting, headers=headers, **{"action": "accept", **fields}).status_code == status
    assert read_reviews(correcting.root) is None
    assert correcting.told == []


def test_words_that_are_saved_as_they_were_are_accepted(correcting):
    assert send(correcting, action="edit", question=f" {TECHNICIAN}\r\n", answer=TEXTS["s3"]).status_code == 303
    assert read_reviews(correcting.root)["action"].to_list() == ["accept"]


@pytest.mark.parametrize("qa_id", ["q4aa", "label1"])
def test_only_judged_pairs_are_decided_on(correcting, qa_id):
    assert send(correcting, qa_id, action="reject").status_code == 400
    assert 'value="reject"' not in correcting.get(f"/pairs/{qa_id}").text


@pytest.mark.slow
def test_a_proxy_says_who_corrects(tmp_path):
    root = write_store(tmp_path)
    with (
        inspected(root, corrections=True, reviewer_header="X-Forwarded-User") as url,
        httpx.Client(base_url=url) as client,
    ):
        assert send(client, action="accept").status_code == 403
        assert send(client, action="accept", headers={"x-forwarded-user": "ivo@example"}).status_code == 303
    assert read_reviews(root)["reviewer"].to_list() == ["ivo@example"]


@pytest.mark.slow
def test_nothing_of_a_document_is_markup(tmp_path):
    texts = dict.fromkeys(("s1", "s2", "s3", "s4", "s5"), HOSTILE)
    root = write_store(tmp_path, texts, question=HOSTILE, answer=HOSTILE)
    with inspected(root, corrections=True) as url, httpx.Client(base_url=url) as client:
        assert send(client, action="comment", comment=HOSTILE).status_code == 303
        for page in PAGES:
            text = client.get(page).text
            assert "<img" not in text, page
            assert len(re.findall("<script", text)) == 1, page
        assert "{{ 7*7 }}" in client.get("/pairs/q2aa").text
        assert "&lt;img src=/x" in client.get("/pairs/q2aa").text
        echoed = client.get("/", params={"q": HOSTILE[:200]}).text
        assert "<img" not in echoed
        assert LAMP not in echoed


def test_a_damaged_table_is_said_and_not_hidden(tmp_path):
    root = write_store(tmp_path)
    (tmp_path / "tables" / "qa_decisions.parquet").write_bytes(b"words")
    with inspected(root) as url:
        answer = httpx.get(url)
    assert (answer.status_code, "is damaged" in answer.text) == (500, True)
