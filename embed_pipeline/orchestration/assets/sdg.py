"""Documents to accepted question-answer pairs: per batch up to the scores, then over all batches."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline import tables
from embed_pipeline.corpus.batches import load_batch, load_batches
from embed_pipeline.corpus.boilerplate import find_boilerplate, remember_lines
from embed_pipeline.corpus.current import current_corpus, present_documents
from embed_pipeline.corpus.documents import clean_documents, read_documents
from embed_pipeline.corpus.segments import longest_segment, split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.orchestration import plots
from embed_pipeline.orchestration.conditions import Condition, follow_batches
from embed_pipeline.orchestration.failures import explained, transient
from embed_pipeline.orchestration.outputs import stored
from embed_pipeline.orchestration.partitions import all_batches, document_batches
from embed_pipeline.orchestration.presentation import (
    described,
    figures,
    kept_fresh,
    markdown_table,
    picture,
    traced_pairs,
)
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.prompts import (
    ARTIFACT_PROMPTS,
    COMPLETION_PROMPTS,
    JUDGE_PROMPTS,
    STRUCTURED_PROMPTS,
    prompt_version,
)
from embed_pipeline.synthesis.score import score_pairs
from embed_pipeline.synthesis.select import select_pairs
from embed_pipeline.training_data.labels import with_labelled_passages
from embed_pipeline.training_data.pair_sources import collect_pairs, labels_version, sources_version

GROUP = "1_sdg"
PAIRS_BY_BATCH = "pairs_by_batch"
"""Metadata of qa_dataset: batch to its accepted pairs, from which a schedule sees how many are new."""
_LINES_SHOWN = 50
_SETTINGS = load_settings()
_ASKS = "" if _SETTINGS.training_data.generates else "-off"
_GENERATION_VERSION = (
    f"{_SETTINGS.digest('llm', 'synthesis', 'embedding')}-"
    f"{prompt_version(*COMPLETION_PROMPTS, *STRUCTURED_PROMPTS)}{_ASKS}"
)
_DATASET_VERSION = f"{_SETTINGS.digest('synthesis', 'embedding')}-{sources_version(_SETTINGS)}"
_ARTIFACTS_VERSION = f"{_SETTINGS.digest('llm')}-{prompt_version(*ARTIFACT_PROMPTS)}{_ASKS}"


def _encoder(settings: Settings) -> Encoder:
    return Encoder.load(settings.embedding.model, settings.embedding, settings.paths.store / "vectors")


def _out(name: str, kinds: set[str], code_version: str, condition: Condition | None = None) -> dg.AssetOut:
    return dg.AssetOut(**described(name, GROUP, kinds), code_version=code_version, automation_condition=condition)


def _asked_about(segments: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The segments that the language model is asked about: none where no source of pairs is generated."""
    return segments if settings.training_data.generates else segments.clear()


def _characters(documents: pl.DataFrame) -> int:
    """Length of all texts."""
    return int(documents["text"].str.len_chars().sum())


def _counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    """How often each value occurs, for metadata."""
    return dict(frame[column].value_counts(sort=True).iter_rows())


@dg.multi_asset(
    outs={
        "documents": _out("documents", {"python"}, _SETTINGS.digest("corpus")),
        "rejected_documents": _out("rejected_documents", {"python"}, _SETTINGS.digest("corpus")),
        "boilerplate": _out("boilerplate", {"python"}, _SETTINGS.digest("corpus")),
    },
    partitions_def=document_batches,
)
def documents(context: dg.AssetExecutionContext) -> Iterator[dg.Output[Any]]:
    """Read the files of the batch and take boilerplate out; what is no document is set aside with its reason."""
    settings = load_settings()
    with explained():
        batch = load_batch(settings.paths.root, context.partition_key)
        alone = len(load_batches(settings.paths.root)) == 1
        read, rejected = read_documents(batch, settings, only_batch=alone)
        cleaned, lines = clean_documents(read, batch, settings)
        if lines.height:
            remember_lines(settings.paths.root, lines["line_id"].to_list(), batch.name)
    facts = {"deleted": int(read["deleted"].sum()), "set_aside": rejected.height, **_counts(rejected, "reason")}
    facts |= {f"skipped {reason}": count for reason, count in batch.skipped.items()}
    gone = {"boilerplate_characters": _characters(read) - _characters(cleaned), "boilerplate_lines": lines.height}
    most = ["text", "documents", "removed_from"]
    shown = {"most_frequent": markdown_table(most, lines.select(most).head(_LINES_SHOWN).rows())}
    yield stored(context, cleaned, settings, asset="documents", metadata={**facts, **gone})
    yield stored(context, rejected, settings, asset="rejected_documents")
    yield stored(context, lines, settings, asset="boilerplate", metadata=shown)


@dg.asset(
    **described("segments", GROUP, {"python"}),
    partitions_def=document_batches,
    code_version=_SETTINGS.digest("corpus", "embedding"),
)
def segments(context: dg.AssetExecutionContext, documents: pl.DataFrame) -> dg.Output[Any]:
    """Cut the documents at headings and sentence ends."""
    settings = load_settings()
    with explained():
        encoder = _encoder(settings)
        frame = split_segments(documents, settings.corpus, encoder.count_tokens, max_tokens=encoder.passage_tokens)
    facts = {
        "longest_allowed": longest_segment(settings.corpus, encoder.passage_tokens),
        "longest_tokens": frame["token_count"].max() or 0,
        "mean_tokens": frame["token_count"].mean() or 0.0,
    }
    return stored(context, frame, settings, metadata=facts)


@dg.asset(
    **described("document_artifacts", GROUP, {"openai"}),
    partitions_def=document_batches,
    code_version=_ARTIFACTS_VERSION,
    retry_policy=transient,
    pool="llm",
)
def document_artifacts(context: dg.AssetExecutionContext, segments: pl.DataFrame) -> dg.Output[Any]:
    """Find what each document is about."""
    settings = load_settings()
    with explained():
        frame = extract_artifacts(context.partition_key, _asked_about(segments, settings), settings)
    return stored(context, frame, settings, metadata=_counts(frame, "kind"))


@dg.multi_asset(
    outs={
        "qa_pairs": _out("qa_pairs", {"openai"}, _GENERATION_VERSION),
        "rejected_pairs": _out("rejected_pairs", {"openai"}, _GENERATION_VERSION),
    },
    partitions_def=document_batches,
    retry_policy=transient,
    pool="llm",
)
def qa_pairs(
    context: dg.AssetExecutionContext,
    documents: pl.DataFrame,
    segments: pl.DataFrame,
    document_artifacts: pl.DataFrame,
) -> Iterator[dg.Output[Any]]:
    """Have questions written about every segment, and about groups of neighbours."""
    settings = load_settings()
    titles = dict(documents.select("document_id", "title").iter_rows())
    asked = _asked_about(segments, settings)
    with explained():
        made = generate_pairs(
            context.partition_key, asked, document_artifacts, titles, settings, lambda: _encoder(settings)
        )
    shapes = {"hops": picture(plots.counts(made.pairs["hop_count"], "hops"), "pairs by number of hops")}
    usage = figures({"usage": asdict(made.usage), "query_types": _counts(made.pairs, "query_type")})
    yield stored(context, made.pairs, settings, asset="qa_pairs", metadata={**usage, **shapes})
    reasons = figures({"reasons": _counts(made.rejects, "reason")})
    yield stored(context, made.rejects, settings, asset="rejected_pairs", metadata=reasons)


@dg.multi_asset(
    outs={
        name: _out(
            name, {"openai"}, f"{_SETTINGS.digest('llm', 'synthesis', 'embedding')}-{prompt_version(*JUDGE_PROMPTS)}"
        )
        for name in ("qa_scores", "rejected_judgements")
    },
    partitions_def=document_batches,
    retry_policy=transient,
    pool="llm",
)
def qa_scores(
    context: dg.AssetExecutionContext, qa_pairs: pl.DataFrame, segments: pl.DataFrame
) -> Iterator[dg.Output[Any]]:
    """Score every pair, and measure whether its question finds its sources."""
    settings = load_settings()
    with explained():
        scoring = score_pairs(context.partition_key, qa_pairs, segments, settings, _encoder(settings))
    means = {f"mean_{name}": scoring.scores[name].mean() or 0.0 for name in (*tables.CRITERIA, "overall")}
    shown = {"scores": picture(plots.score_histograms(scoring.scores), "scores by criterion")}
    usage = figures({"usage": asdict(scoring.usage), "judges": _counts(scoring.scores, "judge")})
    yield stored(context, scoring.scores, settings, asset="qa_scores", metadata={**means, **shown, **usage})
    yield stored(context, scoring.rejects, settings, asset="rejected_judgements")


@dg.multi_asset(
    outs={
        name: dg.AssetOut(
            **described(name, GROUP, {"python"}),
            code_version=f"{_SETTINGS.digest('corpus')}-{labels_version(_SETTINGS)}",
            automation_condition=follow_batches(),
            freshness_policy=kept_fresh() if name == "corpus" else None,
        )
        for name in ("corpus", "left_out_documents")
    },
    ins={"documents": all_batches(), "segments": all_batches()},
)
def corpus(
    context: dg.AssetExecutionContext, documents: dict[str, pl.DataFrame], segments: dict[str, pl.DataFrame]
) -> Iterator[dg.Output[Any]]:
    """Put together the newest version of every document still there, and the passages that labels bring along."""
    settings = load_settings()
    labelled = settings.training_data.labelled
    whole = {batch: documents[batch] for batch in documents if batch in segments}
    with explained():
        frame, left_out = current_corpus(whole, segments, settings.corpus)
        recurring = find_boilerplate(present_documents(whole), settings.corpus)
        if recurring:
            remember_lines(settings.paths.root, recurring)
        if labelled:
            frame = with_labelled_passages(frame, labelled, _encoder(settings).count_tokens)
    unfinished = sorted(documents.keys() - segments.keys())
    facts = {"documents": frame["document_id"].n_unique(), "tokens": int(frame["token_count"].sum())}
    facts |= figures({"batches": len(segments), "batches_left_out": unfinished})
    facts |= {"boilerplate_for_later_batches": len(recurring)}
    yield stored(context, frame, settings, asset="corpus", metadata=facts)
    yield stored(context, left_out, settings, asset="left_out_documents", metadata=_counts(left_out, "reason"))


@dg.multi_asset(
    outs={
        name: _out(name, {"python"}, _DATASET_VERSION, follow_batches("corpus"))
        for name in ("qa_dataset", "qa_decisions")
    },
    ins={"qa_pairs": all_batches(), "qa_scores": all_batches()},
)
def qa_dataset(
    context: dg.AssetExecutionContext,
    qa_pairs: dict[str, pl.DataFrame],
    qa_scores: dict[str, pl.DataFrame],
    corpus: pl.DataFrame,
) -> Iterator[dg.Output[Any]]:
    """Accept the pairs over the thresholds, one of each question; add those of the other sources and of labels."""
    settings = load_settings()
    with explained():
        selection = select_pairs(qa_pairs, qa_scores, corpus, settings, _encoder(settings))
        dataset = collect_pairs(selection.dataset, corpus, settings)
    asked = selection.dataset["segment_ids"].explode().drop_nulls().n_unique()
    facts = {
        "accepted_share": selection.dataset.height / max(1, selection.decisions.height),
        "segment_coverage": asked / max(1, corpus.height),
        **figures({"query_types": _counts(dataset, "query_type")}),
        PAIRS_BY_BATCH: dg.MetadataValue.json(_counts(dataset, "batch")),
    }
    shapes = {
        "hops": picture(plots.counts(dataset["hop_count"], "hops"), "accepted pairs by hops"),
        "traced": traced_pairs(dataset, corpus, settings.seed),
    }
    yield stored(context, dataset, settings, asset="qa_dataset", metadata={**facts, **shapes})
    reasons = figures({"reasons": _counts(selection.decisions, "reason")})
    yield stored(context, selection.decisions, settings, asset="qa_decisions", metadata=reasons)
