"""Accepted pairs to training examples: split, hard negatives, one example for each question and positive."""

import math
from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.embedding.proven import open_base_encoder
from embed_pipeline.evaluation.base_comparison import COLUMNS, compare_bases, comparison_rows
from embed_pipeline.evaluation.plots import candidate_bars
from embed_pipeline.evaluation.query_sets import known_sets
from embed_pipeline.orchestration.forgetting import remember_examples
from embed_pipeline.orchestration.io_managers import ParquetIOManager
from embed_pipeline.orchestration.outputs import explained, in_this_run, stored
from embed_pipeline.orchestration.partitions import follow
from embed_pipeline.orchestration.presentation import bars, counts, described, figures, histograms, picture, shown_table
from embed_pipeline.orchestration.reviewing import QA_REVIEWS, Reviews
from embed_pipeline.settings import Settings
from embed_pipeline.tables import BASE_COMPARISON, BASE_MODEL
from embed_pipeline.training_data.audit import HARDEST_COLUMNS, audit_negatives
from embed_pipeline.training_data.negatives import mine_hard_negatives, unroll
from embed_pipeline.training_data.questions import training_questions
from embed_pipeline.training_data.split import split_dataset

GROUP = "2_prep"
_COMPARED_ON = ("corpus", "left_out_documents", "qa_dataset", "dataset_split")


@dg.asset(
    **described("dataset_split", GROUP, {"python"}),
    automation_condition=follow("qa_dataset"),
)
def dataset_split(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    tables: dg.ResourceParam[ParquetIOManager],
    qa_dataset: pl.DataFrame,
    corpus: pl.DataFrame,
) -> dg.Output[Any]:
    """Put each document group on one side; what was in test before stays there."""
    previous = tables.read_previous("dataset_split")
    with explained():
        frame = split_dataset(qa_dataset, corpus, settings, previous)
    sides = dict(frame["split"].value_counts(sort=True).iter_rows())
    facts = {"groups": frame["group_id"].n_unique(), **sides, "split": counts(frame["split"])}
    return stored(context, frame, settings, metadata=figures(facts))


@dg.multi_asset(
    outs={
        name: dg.AssetOut(**described(name, GROUP, {"pytorch"}), automation_condition=follow("dataset_split"))
        for name in ("base_comparison", "base_model")
    },
    # Read where there is something to compare, and not before.
    deps=_COMPARED_ON,
    pool="gpu",
)
def base_comparison(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    tables: dg.ResourceParam[ParquetIOManager],
) -> Iterator[dg.Output[Any]]:
    """Measure the candidates, if any are named, and say which model is trained."""
    frame = BASE_COMPARISON.empty()
    shown: dict[str, Any] = {}
    model, reason = settings.embedding.reading_model, "embedding.candidates names none"
    if settings.embedding.candidates:
        with explained():
            corpus, left_out, qa, split = (tables.read_stored(name) for name in _COMPARED_ON)
            sets = known_sets(qa, split, corpus, left_out, settings.evaluation.query_sets)
            frame, reason = compare_bases(corpus, sets, settings)
        model = frame.filter("chosen")["model"][0]
        by_set = frame.group_by("query_set", maintain_order=True)
        shown = {
            "comparison": shown_table(COLUMNS, comparison_rows(frame)),
            "headline": picture(candidate_bars(frame), "nDCG@10 of the untuned candidates"),
            **{f"nDCG@10 {name[0]}": bars(dict(rows.select("model", "ndcg_10").iter_rows())) for name, rows in by_set},
        }
    yield stored(context, frame, settings, asset="base_comparison", metadata={**shown, "reason": reason})
    base = BASE_MODEL.frame([{"model": model}])
    yield stored(context, base, settings, asset="base_model", metadata={"model": model, "reason": reason})


@dg.asset(
    **described("hard_negatives", GROUP, {"pytorch"}),
    pool="gpu",
    deps=[QA_REVIEWS],
    automation_condition=follow("base_model"),
)
def hard_negatives(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    base_model: pl.DataFrame,
    qa_dataset: pl.DataFrame,
    dataset_split: pl.DataFrame,
    corpus: pl.DataFrame,
    left_out_documents: pl.DataFrame,
) -> dg.Output[Any]:
    """Mine the most similar wrong segments under the ceiling for every training question."""
    settings = in_this_run(context, settings.with_base(base_model["model"].item()))
    with explained():
        reviews = Reviews.of(settings.paths.root)
        questions = training_questions(
            qa_dataset, dataset_split, corpus, settings, left_out_documents, reviewed=reviews.verdicts
        )
        encoder = open_base_encoder(settings, corpus)
        frame = mine_hard_negatives(questions, corpus, settings, encoder)
    audit = audit_negatives(frame, corpus, settings)
    suspected = audit.false_negatives.rate
    ceiling = 1 - settings.training_data.relative_margin
    lowest = math.floor(10 * min(audit.ratios, default=0)) / 10
    facts = {
        "negatives": audit.negatives,
        "questions_with_all_negatives": audit.full_share if frame.height else None,
        "turned_away_above_ceiling": int(frame["above_ceiling"].sum()),
        "suspected_false_negatives": suspected,
        "negative_to_positive": histograms({"similarity": audit.ratios}, lowest, 1, mark=ceiling),
        "hardest": shown_table(HARDEST_COLUMNS, audit.hardest) if audit.hardest else None,
        "origin": bars(audit.origins),
    }
    return stored(context, frame, settings, metadata=figures(facts), read=reviews.version)


@dg.asset(**described("training_examples", GROUP, {"python"}), automation_condition=follow("hard_negatives"))
def training_examples(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], hard_negatives: pl.DataFrame
) -> dg.Output[Any]:
    """Unroll each question into one example for each positive."""
    with explained():
        frame = unroll(hard_negatives)
    remember_examples(settings.paths.root, frame)
    return stored(context, frame, settings, metadata=figures({"origin": counts(frame["origin"])}))
