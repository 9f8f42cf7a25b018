"""Progress shows the count, the rate and the time left."""

from __future__ import annotations

import logging

from embed_pipeline import progress as module
from embed_pipeline.progress import Bar, progress


def test_a_line_says_count_rate_and_time_left(monkeypatch):
    bar = Bar(label="encode", total=40, unit="text", started=100.0)
    bar.done = 10
    monkeypatch.setattr(module.time, "monotonic", lambda: 105.0)
    assert bar.line("3 cached") == "encode: 10/40 texts, 2.0/s, 15 s left, 3 cached"
    assert Bar(label="rank", total=1, unit="query").line() == "rank: 0/1 query"
    assert Bar(label="rank", total=2000, unit="query").line() == "rank: 0/2,000 queries"


def test_without_a_terminal_it_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(module, "LOG_INTERVAL_SECONDS", 0.0)
    listen(monkeypatch, caplog)
    with progress("encode", 2, "text") as bar:
        bar.advance()
        bar.advance(note="done")
    assert [line.split(",")[0] for line in caplog.messages[:2]] == ["encode: 1/2 texts", "encode: 2/2 texts"]
    assert caplog.messages[1].endswith("done")
    assert caplog.messages[2].startswith("encode: 2 texts in")


def test_often_is_not_logged(monkeypatch, caplog):
    listen(monkeypatch, caplog)
    with progress("encode", 100, "text") as bar:
        for _ in range(100):
            bar.advance()
    assert caplog.messages == []


def listen(monkeypatch, caplog):
    """Capture this module's lines alone, whatever handlers other tests left on its logger."""
    logger = logging.getLogger("a_test_of_progress")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [caplog.handler]
    monkeypatch.setattr(module, "logger", logger)
