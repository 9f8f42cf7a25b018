"""Estimates that send nothing and agree with the run."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.estimate import Estimate, estimate, estimate_folder
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import score_pairs
from embed_pipeline.synthesis.trial import choose_judge, choose_path
from embed_pipeline_tests.stub_endpoint import Answer, stub_endpoint
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
    assert predicted.total.seconds == 4 * 5.0, "artifacts, questions, verdicts, and those on planted pairs"


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
        ({"max_calls": 3}, "questions: llm.max_calls is 3"),
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


@pytest.mark.slow
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


def _documents(count: int) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    """Batches of documents of unequal length, in words that differ."""
    chance = random.Random(5)
    rows = []
    for number in range(count):
        for part in range(1 + number % 3):
            said = " ".join(f"{word}{number} runs at {part}{chance.randint(10, 99)} bar." for word in WORDS[: 3 + part])
            rows.append((f"s{number:03}-{part}", f"d{number:03}", f"The {said} Ask the service {number} for more."))
    frame = material.segments({key: text for key, _, text in rows})
    frame = frame.with_columns(document_id=pl.Series([document for _, document, _ in rows]))
    half = f"d{count // 2:03}"
    batches = {"b1": frame.filter(pl.col("document_id") < half), "b2": frame.filter(pl.col("document_id") >= half)}
    return batches, {document: f"Machine {document}" for _, document, _ in rows}


WORDS = ("pump", "valve", "boiler", "heater", "filter", "turbine")
COMPLETES = {"path": "completion", "judge": "measured", "questions_per_segment": 3}
MODELS = {
    "by schema, two at once": ({"path": "structured", "judge": "asked"}, 2),
    "completing, any number at once": (COMPLETES, 1000),
    "auto, one answer in six invalid, any number at once": ({}, 1000),
}


def _slow_model(seed: int, *, invalid: float) -> Callable[[dict[str, Any]], Answer]:
    """A model whose answers differ in length, and take 150 ms and 0.5 ms a token, more or less."""
    chance = random.Random(seed)

    def respond(request: dict[str, Any]) -> Answer:
        if "prompt" in request:
            said = re.findall(r"[a-z]+\d+", request["prompt"])[-4:]
            asks = request["prompt"].endswith("Question:")
            text = f"{' What is' if asks else ''} the {chance.choice(said)} of the service for {chance.choice(said)}?"
        elif request["messages"][0]["content"].startswith("You judge"):
            why = "It stands there, in the words of the segment. " * chance.randint(1, 5)
            shown, _, pair = request["messages"][1]["content"].rpartition("Pair: ")
            right = json.loads(pair.split("\n")[0])["answer"][:30] in shown and "What is said of" in pair
            verdict = {"justification": why, "score": chance.choice((7, 8, 9, 9.5)) if right else 2}
            text = json.dumps(dict.fromkeys(CRITERIA, verdict))
        else:
            text = material.respond({**request, "messages": request["messages"][:2]})
        if chance.random() < invalid and not text.startswith(" "):
            text = text[: len(text) // 2]
        return Answer(text, seconds=(0.15 + 0.0005 * len(text) / 4) * chance.lognormvariate(0, 0.25))

    return respond


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_few_calls_predict_the_run(make_settings: MakeSettings, encoder: Encoder, name: str) -> None:
    """Calls, tokens and time within a factor of 1.5, at a model that answers at its own pace."""
    synthesis, slots = MODELS[name]
    batches, titles = _documents(15 if "completing" in name else 10)
    with stub_endpoint(_slow_model(3, invalid=0 if synthesis else 1 / 6), slots=slots) as stub:
        settings = make_settings(stub.base_url, llm={"max_concurrency": 5}, multi_hop_share=0, **synthesis)
        predicted = estimate(batches, titles, settings, lambda: encoder, ask=True)
        usages = []
        for batch, segments in batches.items():
            path = choose_path(segments, titles, settings).applied(settings)
            artifacts = extract_artifacts(batch, segments, path)
            made = generate_pairs(batch, segments, artifacts.artifacts, titles, path, lambda: encoder)
            judged = choose_judge(made.pairs, segments, path).applied(path)
            usages += [artifacts.usage, made.usage, score_pairs(batch, made.pairs, segments, judged, encoder).usage]
    pairs = {"calls": "calls", "prompt_tokens": "prompt_tokens", "completion_tokens": "completion_tokens",
             "seconds": "elapsed"}  # fmt: skip
    said = {name: (getattr(predicted.total, name), sum(getattr(usage, was) for usage in usages))
            for name, was in pairs.items()}  # fmt: skip
    for expected, was in said.values():
        assert was / 1.5 <= expected <= was * 1.5, said
