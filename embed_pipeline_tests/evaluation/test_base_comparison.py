"""Candidates for the base model: measured like the base of an evaluation, and chosen within the bounds."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from upath import UPath

from embed_pipeline.evaluation import plots
from embed_pipeline.evaluation.base_comparison import COLUMNS, compare_bases, comparison_rows
from embed_pipeline.evaluation.query_sets import EvaluationError
from embed_pipeline.evaluation.retrieval import compare
from embed_pipeline.orchestration.assets.prep import base_comparison
from embed_pipeline.orchestration.io_managers import ParquetIOManager
from embed_pipeline.settings import Settings, SettingsError, load_settings
from embed_pipeline.tables import DATASET_SPLIT, LEFT_OUT_DOCUMENTS, QA_DATASET
from embed_pipeline_tests.evaluation import material
from embed_pipeline_tests.tiny import write_tiny_model

SETS = [material.generated(), material.labelled()]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One that reads 64 tokens, one of other weights and 48 dimensions, one that reads 8 tokens."""
    folder = tmp_path_factory.mktemp("models")
    other = write_tiny_model(folder / "other", seed=9, dimensions=48)
    return [str(tiny_model), str(other), str(write_tiny_model(folder / "short", max_tokens=8))]


def settings(tmp_path: Path, **embedding: object) -> Settings:
    values = {"device": "cpu", "model": "auto", **embedding}
    return Settings.model_validate(
        {"embedding": values, "evaluation": {"bootstrap_samples": 200}, "paths": {"store": tmp_path}}
    )


@pytest.mark.slow
def test_a_candidate_has_the_figures_of_the_base_in_an_evaluation(models, tmp_path):
    chosen = settings(tmp_path, candidates=models[:2])
    frame, reason = compare_bases(material.corpus(), SETS, chosen)
    assert frame.height == 4
    evaluated = compare(models[0], models[1], material.corpus(), SETS, chosen).metrics.filter(slice="all", k=10)
    for system, model in zip(("base", "tuned"), models, strict=False):
        for name in ("generated", "people"):
            found = frame.row(by_predicate=(pl.col("model") == model) & (pl.col("query_set") == name), named=True)
            for column, metric in (("ndcg_10", "nDCG"), ("recall_10", "Recall")):
                expected = evaluated.filter(query_set=name, system=system, metric=metric)["value"].item()
                assert found[column] == pytest.approx(expected)
                assert found[f"{column}_low"] <= found[column] <= found[f"{column}_high"]
    costs = frame.unique("model", maintain_order=True)
    assert costs["dimensions"].to_list() == [32, 48]
    assert costs["gigaflops"].is_sorted()
    assert (costs["vectors_per_second"] > 0).all()
    # By people's questions.
    best = frame.filter(query_set="people").sort("ndcg_10", descending=True)["model"][0]
    assert frame.filter("chosen")["model"].unique().to_list() == [best]
    assert best in reason
    assert all(len(row) == len(COLUMNS) for row in comparison_rows(frame))
    assert plots.candidate_bars(frame).startswith(b"\x89PNG")


def test_a_model_that_is_set_stays_and_is_compared_too(models, tmp_path):
    frame, _ = compare_bases(material.corpus(), SETS, settings(tmp_path, model=models[1], candidates=models[:1]))
    assert frame["model"].unique(maintain_order=True).to_list() == [models[1], models[0]]
    assert frame.filter("chosen")["model"].unique().to_list() == [models[1]]


def test_a_candidate_that_costs_too_much_or_cuts_segments_is_not_taken(models, tmp_path):
    frame, reason = compare_bases(material.corpus(), SETS, settings(tmp_path, candidates=[models[2], models[0]]))
    assert frame.filter("chosen")["model"].unique().to_list() == [models[0]]
    assert "reads 8 tokens and would cut" in reason
    with pytest.raises(EvaluationError, match=r"no candidate may be taken: .*tiny needs .*max_gigaflops = 1e-06"):
        compare_bases(material.corpus(), SETS, settings(tmp_path, candidates=models[:1], max_gigaflops=1e-6))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"MODEL": "auto"}, "candidates names no model"),
        ({"CANDIDATES": "a,a"}, "named once"),
        ({"CANDIDATES": "a,auto"}, "must be a model"),
    ],
)
def test_candidates_are_models(values, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in values.items():
        monkeypatch.setenv(f"EMBED_PIPELINE_EMBEDDING__{name}", value)
    with pytest.raises(SettingsError, match=says):
        load_settings()


def test_before_a_base_is_chosen_the_first_candidate_reads():
    chosen = Settings.model_validate({"embedding": {"model": "auto", "candidates": ["a", "b"]}})
    assert chosen.embedding.reading_model == "a"
    assert chosen.with_base("b").embedding.reading_model == "b"
    named = Settings.model_validate({"embedding": {"model": "a"}})
    for step in ("segments", "qa_scores", "hard_negatives"):
        assert chosen.digest(step) == named.digest(step)
    assert chosen.digest("base_comparison") != named.digest("base_comparison")


def stored_questions(folder: Path) -> None:
    """Tables with the corpus and the generated questions of :mod:`material`, all of them on the test side."""
    generated, empty = material.generated(), {"document_ids": [], "question": "", "group_id": "g", "reason": ""}
    pairs, sides = [], []
    for query in generated.ids:
        known = {
            "qa_id": query,
            "origin": "generated",
            "question": generated.queries[query],
            "hop_count": 1,
            "hops": [],
        }
        known |= {"segment_ids": list(generated.qrels[query]), "document_ids": []}
        pairs.append({column.name: known.get(column.name) for column in QA_DATASET.columns})
        sides.append({**empty, "qa_id": query, "paths": [], "split": "test"})
    frames = {"corpus": material.corpus(), "left_out_documents": LEFT_OUT_DOCUMENTS.empty()}
    frames |= {"qa_dataset": QA_DATASET.frame(pairs), "dataset_split": DATASET_SPLIT.frame(sides)}
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")


@pytest.mark.slow
def test_the_asset_stores_the_comparison_and_the_choice_apart(models, tmp_path):
    stored_questions(tmp_path)
    tables = ParquetIOManager(UPath(tmp_path), seed=1)
    chosen = settings(tmp_path / "store", candidates=models[:2])
    chosen = chosen.model_copy(update={"evaluation": chosen.evaluation.model_copy(update={"query_sets": ()})})
    result = dg.materialize([base_comparison], resources={"settings": chosen, "tables": tables})
    assert result.success
    frame = tables.read_stored("base_comparison")
    assert frame["query_set"].unique().to_list() == ["generated"]
    assert tables.read_stored("base_model")["model"].to_list() == frame.filter("chosen")["model"].to_list()
    shown = result.asset_materializations_for_node("base_comparison")[0].metadata
    assert {"comparison", "headline", "reason"} <= shown.keys()


def test_without_candidates_nothing_is_read(tmp_path):
    tables = ParquetIOManager(UPath(tmp_path), seed=1)
    resources = {"settings": Settings(), "tables": tables}
    assert dg.materialize([base_comparison], resources=resources).success
    assert tables.read_stored("base_comparison").is_empty()
    assert tables.read_stored("base_model")["model"].to_list() == ["packaged"]
