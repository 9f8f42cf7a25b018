"""What a document is about: extracted, or asked of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import extract_artifacts, plan_windows
from embed_pipeline_tests.stub_endpoint import Status, stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]


def test_key_phrases_are_headings_and_identifiers_of_a_document() -> None:
    texts = {
        "s1": "Call open_valve() to fill the tank.",
        "s2": "open_valve() raises ValveError.",
        "s4": "Invoices only.",
    }
    frame = extract_artifacts("b1", material.segments(texts), Settings()).artifacts
    found = {(row["document_id"], row["text"]): row for row in frame.iter_rows(named=True)}
    assert found["d1", "open_valve"]["segment_ids"] == ["s1", "s2"]
    assert found["d1", "open_valve"]["extractor"] == "keyphrases"
    assert ("d1", "ValveError") in found
    assert all(document == "d1" for document, _ in found)


def test_phrases_that_a_few_segments_share_name_what_flat_texts_are_about() -> None:
    texts = {
        "s1": "The boundary layer grows along the flat plate.",
        "s2": "A thick boundary layer separates early.",
        "s4": "Invoices are sent on the first day of each month.",
    }
    frame = extract_artifacts("b1", material.segments(texts), Settings()).artifacts
    assert dict(frame.select("text", "segment_ids").iter_rows()) == {"boundary layer": ["s1", "s2"]}


def test_a_model_reads_every_document_in_windows(make_settings: MakeSettings) -> None:
    with stub_endpoint(material.respond) as stub:
        extraction = extract_artifacts("b1", material.segments(), make_settings(stub.base_url))
    assert extraction.artifacts["segment_ids"].to_list() == [["s1"], ["s4"]]
    assert extraction.artifacts["extractor"].unique().to_list() == ["stub"]
    assert extraction.usage.calls == len(stub.requests) == 2
    assert extraction.dropped == {}


def test_a_window_that_is_too_long_is_read_in_halves(make_settings: MakeSettings) -> None:
    def respond(request: dict[str, Any]) -> str | Status:
        shown = request["messages"][-1]["content"].count("\n[S")
        return Status(400, message="the prompt exceeds the context size") if shown > 1 else material.respond(request)

    with stub_endpoint(respond) as stub:
        extraction = extract_artifacts("b1", material.segments(), make_settings(stub.base_url))
    assert sorted(extraction.artifacts["segment_ids"].to_list()) == [[key] for key in sorted(material.TEXTS)]
    assert extraction.dropped == {}


def test_windows_hold_one_document_and_are_short() -> None:
    texts = {f"s{n}": "word " * 1000 for n in (1, 2, 3, 4)}
    windows = plan_windows(material.segments(texts))
    assert [[row["segment_id"] for row in window] for window in windows] == [["s1", "s2"], ["s3"], ["s4"]]


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        ({"kind": "concept", "text": "the pump", "segments": ["S9"]}, "unknown_segment"),
        ({"kind": "concept", "text": "the pump", "segments": []}, "unknown_segment"),
        ({"kind": "concept", "text": " ", "segments": ["S1"]}, "empty_or_long"),
        ({"kind": "concept", "text": "pump " * 200, "segments": ["S1"]}, "empty_or_long"),
        ({"kind": "entity", "text": "elephants in Africa", "segments": ["S1"]}, "not_in_segments"),
    ],
)
def test_what_no_segment_bears_out_is_left_out_and_counted(
    make_settings: MakeSettings, artifact: dict[str, Any], reason: str
) -> None:
    good = {"kind": "condition", "text": "less than ten litres", "segments": ["S1"]}
    with stub_endpoint(lambda _: json.dumps({"artifacts": [artifact, good]})) as stub:
        texts = {"s1": material.TEXTS["s1"]}
        extraction = extract_artifacts("b1", material.segments(texts), make_settings(stub.base_url))
    assert extraction.artifacts["text"].to_list() == ["less than ten litres"]
    assert extraction.dropped == {reason: 1}


def test_a_document_without_a_usable_answer_goes_without(make_settings: MakeSettings) -> None:
    def respond(request: dict[str, Any]) -> str:
        return "nonsense" if "Invoices" in request["messages"][1]["content"] else material.respond(request)

    with stub_endpoint(respond) as stub:
        extraction = extract_artifacts("b1", material.segments(), make_settings(stub.base_url))
    assert extraction.artifacts["document_id"].to_list() == ["d1"]
    assert extraction.dropped == {"invalid_answer": 1}
