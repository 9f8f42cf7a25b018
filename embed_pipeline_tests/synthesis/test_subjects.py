from __future__ import annotations

from embed_pipeline.synthesis.completion_generator import subjects_of
from embed_pipeline.synthesis.plan import Source


def _source(title: str, text: str = "It is so.", *artifacts: str) -> Source:
    return Source("s", "d", title, text, artifacts)


def test_a_source_is_named_by_its_innermost_heading() -> None:
    assert subjects_of([_source("Manual > The *red* lamp"), _source("Manual > Valves")], 0) == [
        "The red lamp",
        "Valves",
    ]


def test_what_the_others_say_too_is_no_name() -> None:
    assert subjects_of([_source("Pump"), _source("Valve", "The pump has a valve.")], 0) == ["", "Valve"]
    assert subjects_of([_source("Pump", "x", "RX-7"), _source("Pump", "y", "QT-2")], 0) == ["RX-7", "QT-2"]


def test_long_headings_are_no_names() -> None:
    assert subjects_of([_source("How to set up the red lamp of a pump"), _source("Valve")], 0) == ["", "Valve"]


def test_the_seed_chooses_among_the_names() -> None:
    sources = [_source("Lamp", "x", "L-1"), _source("Valve", "y", "V-1")]
    assert {tuple(subjects_of(sources, seed)) for seed in range(4)} == {("Lamp", "Valve"), ("L-1", "V-1")}
