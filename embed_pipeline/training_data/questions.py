"""What is mined for: the accepted train questions, and for a small set what augments them."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

import polars as pl

from embed_pipeline import tables
from embed_pipeline.settings import Augmentation, Settings
from embed_pipeline.synthesis.words import content_words, words
from embed_pipeline.training_data.groups import DisjointSets
from embed_pipeline.training_data.near_duplicates import (
    join_near_duplicates,
    near_duplicate_questions,
    normalise_question,
)
from embed_pipeline.training_data.split import DEV, TEST, TRAIN
from embed_pipeline.training_data.structure import structure_pairs

GENERATED = "generated"
SCHEMA = tables.HARD_NEGATIVES.schema
COLUMNS = ("qa_id", "origin", "question", "positive_segment_ids")


def training_questions(qa: pl.DataFrame, split: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The train questions and their positives; under ``augment_below`` examples also augmented ones.

    An example is a question with one positive. Augmentation goes through ``training_data.augmentations`` in order
    and stops at ``augment_below`` examples or ``max_augmented_share`` of all. Structure pairs come from documents
    of the train side or of none, never from one of dev or test or a near-duplicate of it, and no augmented question
    repeats a question of dev or test.

    Args:
        qa: frame of :data:`tables.QA_DATASET`.
        split: frame of :data:`tables.DATASET_SPLIT`.
        corpus: frame of :data:`tables.CORPUS`.
        settings: the bounds and the seed.

    Returns:
        Frame of qa_id, origin, question and positive_segment_ids (sorted), sorted by qa_id.
    """
    train = split.filter(pl.col("split") == TRAIN).select("qa_id")
    rows = [
        _row(row["qa_id"], GENERATED, row["question"], row["segment_ids"])
        for row in qa.join(train, on="qa_id", how="semi").sort("qa_id").iter_rows(named=True)
    ]
    wanted = _augmentation_budget(sum(len(row[3]) for row in rows), settings)
    if wanted:
        rows += _first_examples(_augmented(rows, split, corpus, settings), wanted)
    return pl.DataFrame(rows, schema={name: SCHEMA[name] for name in COLUMNS}, orient="row").sort("qa_id")


_Row = tuple[str, str, str, list[str]]


def _row(qa_id: str, origin: str, question: str, positives: Sequence[str]) -> _Row:
    return (qa_id, origin, question, sorted(set(positives)))


def _augmentation_budget(examples: int, settings: Settings) -> int:
    """Augmented examples that are wanted and allowed beside so many others."""
    options = settings.training_data
    missing = max(0, options.augment_below - examples)
    share = options.max_augmented_share
    return missing if share == 1 else min(missing, math.floor(examples * share / (1 - share)))


def _augmented(rows: Sequence[_Row], split: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> list[_Row]:
    """All augmented questions there are, in the order of the setting, shuffled within each origin."""
    origins = settings.training_data.augmentations
    found = _keyword_forms(rows) if "keywords" in origins else []
    structural = tuple(origin for origin in origins if origin != "keywords")
    if structural:
        usable = usable_corpus(corpus, split, settings)
        pairs = structure_pairs(usable, structural, settings.corpus.min_segment_tokens)
        found += [_augmented_row(pair.origin, pair.question, [pair.segment_id]) for pair in pairs]
    ordered = []
    for origin in origins:
        own = sorted(row for row in found if row[1] == origin)
        random.Random(f"{settings.seed} {origin}").shuffle(own)  # noqa: S311 - sampling, not secrets
        ordered += own
    return _unheard(ordered, rows, split, settings)


def _first_examples(rows: Sequence[_Row], most: int) -> list[_Row]:
    """The first rows that together make at most so many examples."""
    chosen, examples = [], 0
    for row in rows:
        if examples + len(row[3]) <= most:
            chosen.append(row)
            examples += len(row[3])
    return chosen


def _keyword_forms(rows: Sequence[_Row]) -> list[_Row]:
    """Each question as people type it into a search box: its content words alone, in order."""
    forms = []
    for _, _, question, positives in rows:
        kept = " ".join(word for word in words(question) if content_words(word))
        if len(kept.split()) > 1 and normalise_question(kept) != normalise_question(question):
            forms.append(_augmented_row("keywords", kept, positives))
    return forms


def _augmented_row(origin: Augmentation, question: str, positives: Sequence[str]) -> _Row:
    identity = "\0".join([origin, question, *sorted(positives)])
    return _row(hashlib.sha256(identity.encode()).hexdigest()[:16], origin, question, positives)


def _unheard(found: Sequence[_Row], rows: Sequence[_Row], split: pl.DataFrame, settings: Settings) -> list[_Row]:
    """Those that repeat no question of dev or test, and no other row word for word with the same answer."""
    held = split.filter(pl.col("split").is_in([DEV, TEST])).sort("qa_id")["question"].to_list()
    threshold = settings.training_data.near_duplicate_questions
    twins = near_duplicate_questions([row[2] for row in found], held, threshold)
    seen = {(normalise_question(row[2]), *row[3]) for row in rows}
    kept = []
    for index, row in enumerate(found):
        key = (normalise_question(row[2]), *row[3])
        if index not in twins and key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def usable_corpus(corpus: pl.DataFrame, split: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Segments of the documents that training may read: on the train side or none, and no copy of a held-out one."""
    held = split.filter(pl.col("split").is_in([DEV, TEST]))
    held_documents = set(held["document_ids"].explode())
    documents = (
        corpus.sort("document_id", "position")
        .group_by("document_id", maintain_order=True)
        .agg(pl.col("text").str.join(""))
    )
    sets = DisjointSets(documents.height)
    join_near_duplicates(documents["text"].to_list(), settings.training_data.near_duplicate_documents, sets)
    ids = documents["document_id"].to_list()
    closed = {sets.find(place) for place, key in enumerate(ids) if key in held_documents}
    usable = [key for place, key in enumerate(ids) if sets.find(place) not in closed]
    return corpus.filter(pl.col("document_id").is_in(usable))
