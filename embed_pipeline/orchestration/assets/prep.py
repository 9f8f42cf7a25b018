"""Accepted pairs to training examples: split, hard negatives, one example for each question and positive."""

from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.orchestration import plots
from embed_pipeline.orchestration.conditions import follow
from embed_pipeline.orchestration.failures import explained
from embed_pipeline.orchestration.forgetting import remember_examples
from embed_pipeline.orchestration.outputs import stored
from embed_pipeline.orchestration.presentation import described, figures, picture
from embed_pipeline.settings import load_settings
from embed_pipeline.training_data.audit import audit_negatives, ratio_histogram
from embed_pipeline.training_data.examples import unroll
from embed_pipeline.training_data.negatives import mine_hard_negatives
from embed_pipeline.training_data.questions import training_questions
from embed_pipeline.training_data.split import split_dataset

GROUP = "2_prep"
_SETTINGS = load_settings()


@dg.asset(
    **described("dataset_split", GROUP, {"python"}),
    code_version=_SETTINGS.digest("training_data"),
    required_resource_keys={"tables"},
    automation_condition=follow("qa_dataset"),
)
def dataset_split(context: dg.AssetExecutionContext, qa_dataset: pl.DataFrame, corpus: pl.DataFrame) -> dg.Output[Any]:
    """Put each document group on one side; what was in test before stays there."""
    settings = load_settings()
    previous = context.resources.tables.read_previous("dataset_split")
    with explained():
        frame = split_dataset(qa_dataset, corpus, settings, previous)
    sides = dict(frame["split"].value_counts(sort=True).iter_rows())
    shown = {"sides": picture(plots.counts(frame["split"], "side"), "pairs on each side")}
    facts = {"groups": frame["group_id"].n_unique(), **sides, **shown}
    return stored(context, frame, settings, metadata=facts)


@dg.asset(
    **described("hard_negatives", GROUP, {"pytorch"}),
    code_version=_SETTINGS.digest("training_data", "embedding"),
    pool="gpu",
    automation_condition=follow("dataset_split"),
)
def hard_negatives(
    context: dg.AssetExecutionContext, qa_dataset: pl.DataFrame, dataset_split: pl.DataFrame, corpus: pl.DataFrame
) -> dg.Output[Any]:
    """Mine the most similar wrong segments under the ceiling for every training question."""
    settings = load_settings()
    with explained():
        questions = training_questions(qa_dataset, dataset_split, corpus, settings)
        encoder = Encoder.load(settings.embedding.model, settings.embedding, settings.paths.store / "vectors")
        frame = mine_hard_negatives(questions, corpus, settings, encoder)
    audit = audit_negatives(frame, corpus, settings)
    histogram = ratio_histogram(audit.ratios, settings.training_data.relative_margin)
    facts = {
        "negatives": audit.negatives,
        "questions_with_all_negatives": audit.full_share,
        "turned_away_above_ceiling": int(frame["above_ceiling"].sum()),
        "suspected_false_negatives": audit.false_negatives.rate,
        "ratio": picture(histogram, "similarity of negatives, as a share of the positive's"),
        "hardest": dg.MetadataValue.md(audit.hardest),
        **figures({"origins": audit.origins}),
    }
    return stored(context, frame, settings, metadata=facts)


@dg.asset(
    **described("training_examples", GROUP, {"python"}), code_version="1", automation_condition=follow("hard_negatives")
)
def training_examples(context: dg.AssetExecutionContext, hard_negatives: pl.DataFrame) -> dg.Output[Any]:
    """Unroll each question into one example for each positive."""
    with explained():
        frame = unroll(hard_negatives)
    remember_examples(load_settings().paths.root, frame)
    origins = dict(frame["origin"].value_counts(sort=True).iter_rows())
    return stored(context, frame, load_settings(), metadata=figures({"origins": origins}))
