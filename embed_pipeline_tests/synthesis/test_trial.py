"""The trial that decides how a model is asked and who judges, at a stub endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.llm.transport import EndpointError
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import MEASURED, PLANTED, score_pairs
from embed_pipeline.synthesis.select import select_pairs
from embed_pipeline.synthesis.trial import Choice, choose_judge, choose_path
from embed_pipeline_tests.stub_endpoint import Answer, Status, Step, stub_endpoint
from embed_pipeline_tests.synthesis import material

MakeSettings = Callable[..., Settings]
Request = dict[str, Any]
TITLES = {"d1": "Pump", "d2": "Billing", "d9": "Other"}
NO_ROUTE = Status(404, message="no such route")


def _verdict(scores: Mapping[str, float], default: float) -> Callable[[Request], str]:
    """A judge that gives a pair the score of the first of these texts that the pair holds."""

    def judge(request: Request) -> str:
        pair = request["messages"][-1]["content"].rpartition("Pair: ")[2]
        score = next((score for text, score in scores.items() if text in pair), default)
        return material.judge_pair(score)

    return judge


def _told_apart(request: Request) -> str:
    """A judge that sees whether the answer stands in the segments and the question is about them."""
    shown, _, pair = request["messages"][-1]["content"].rpartition("Pair: ")
    said = json.loads(pair)
    right = said["answer"][:30] in shown and said["question"].partition("said of ")[2][:20] in shown.lower()
    return material.judge_pair(9.0 if right else 2.0)


def _model(
    *,
    pairs: Callable[[Request], str | Step] = material.write_pairs,
    completion: Callable[[Request], str | Step] = lambda _: NO_ROUTE,
    judge: Callable[[Request], str | Step] = _told_apart,
) -> Callable[[Request], str | Step]:
    def respond(request: Request) -> str | Step:
        if "prompt" in request:
            return completion(request)
        system = request["messages"][0]["content"]
        if system.startswith("You write"):
            return pairs(request)
        return judge(request) if system.startswith("You judge") else material.respond(request)

    return respond


def _copies(request: Request) -> str:
    copied = "What would a person who has not seen the documents ask of a search engine?"
    return material.write_pairs(request, lambda pair: {**pair, "question": copied})


def _continues(request: Request) -> str:
    """A completion: a question in the words of the sentence that is shown last, another one with another seed."""
    every = [sentence for text in material.TEXTS.values() for sentence in text.rstrip(".").split(". ")]
    shown = max(every, key=request["prompt"].rfind)
    said = [word.lower() for word in shown.split() if len(word) > 3]
    start = request["seed"] % max(1, len(said) - 2)
    asks = request["prompt"].endswith("Question:")
    return f"{' What is' if asks else ''} the {said[start]} and the {said[start + 1]} of the {said[start + 2]}?"


PATHS = {
    "good JSON": (_model(), "structured"),
    "no JSON, good completions": (_model(pairs=lambda _: "I cannot do that.", completion=_continues), "completion"),
    "copied questions, good completions": (_model(pairs=_copies, completion=_continues), "completion"),
    "no JSON, no completions": (_model(pairs=lambda _: "I cannot do that."), "structured"),
    "no JSON, empty completions": (_model(pairs=_copies, completion=lambda _: Answer("", "stop")), "structured"),
}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_the_path_is_that_of_more_valid_questions(
    make_settings: MakeSettings, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    model, expected = PATHS[name]
    caplog.set_level("INFO", "embed_pipeline.synthesis.trial")
    with stub_endpoint(model) as stub:
        settings = make_settings(stub.base_url, multi_hop_share=0)
        choice = choose_path(material.segments(), TITLES, settings)
        assert choice.value == expected, choice
        asked = len(stub.requests)
        assert choose_path(material.segments(), TITLES, settings) == choice
        assert len(stub.requests) == asked, "decided once"
    assert f"synthesis.path: {expected} ({choice.reason})" in caplog.text
    assert "10 questions valid" in choice.reason
    assert choice.facts()["path"] == expected
    assert choice.applied(settings).structured == (expected == "structured")


def _all_alike(_: Request) -> str:
    return material.judge_pair(8.5)


JUDGES = {
    "tells apart": (_told_apart, "asked"),
    "all alike": (_all_alike, "measured"),
    "by the length alone": (_verdict({"pump": 4.0}, 9.0), "measured"),
    "no JSON": (lambda _: "Looks fine to me.", "measured"),
}  # fmt: skip


def _pairs(settings: Settings, encoder: Encoder) -> Any:
    none = extract_artifacts("b1", material.segments(), settings).artifacts
    return generate_pairs("b1", material.segments(), none, TITLES, settings, lambda: encoder).pairs


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_asked_if_it_can_judge(make_settings: MakeSettings, encoder: Encoder, name: str) -> None:
    judge, expected = JUDGES[name]
    with stub_endpoint(_model(judge=judge)) as stub:
        settings = make_settings(stub.base_url)
        pairs = _pairs(settings, encoder)
        choice = choose_judge(pairs, material.segments(), settings)
        assert choice.value == expected, choice
        asked = len(stub.requests)
        assert choose_judge(pairs, material.segments(), settings) == choice
    assert len(stub.requests) == asked
    assert "verdicts valid" in choice.reason


@pytest.mark.slow
def test_a_trial_asks_nothing_that_the_run_does_not_ask(make_settings: MakeSettings, encoder: Encoder) -> None:
    segments = material.segments()

    def run(settings: Settings, *, trial: bool) -> Any:
        path = choose_path(segments, TITLES, settings).applied(settings) if trial else settings
        pairs = _pairs(path, encoder)
        judged = choose_judge(pairs, segments, settings).applied(settings) if trial else settings
        return pairs, score_pairs("b1", pairs, segments, judged, encoder).scores

    with stub_endpoint(_model()) as stub:
        tried = run(make_settings(stub.base_url), trial=True)
        with_trial = len(stub.requests)
        assert len({json.dumps(request) for request in stub.requests}) == with_trial, "nothing is asked twice"
    with stub_endpoint(_model()) as stub:
        settings = make_settings(stub.base_url, path="structured", judge="asked")
        fresh = settings.paths.model_copy(update={"store": settings.paths.store / "other"})
        plain = run(settings.model_copy(update={"paths": fresh}), trial=False)
        assert len(stub.requests) == with_trial
    assert tried[0].drop("prompt_version").equals(plain[0].drop("prompt_version"))
    assert tried[1].equals(plain[1])


def test_all_batches_follow_the_first(make_settings: MakeSettings) -> None:
    with stub_endpoint(_model()) as stub:
        settings = make_settings(stub.base_url)
        first = choose_path(material.segments(), TITLES, settings)
    # Another batch, at a time when the endpoint answers nothing at all.
    other = material.segments({key: f"{text} Twice." for key, text in material.TEXTS.items()})
    assert choose_path(other, TITLES, settings) == first
    with pytest.raises(EndpointError):
        choose_path(other, TITLES, settings.model_copy(update={"seed": 3}))


def test_two_batches_that_decide_at_once_decide_alike(make_settings: MakeSettings) -> None:
    with ResponseStore(make_settings().paths.responses) as one, ResponseStore(make_settings().paths.responses) as two:
        assert (one.decision("k"), two.decision("k")) == (None, None)
        assert [one.decide("k", "first"), two.decide("k", "second")] == ["first", "first"]


def test_too_little_decides_nothing(make_settings: MakeSettings) -> None:
    with stub_endpoint(_model(pairs=_copies, completion=_continues)) as stub:
        settings = make_settings(stub.base_url, questions_per_segment=1)
        few = choose_path(material.segments(dict(list(material.TEXTS.items())[:2])), TITLES, settings)
        assert (few.value, few.figures) == ("structured", {})
        assert choose_path(material.segments().clear(), TITLES, settings).value == "structured"
        assert choose_path(material.segments(), TITLES, settings).value == "completion"


def test_what_the_endpoint_refuses_says_nothing_about_the_model(make_settings: MakeSettings) -> None:
    def flag(request: Request) -> str | Step:
        flagged = "Invoices" in request["messages"][-1]["content"]
        return Status(400, body=b'{"error": {"code": "content_filter"}}') if flagged else material.write_pairs(request)

    with stub_endpoint(_model(pairs=flag)) as stub:
        choice = choose_path(material.segments(), TITLES, make_settings(stub.base_url))
    assert (choice.value, choice.figures["structured_asked"]) == ("structured", 6)


@pytest.mark.parametrize(
    "settings", [{"path": "completion", "judge": "both"}, {"path": "structured", "judge": "asked"}]
)
def test_what_is_set_is_not_tried(make_settings: MakeSettings, settings: dict[str, str]) -> None:
    chosen = make_settings(**settings)
    assert choose_path(material.segments(), TITLES, chosen) == Choice("path", settings["path"], "it is set")
    assert choose_judge(material.pairs(), material.segments(), chosen).value == settings["judge"]
    packaged = Settings.model_validate({"paths": {"store": chosen.paths.store}})
    assert choose_path(material.segments(), TITLES, packaged).value == "completion"
    assert choose_judge(material.pairs(), material.segments(), packaged).value == "measured"


def test_both_judges_are_kept_and_must_pass(make_settings: MakeSettings, encoder: Encoder) -> None:
    texts = material.TEXTS
    rows = [
        material.pair_row("q1", "How many litres does the tank of the pump hold when it starts?", "s1"),
        material.pair_row("q2", "When are invoices sent in a month and when is payment due?", "s4"),
        material.pair_row(
            "q3", "Which colour has the lamp on the pump?", "s2", answer="Nobody has ever said so anywhere."
        ),
    ]
    pairs = material.pairs(*rows)
    with stub_endpoint(_model(judge=_verdict({"invoices": 3.0}, 9.0))) as stub:
        settings = make_settings(stub.base_url, judge="both", min_accuracy=2)
        scoring = score_pairs("b1", pairs, material.segments(), settings, encoder)
        alone = score_pairs("b1", pairs, material.segments(), make_settings(judge="measured"), encoder).scores
    scores = scoring.scores
    assert scores["judge"].unique().to_list() == ["stub"]
    names = (*CRITERIA, "overall")
    assert scores.select(f"measured_{name}" for name in names).rows() == alone.select(names).rows()
    assert alone.select(f"measured_{name}" for name in names).null_count().sum_horizontal().item() == 3 * len(names)
    assert alone["judge"].unique().to_list() == [MEASURED]
    decided = select_pairs({"b1": pairs}, {"b1": scores}, material.corpus(texts), settings, encoder).decisions
    details = dict(decided.select("qa_id", "detail").iter_rows())
    assert not dict(decided.select("qa_id", "accepted").iter_rows())["q2"]
    assert details["q2"].startswith("3, bound"), "the judge says no"
    assert details["q3"].startswith("measured "), "the measures say no"
    assert PLANTED not in scoring.rejects["reason"].to_list()
