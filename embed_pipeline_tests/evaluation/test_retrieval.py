"""The comparison of base and tuned model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline.evaluation.query_sets import EvaluationError, Passages, QuerySet
from embed_pipeline.evaluation.report import headline_rows
from embed_pipeline.evaluation.retrieval import Comparison, compare, searched_by
from embed_pipeline.settings import Settings
from embed_pipeline.tables import FUSION_WEIGHTS, QUESTION_RESULTS, RETRIEVAL_EVALUATION, validate
from embed_pipeline_tests.evaluation import material
from embed_pipeline_tests.tiny import write_tiny_model

SETTINGS = Settings.model_validate({"embedding": {"device": "cpu"}, "evaluation": {"bootstrap_samples": 200}})


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=9)


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, other_model: Path) -> Comparison:
    sets = [material.generated(), material.labelled()]
    dev = dataclasses.replace(material.generated(), name="dev")
    return compare(tiny_model, other_model, material.corpus(), sets, SETTINGS, dev=dev)


def figure(frame: pl.DataFrame, **where: object) -> dict[str, float]:
    return frame.filter(**where).row(0, named=True)


def test_every_metric_of_every_system_is_there_with_slices(comparison: Comparison) -> None:
    validate(comparison.metrics, RETRIEVAL_EVALUATION)
    validate(comparison.questions, QUESTION_RESULTS)
    validate(comparison.fusions, FUSION_WEIGHTS)
    assert comparison.fusions["query_set"].unique().sort().to_list() == ["dev", "generated", "people"]
    generated, people, several = 3 * 5 * 5 * 6, 5 * 5 * 6, 5 * 5
    assert comparison.metrics.height == generated + people + several
    assert set(comparison.verdicts) == {"generated", "people"}
    base = comparison.metrics.filter(system="base")
    assert not base.select("difference", "difference_low", "difference_high").to_numpy().any()
    assert (
        figure(comparison.metrics, slice="hop_count=2", metric="MAP", k=5, system="tuned", query_set="generated")[
            "queries"
        ]
        == 2
    )


def test_a_question_that_is_its_passage_is_found_by_every_dense_model(comparison: Comparison) -> None:
    for system in ("base", "tuned"):
        found = figure(comparison.metrics, query_set="generated", slice="all", system=system, metric="nDCG", k=10)
        assert found["value"] == pytest.approx(1.0)


def test_the_hybrids_rank_by_the_weights_that_dev_chose(comparison: Comparison) -> None:
    for name in ("generated", "people"):
        for system in ("hybrid_base", "hybrid_tuned"):
            chosen = figure(comparison.fusions, query_set=name, system=system, chosen=True)
            found = figure(comparison.metrics, query_set=name, slice="all", system=system, metric="nDCG", k=10)
            assert found["value"] == pytest.approx(chosen["ndcg_10"])


def test_all_recall_is_measured_on_the_questions_that_need_several_documents_and_absent_elsewhere(
    tiny_model: Path, other_model: Path
) -> None:
    hops = {"q0": {"s01": 1, "s03": 1}, "q1": {"s02": 1, "s05": 1}, "q2": {"s04": 1}, "q3": {"s00": 1, "s19": 1}}
    texts = dict(material.corpus().select("segment_id", "text").iter_rows())
    asked = QuerySet(
        "generated",
        {query: " ".join(texts[segment] for segment in rel) for query, rel in hops.items()},
        hops,
        slices={"hop_count": {"q0": "2", "q1": "2", "q2": "1", "q3": "1"}},
    )
    found = compare(tiny_model, other_model, material.corpus(), [asked], SETTINGS)
    rows = found.metrics.filter(metric="AllRecall")
    assert rows["queries"].unique().to_list() == [2]
    assert rows["slice"].unique().sort().to_list() == ["all", "hop_count=2"]
    each = found.questions.select("query_id", "base_all_recall_10", "tuned_all_recall_10")
    assert each.filter(pl.col("query_id").is_in(["q2", "q3"]))["base_all_recall_10"].to_list() == [None, None]
    tuned = figure(rows, system="tuned", slice="all", k=10)
    assert tuned["value"] == each["tuned_all_recall_10"].mean()
    assert tuned["difference"] == each["tuned_all_recall_10"].mean() - each["base_all_recall_10"].mean()
    assert tuned["difference_low"] <= tuned["difference"] <= tuned["difference_high"]
    assert figure(rows, system="base", slice="all", k=20)["value"] == 1.0
    summary = {row[1]: row[4] for row in headline_rows(found.metrics)}
    assert summary["tuned"] == f"{tuned['value']:.4f} (2)"
    single = compare(tiny_model, tiny_model, material.corpus(), [material.generated()], SETTINGS)
    assert single.metrics.filter(metric="AllRecall").is_empty()
    assert {row[4] for row in headline_rows(single.metrics)} == {""}


def test_differences_are_tuned_less_base(comparison: Comparison) -> None:
    questions = comparison.questions.filter(query_set="people")
    difference = (questions["tuned_ndcg_10"] - questions["base_ndcg_10"]).mean()
    found = figure(comparison.metrics, query_set="people", slice="all", system="tuned", metric="nDCG", k=10)
    assert found["difference"] == pytest.approx(difference)
    assert found["difference_low"] <= found["difference"] <= found["difference_high"]
    assert comparison.verdicts["people"].difference == pytest.approx(difference)


def test_every_question_says_where_its_answer_was_found_and_what_became_of_it(comparison: Comparison) -> None:
    questions = comparison.questions
    assert (questions["change"] == questions["tuned_ndcg_10"] - questions["base_ndcg_10"]).all()
    for row in questions.to_dicts():
        assert row["outcome"] == ("won" if row["change"] > 0 else "lost" if row["change"] < 0 else "same")
        for system in ("base", "tuned", "bm25"):
            rank = row[f"{system}_rank"]
            assert (row[f"{system}_ndcg_10"] > 0) == (rank is not None and rank <= 10)
    own = questions.filter(query_set="generated")
    assert own["base_rank"].to_list() == [1] * own.height


def test_the_same_text_is_the_same_answer(tiny_model: Path) -> None:
    # s19 repeats s00, so both are found and both count: the ranking could not tell them apart.
    asked = QuerySet("generated", {"q": "the same text"}, {"q": {"s19": 1}})
    found = compare(tiny_model, tiny_model, material.corpus(), [asked], SETTINGS)
    assert figure(found.metrics, system="base", metric="MRR", k=1)["value"] == 1.0
    assert figure(found.metrics, system="base", metric="Recall", k=1)["value"] == 0.5
    assert figure(found.metrics, system="base", metric="Recall", k=5)["value"] == 1.0


def test_a_set_with_its_own_corpus_is_evaluated_over_that(tiny_model: Path) -> None:
    own = QuerySet("own", {"q": "python"}, {"q": {"d1": 1}}, corpus=Passages(("d1", "d2"), ("python", "list")))
    found = compare(tiny_model, tiny_model, material.corpus(), [own], SETTINGS)
    assert found.questions["base_first"].to_list() == found.questions["bm25_first"].to_list() == ["d1"]
    assert set(found.passages) == {"d1"}


def test_readers_are_warned(comparison: Comparison) -> None:
    text = "\n".join(comparison.warnings)
    assert "generated: only 6 questions" in text
    assert "occur in the passage that answers them" in text
    assert "embed the whole corpus again" in text
    assert "no questions written by people" not in text


def test_inputs_that_cannot_be_evaluated_are_named(tiny_model: Path) -> None:
    def evaluate(*sets: QuerySet) -> None:
        compare(tiny_model, tiny_model, material.corpus(), sets, SETTINGS)

    with pytest.raises(EvaluationError, match="no query set"):
        evaluate()
    with pytest.raises(EvaluationError, match="'generated' has no queries"):
        evaluate(dataclasses.replace(material.generated(), queries={}))
    with pytest.raises(EvaluationError, match="two query sets are named"):
        evaluate(material.generated(), material.generated())
    with pytest.raises(EvaluationError, match="'q' is answered by 's99'"):
        evaluate(QuerySet("x", {"q": "a"}, {"q": {"s99": 1}}))


def with_context(context: str) -> Settings:
    return SETTINGS.model_copy(update={"embedding": SETTINGS.embedding.model_copy(update={"context": context})})


def test_segments_are_searched_with_their_context_and_own_corpora_as_they_are() -> None:
    own = QuerySet("own", {"q": "python"}, {"q": {"d1": 1}}, corpus=Passages(("d1", "d2"), ("python", "list")))
    (ours, documents), (theirs, _) = searched_by([material.generated(), own], material.corpus(), "title")
    assert ours.texts[3] == f"object\n\n{ours.said[3]}"
    assert documents[3] == "object.md"
    assert theirs == own.corpus


def test_the_same_text_under_two_titles_is_the_same_answer(tiny_model: Path) -> None:
    asked = QuerySet("generated", {"q": "value the same text"}, {"q": {"s19": 1}})
    found = compare(tiny_model, tiny_model, material.corpus(), [asked], with_context("title"))
    assert figure(found.metrics, system="base", metric="Recall", k=20)["value"] == 1.0
    assert found.questions["base_rank"].to_list() == [1]


@pytest.mark.slow
def test_each_release_is_measured_with_its_own_context(tiny_model: Path) -> None:
    sets = [material.generated(), material.labelled()]
    plain = compare(tiny_model, tiny_model, material.corpus(), sets, SETTINGS)
    titled = compare(tiny_model, tiny_model, material.corpus(), sets, with_context("title"))
    mixed = compare(tiny_model, tiny_model, material.corpus(), sets, with_context("title"), base_context="none")

    def ranks(comparison: Comparison, system: str) -> list[float]:
        return comparison.metrics.filter(system=system, slice="all")["value"].to_list()

    assert ranks(plain, "base") != ranks(titled, "base")
    assert ranks(mixed, "base") == ranks(plain, "base")
    assert ranks(mixed, "tuned") == ranks(titled, "tuned")
