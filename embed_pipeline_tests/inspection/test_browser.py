"""In a real browser: filters by clicking, a correction by the keyboard alone, phone width, and text that stays text."""

from __future__ import annotations

import shutil

import pytest

from embed_pipeline.reviews import read_reviews
from embed_pipeline_tests.inspection.material import FEE, TECHNICIAN, inspected, write_store
from embed_pipeline_tests.inspection.test_inspector import HOSTILE, PAGES

NAMELESS = """all => all.filter(one => one.checkVisibility()
    && !(one.innerText || one.ariaLabel || (one.labels && one.labels.length))).map(one => one.outerHTML)"""
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.faults = []
    opened.on("console", lambda message: opened.faults.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    yield opened
    context.close()


def test_clicks_lead_from_a_chart_to_a_rejected_pair_its_document_and_back(page, tmp_path):
    with inspected(write_store(tmp_path)) as url:
        page.goto(url)
        page.get_by_role("link", name="rejected 1").click()
        assert page.get_by_role("heading", level=1).inner_text() == "1 of 7 pairs"
        page.get_by_role("link", name=TECHNICIAN).click()
        assert "4, bound 6" in page.locator("main").inner_text()
        page.get_by_role("link", name="d1.md").first.click()
        assert "embed-pipeline forget d1.md" in page.locator("main").inner_text()
        page.get_by_role("link", name="Coverage").click()
        page.get_by_role("link", name="without 3").click()
        assert page.locator("tbody tr").count() == 3
        page.goto(url)
        page.get_by_role("link", name="lost 1").click()
        page.get_by_role("link", name=FEE).click()
        assert "beyond the deepest cut-off" in page.locator("main").inner_text()
    assert page.faults == []


def test_the_keyboard_alone_finds_and_corrects_a_pair(page, tmp_path):
    root = write_store(tmp_path)
    with inspected(root, corrections=True) as url:
        page.goto(url)
        page.keyboard.press("/")
        page.keyboard.type("technician")
        page.keyboard.press("Enter")
        page.wait_for_url("**q=technician*")
        for key in ("j", "Enter"):
            page.keyboard.press(key)
        page.wait_for_url("**/pairs/q2aa*")
        page.keyboard.press("e")
        page.keyboard.type("Who is it that changes the filter?")
        page.keyboard.press("Escape")
        page.keyboard.press("c")
        page.keyboard.type("clearer")
        for key in ("Tab", "Enter"):
            page.keyboard.press(key)
        page.wait_for_url("**#reviews")
        assert page.get_by_role("heading", level=1).inner_text() == "Who is it that changes the filter?"
        page.keyboard.press("r")
        page.wait_for_function("document.querySelectorAll('main section:first-of-type li').length === 2")
        page.keyboard.press("u")
        page.wait_for_url("**q=technician*")
    reviews = read_reviews(root)
    assert reviews["action"].to_list() == ["edit", "reject"]
    assert reviews.row(0, named=True)["question"] == "Who is it that changes the filter?"
    assert reviews.row(0, named=True)["comment"] == "clearer"
    assert page.faults == []


def test_no_page_is_wider_than_a_phone_and_every_control_has_a_name(page, tmp_path):
    with inspected(write_store(tmp_path), corrections=True) as url:
        page.set_viewport_size({"width": 360, "height": 740})
        for address in PAGES:
            page.goto(url + address)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, address
            named = "a, button, input:not([type=hidden]), textarea, select, summary"
            nameless = page.locator(named).evaluate_all(NAMELESS)
            assert nameless == [], address
    assert page.faults == []


def test_no_element_and_no_request_comes_from_a_document(page, tmp_path):
    root = write_store(
        tmp_path, dict.fromkeys(("s1", "s2", "s3", "s4", "s5"), HOSTILE), question=HOSTILE, answer=HOSTILE
    )
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    with inspected(root, corrections=True) as url:
        for address in PAGES:
            page.goto(url + address)
            assert page.locator("img, iframe, object, svg:not(.bars svg):not(.curve)").count() == 0, address
            assert page.title().endswith("- QA set"), address
            assert page.locator("script").count() == 1
    known = {*PAGES, "/segments", "/inspect.css", "/inspect.js", "/favicon.ico"}
    assert {request.removeprefix(url).split("?")[0] for request in asked} <= known
