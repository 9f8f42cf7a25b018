"""Documents to accepted question-answer pairs: per batch up to the scores, then over all batches."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.corpus.batches import load_batch, load_batches
from embed_pipeline.corpus.boilerplate import find_boilerplate, remember_lines
from embed_pipeline.corpus.current import current_corpus, lost_titles, present_documents
from embed_pipeline.corpus.documents import clean_documents, read_documents
from embed_pipeline.corpus.segments import longest_segment, split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.proven import open_base_encoder
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.budget import Usage
from embed_pipeline.orchestration.absence import forget_answers
from embed_pipeline.orchestration.outputs import explained, in_this_run, stored
from embed_pipeline.orchestration.partitions import (
    Condition,
    all_batches,
    chosen_batch,
    document_batches,
    follow_batches,
)
from embed_pipeline.orchestration.presentation import (
    counts,
    described,
    figures,
    histograms,
    read_pairs,
    shown_table,
    traced_pairs,
)
from embed_pipeline.orchestration.reviewing import QA_REVIEWS, Reviews
from embed_pipeline.settings import Settings
from embed_pipeline.storage import BatchTables
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.coverage import ASKED, mark_asked
from embed_pipeline.synthesis.example_queries import ExampleQueries
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import score_pairs
from embed_pipeline.synthesis.select import select_pairs
from embed_pipeline.synthesis.trial import choose_judge, choose_path
from embed_pipeline.text.languages import AUTO, dominant_language
from embed_pipeline.text.passages import with_titles
from embed_pipeline.training_data.labels import with_labelled_passages
from embed_pipeline.training_data.pair_sources import collect_pairs

logger = logging.getLogger(__name__)
GROUP = "1_sdg"
PAIRS_BY_BATCH = "pairs_by_batch"
"""Metadata of qa_dataset: pairs of each batch, label set and kind of structure: a schedule sees how many are new."""
_LINES_SHOWN = 50


def _base_encoder(settings: Settings) -> Encoder:
    return Encoder.load(settings.embedding.reading_model, settings.embedding)


def _out(name: str, kinds: set[str], condition: Condition | None = None) -> dg.AssetOut:
    return dg.AssetOut(**described(name, GROUP, kinds), automation_condition=condition)


def _encoder_of(segments: pl.DataFrame, settings: Settings) -> Callable[[], Encoder]:
    """Gives the base encoder for segments with their titles, loaded when it is first asked for."""
    return cache(lambda: open_base_encoder(settings, segments))


def _asked_about(
    context: dg.AssetExecutionContext, segments: pl.DataFrame, settings: Settings, load_encoder: Callable[[], Encoder]
) -> pl.DataFrame:
    """The batch's segments with a mark at those that the language model is asked about."""
    batch = load_batch(settings.paths.root, chosen_batch(context))
    return mark_asked(batch.name, segments, batch.share, settings, load_encoder)


def _titles(documents: pl.DataFrame) -> dict[str, str]:
    """Document id to title."""
    return dict(documents.select("document_id", "title").iter_rows())


def _characters(documents: pl.DataFrame) -> int:
    """Length of all texts."""
    return int(documents["text"].str.len_chars().sum())


def _counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    """How often each value occurs, for metadata; nulls are not counted."""
    return dict(frame[column].drop_nulls().value_counts(sort=True).iter_rows())


def _judged(scores: pl.DataFrame) -> dict[str, Any]:
    """Mean and distribution of every score; nothing where nothing was judged."""
    if scores.is_empty():
        return {}
    means = {f"mean_{name}": scores[name].mean() for name in (*CRITERIA, "overall")}
    samples = {name.replace("_", " "): scores[name].to_list() for name in CRITERIA}
    return {**means, "scores": histograms(samples, 1, 10)}


def _usage(usage: Usage, settings: Settings) -> dict[str, Any]:
    """What was asked of the language model; nothing where nothing was, and no cost where no price is set."""
    llm = settings.llm
    priced = llm.price_per_million_prompt_tokens or llm.price_per_million_completion_tokens
    counted = {name: value for name, value in asdict(usage).items() if name != "cost" or priced}
    return {"usage": counted} if usage.calls or usage.cached else {}


def _people(generated: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> dict[str, Any]:
    """How far the accepted questions are from ``synthesis.example_queries``; nothing where one of them is missing."""
    examples = ExampleQueries.of(settings)
    if examples is None or generated.is_empty():
        return {}
    found = examples.distances(generated["question"].to_list(), corpus["text"].to_list(), settings.seed)
    columns = ["measure", "generated", "people", "distance"]
    return {
        "distance_to_example_queries": sum(one.distance for one in found) / len(found),
        "example_queries": shown_table(columns, [[getattr(one, name) for name in columns] for one in found]),
    }


@dg.multi_asset(
    outs={
        "documents": _out("documents", {"python"}),
        "rejected_documents": _out("rejected_documents", {"python"}),
        "boilerplate": _out("boilerplate", {"python"}),
    },
    partitions_def=document_batches,
)
def documents(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> Iterator[dg.Output[Any]]:
    """Read the files of the batch and take boilerplate out; what is no document is set aside with its reason."""
    with explained():
        batch = load_batch(settings.paths.root, chosen_batch(context))
        alone = len(load_batches(settings.paths.root)) == 1
        read, rejected = read_documents(batch, settings, only_batch=alone)
        cleaned, lines = clean_documents(read, batch, settings)
        if lines.height:
            remember_lines(settings.paths.root, lines["line_id"].to_list(), batch.name)
    facts = {"deleted": int(read["deleted"].sum()), "set_aside": rejected.height, **_counts(rejected, "reason")}
    facts |= {f"skipped {reason}": count for reason, count in batch.skipped.items()}
    gone, shown = {}, {}
    if settings.corpus.boilerplate_share != "off":
        gone = {"boilerplate_characters": _characters(read) - _characters(cleaned), "boilerplate_lines": lines.height}
    if lines.height:
        most = ["text", "documents", "removed_from"]
        shown = {"most_frequent": shown_table(most, lines.select(most).head(_LINES_SHOWN).rows())}
    yield stored(context, cleaned, settings, asset="documents", metadata={**facts, **gone})
    yield stored(context, rejected, settings, asset="rejected_documents")
    yield stored(context, lines, settings, asset="boilerplate", metadata=shown)


@dg.asset(
    **described("segments", GROUP, {"python"}),
    partitions_def=document_batches,
)
def segments(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings], documents: pl.DataFrame
) -> dg.Output[Any]:
    """Cut the documents at headings and sentence ends."""
    with explained():
        encoder = _base_encoder(settings)
        frame = split_segments(
            documents,
            settings.corpus,
            encoder.count_tokens,
            max_tokens=encoder.passage_tokens,
            count_unknown=encoder.count_unknown,
            context=settings.embedding.context,
        )
    facts = {
        "longest_allowed": longest_segment(settings.corpus, encoder.passage_tokens),
        **(
            {"longest_tokens": frame["token_count"].max(), "mean_tokens": frame["token_count"].mean()}
            if frame.height
            else {}
        ),
        "segments_with_withheld_text": frame.filter(pl.col("withheld") != "").height,
    }
    return stored(context, frame, settings, metadata=facts)


@dg.asset(
    **described("document_artifacts", GROUP, {"openai"}),
    partitions_def=document_batches,
    pool="llm",
)
def document_artifacts(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    documents: pl.DataFrame,
    segments: pl.DataFrame,
) -> dg.Output[Any]:
    """Find what each document is about."""
    titled = with_titles(segments, documents)
    with explained(context):
        settings = in_this_run(context, settings)
        forget_answers(settings.paths)
        asked = _asked_about(context, titled, settings, _encoder_of(titled, settings))
        path = choose_path(asked, _titles(documents), settings)
        found = extract_artifacts(chosen_batch(context), asked, path.applied(settings))
    usage = figures({**_usage(found.usage, settings), "dropped": dict(found.dropped), **path.facts()})
    return stored(context, found.artifacts, settings, metadata={**_counts(found.artifacts, "kind"), **usage})


@dg.multi_asset(
    outs={
        "qa_pairs": _out("qa_pairs", {"openai"}),
        "rejected_pairs": _out("rejected_pairs", {"openai"}),
    },
    partitions_def=document_batches,
    pool="llm",
)
def qa_pairs(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    documents: pl.DataFrame,
    segments: pl.DataFrame,
    document_artifacts: pl.DataFrame,
) -> Iterator[dg.Output[Any]]:
    """Have questions written about every segment, and about groups of neighbours."""
    titles, titled = _titles(documents), with_titles(segments, documents)
    with explained(context):
        settings = in_this_run(context, settings)
        forget_answers(settings.paths)
        load_encoder = _encoder_of(titled, settings)
        asked = _asked_about(context, titled, settings, load_encoder)
        path = choose_path(asked, titles, settings)
        made = generate_pairs(
            chosen_batch(context),
            asked,
            document_artifacts,
            titles,
            path.applied(settings),
            load_encoder,
        )
    kinds = {name: counts(made.pairs[name]) for name in ("hop_count", "query_type", "style")}
    about = {"segments_asked_about": int(asked[ASKED].sum())}
    shown = figures({**_usage(made.usage, settings), **kinds, **about, **path.facts()})
    yield stored(context, made.pairs, settings, asset="qa_pairs", metadata=shown)
    reasons = figures({"reason": counts(made.rejects["reason"])})
    yield stored(context, made.rejects, settings, asset="rejected_pairs", metadata=reasons)


@dg.multi_asset(
    outs={name: _out(name, {"openai"}) for name in ("qa_scores", "rejected_judgements")},
    partitions_def=document_batches,
    pool="llm",
)
def qa_scores(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    qa_pairs: pl.DataFrame,
    documents: pl.DataFrame,
    segments: pl.DataFrame,
) -> Iterator[dg.Output[Any]]:
    """Score every pair, and measure whether its question finds its sources."""
    with explained(context):
        settings = in_this_run(context, settings)
        forget_answers(settings.paths)
        titled = with_titles(segments, documents)
        encoder = _encoder_of(titled, settings)()
        judge = choose_judge(qa_pairs, titled, settings)
        scoring = score_pairs(chosen_batch(context), qa_pairs, titled, judge.applied(settings), encoder)
    usage = {**_usage(scoring.usage, settings), "judges": _counts(scoring.scores, "judge"), **judge.facts()}
    shown = figures({**_judged(scoring.scores), **usage})
    yield stored(context, scoring.scores, settings, asset="qa_scores", metadata=shown)
    yield stored(context, scoring.rejects, settings, asset="rejected_judgements")


@dg.multi_asset(
    outs={
        name: dg.AssetOut(
            **described(name, GROUP, {"python"}),
            automation_condition=follow_batches(),
        )
        for name in ("corpus", "left_out_documents")
    },
    ins={"documents": all_batches(), "segments": all_batches()},
)
def corpus(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    documents: BatchTables,
    segments: BatchTables,
) -> Iterator[dg.Output[Any]]:
    """Put together the newest version of every document still there, and the passages that labels bring along."""
    labelled = settings.training_data.label_sets
    whole = documents.only(segments)
    with explained():
        frame, left_out = current_corpus(whole, segments, settings.corpus)
        recurring = find_boilerplate(whole, present_documents(whole), settings.corpus)
        if recurring:
            remember_lines(settings.paths.root, recurring)
        if labelled:
            count_tokens = _base_encoder(settings).count_tokens
            frame = with_labelled_passages(frame, labelled, count_tokens, settings.embedding.context)
    unfinished = sorted(documents.keys() - segments.keys())
    facts = {"documents": frame["document_id"].n_unique(), "tokens": int(frame["token_count"].sum())}
    facts |= figures({"batches": len(segments), "batches_left_out": unfinished})
    if settings.embedding.context == "none" and (lost := lost_titles(frame)):
        facts |= figures({"titles_in_no_segment": lost})
        logger.log(
            logging.WARNING if 2 * lost > facts["documents"] else logging.INFO,
            "of %d of %d documents the title is in no segment, so nothing of it is embedded; embedding.context=title "
            "puts it before each, which gained where titles say what a text is about (docs/tuning.md)",
            lost,
            facts["documents"],
        )
    if settings.corpus.boilerplate_share != "off":
        facts |= {"boilerplate_for_later_batches": len(recurring)}
    language = settings.corpus.language
    facts |= figures({"language": dominant_language(frame["text"]) if language == AUTO else language})
    yield stored(context, frame, settings, asset="corpus", metadata=facts)
    yield stored(context, left_out, settings, asset="left_out_documents", metadata=_counts(left_out, "reason"))


@dg.multi_asset(
    outs={name: _out(name, {"python"}, follow_batches("corpus")) for name in ("qa_dataset", "qa_decisions")},
    ins={"qa_pairs": all_batches(), "qa_scores": all_batches()},
    deps=[QA_REVIEWS],
)
def qa_dataset(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    qa_pairs: BatchTables,
    qa_scores: BatchTables,
    corpus: pl.DataFrame,
    left_out_documents: pl.DataFrame,
) -> Iterator[dg.Output[Any]]:
    """Accept the pairs over the thresholds, or that people accept; add those of the other sources and of labels."""
    with explained():
        reviews = Reviews.of(settings.paths.root)
        encoder = _encoder_of(corpus, settings)()
        selection = select_pairs(qa_pairs, qa_scores, corpus, settings, encoder, reviewed=reviews.verdicts)
        dataset = collect_pairs(selection.dataset, corpus, settings, left_out_documents)
        people = _people(selection.dataset, corpus, settings)
    asked = selection.dataset["segment_ids"].explode().drop_nulls().n_unique()
    sources = dataset.select(source=pl.coalesce("batch", "label_set", "origin"))
    facts = {
        **({"accepted_share": selection.decisions["accepted"].mean()} if selection.decisions.height else {}),
        **({"segment_coverage": asked / max(1, corpus.height)} if settings.training_data.generates else {}),
        **figures({name: counts(dataset[name]) for name in ("hop_count", "query_type", "origin")}),
        PAIRS_BY_BATCH: dg.MetadataValue.json(_counts(sources, "source")),
    }
    shapes = {**people, "pairs": read_pairs(dataset, corpus), "traced": traced_pairs(dataset, corpus)}
    read = reviews.version
    yield stored(context, dataset, settings, asset="qa_dataset", metadata={**facts, **shapes}, read=read)
    reasons = figures({"reason": counts(selection.decisions["reason"])})
    yield stored(context, selection.decisions, settings, asset="qa_decisions", metadata=reasons, read=read)
