"""Estimates that send nothing and agree with the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.estimate import Estimate, estimate, estimate_folder
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import score_pairs
from embed_pipeline_tests.stub_endpoint import stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
TITLES = {"d1": "Pump", "d2": "Billing", "d9": "Other"}
PRICES = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 10.0}


def _estimate(settings: Settings, encoder: Encoder) -> Estimate:
    return estimate({"b1": material.segments()}, TITLES, settings, lambda: encoder)


def _run(settings: Settings, encoder: Encoder) -> int:
    """All stages that ask the model; the number of pairs."""
    segments = material.segments()
    artifacts = extract_artifacts("b1", segments, settings).artifacts
    made = generate_pairs("b1", segments, artifacts, TITLES, settings, lambda: encoder)
    score_pairs("b1", made.pairs, segments, settings, encoder)
    return made.pairs.height


def test_it_predicts_the_calls_of_a_run_and_sends_none(make_settings: MakeSettings, encoder: Encoder) -> None:
    with stub_endpoint(material.respond) as stub:
        settings = make_settings(stub.base_url, llm=PRICES)
        predicted = _estimate(settings, encoder)
        assert stub.requests == []
        assert list(settings.paths.store.iterdir()) == []
        pairs = _run(settings, encoder)
        sent = len(stub.requests)
    assert (predicted.segments, predicted.questions) == (5, pairs)
    assert [stage.calls for stage in predicted.stages] == [2, 2, pairs + 9], "with nine planted bad pairs"
    assert predicted.total.calls == sent
    assert predicted.total.cached == 0
    assert predicted.total.cost == pytest.approx(
        (predicted.total.prompt_tokens + 10 * predicted.total.completion_tokens) / 1e6, rel=1e-3
    )
    assert predicted.total.seconds == sum(5.0 for stage in predicted.stages)


def test_after_a_run_nothing_is_left_to_pay(make_settings: MakeSettings, encoder: Encoder) -> None:
    with stub_endpoint(material.respond) as stub:
        settings = make_settings(stub.base_url, llm=PRICES)
        _run(settings, encoder)
        sent = len(stub.requests)
        left = _estimate(settings, encoder).total
    assert (left.calls, left.prompt_tokens, left.cost, left.cached) == (0, 0, 0, sent)


def test_tokens_are_those_of_the_prompts(make_settings: MakeSettings, encoder: Encoder) -> None:
    with stub_endpoint(material.respond) as stub:
        settings = make_settings(stub.base_url)
        predicted = _estimate(settings, encoder)
        made = [extract_artifacts("b1", material.segments(), settings)]
        measured = sum(len(str(request["messages"])) + 400 for request in stub.requests) / 4
    assert made
    assert predicted.stages[0].prompt_tokens == pytest.approx(measured, rel=0.5)


@pytest.mark.parametrize(
    ("caps", "named"),
    [
        ({"max_calls": 2}, "questions: llm.max_calls is 2"),
        ({"max_total_tokens": 500}, "artifacts: llm.max_total_tokens is 500"),
    ],
)
def test_a_cap_that_will_be_reached_is_named(
    make_settings: MakeSettings, encoder: Encoder, caps: dict[str, int], named: str
) -> None:
    reached = _estimate(make_settings(llm=caps), encoder).caps
    assert any(text.startswith(named) for text in reached)
    assert _estimate(make_settings(), encoder).caps == ()


def test_the_embedded_model_costs_time_alone(encoder: Encoder, tmp_path: Path) -> None:
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF")
    settings = Settings.model_validate(
        {
            "paths": {"store": tmp_path / "store"},
            "llm": {"gguf_path": gguf, "server_threads": 2, **PRICES},
            "synthesis": {"multi_hop_share": 0},
        }
    )
    predicted = _estimate(settings, encoder)
    assert [stage.calls for stage in predicted.stages] == [0, 18, 0], "two sentences of each but one, for two wishes"
    assert predicted.total.cost == 0
    assert 0 < predicted.total.seconds < 10
    assert predicted.total.prompt_tokens > 18 * 300, "whole prompts are counted"
    single = settings.model_copy(update={"llm": settings.llm.model_copy(update={"server_threads": 1})})
    assert _estimate(single, encoder).total.seconds == pytest.approx(2 * predicted.total.seconds, rel=0.05)
    assert not settings.paths.store.exists()


def test_a_folder_is_estimated_as_a_run_would_cut_it(
    encoder: Encoder, make_settings: MakeSettings, tmp_path: Path
) -> None:
    from embed_pipeline.corpus.batches import cut_batches, load_batches

    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.md").write_text(
            f"# Valve {number}\n\nValve {number} is opened by hand, twice a day, no more.\n" * 3
        )
    base = make_settings(multi_hop_share=0)
    paths = base.paths.model_copy(update={"documents": folder})
    corpus = base.corpus.model_copy(update={"documents_per_batch": 2, "segment_tokens": 60})
    settings = base.model_copy(update={"paths": paths, "corpus": corpus})
    before = estimate_folder(settings, encoder)
    assert before.questions == 2 * before.segments > 0
    assert load_batches(settings.paths.store) == []
    cut_batches(settings)
    assert estimate_folder(settings, encoder) == before
