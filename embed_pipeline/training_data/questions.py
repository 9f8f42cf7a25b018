"""The questions that are mined for: the train questions, and for a small set augmented ones."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import polars as pl

from embed_pipeline.enumerations import Augmentation
from embed_pipeline.reviews import ReviewVerdict
from embed_pipeline.settings import Settings
from embed_pipeline.text.words import content_words, words
from embed_pipeline.training_data.labels import read_labels
from embed_pipeline.training_data.near_duplicates import (
    join_near_duplicates,
    near_duplicate_questions,
    normalise_question,
)
from embed_pipeline.training_data.pair_sources import structure_pairs
from embed_pipeline.training_data.split import DEV, TEST, TRAIN

_TEXT, _IDS = pl.String(), pl.List(pl.String)
SCHEMA = {
    "qa_id": _TEXT,
    "origin": _TEXT,
    "question": _TEXT,
    "positive_segment_ids": _IDS,
    "labelled_negative_ids": _IDS,
    "other_answer_ids": _IDS,
}


def training_questions(
    qa: pl.DataFrame,
    split: pl.DataFrame,
    corpus: pl.DataFrame,
    settings: Settings,
    left_out: pl.DataFrame | None = None,
    *,
    reviewed: Mapping[str, ReviewVerdict] = MappingProxyType({}),
) -> pl.DataFrame:
    """The train questions and their positives; under ``augment_below`` examples also augmented ones.

    An example is a question with one positive. Augmentation goes through ``training_data.augmentations`` in order
    and stops at ``augment_below`` examples or ``max_augmented_share`` of all. Structure pairs come from documents
    of the train side or of none, never from one of dev or test or a near-duplicate of it, and no augmented question
    repeats a question of dev or test. A segment that people marked as an answer is a positive where training may read
    its document, and else only no negative.

    Args:
        qa: frame of :data:`tables.QA_DATASET`.
        split: frame of :data:`tables.DATASET_SPLIT`.
        corpus: frame of :data:`tables.CORPUS`.
        settings: the bounds and the seed.
        left_out: frame of :data:`tables.LEFT_OUT_DOCUMENTS`; None: nothing was left out.
        reviewed: pair to what people said of it.

    Returns:
        Frame of qa_id, origin, question, positive_segment_ids (sorted), labelled_negative_ids and other_answer_ids,
        sorted by qa_id.

    Raises:
        LabelsError: labels cannot be read any more.
    """
    labelled = {}
    if settings.training_data.label_sets:
        options = settings.training_data
        labels = read_labels(options.label_sets, corpus, settings.embedding.context, left_out=left_out)
        labelled = {label.qa_id: label.negatives for label in labels}
    train = split.filter(pl.col("split") == TRAIN).select("qa_id")
    marked = {key: one.positives & set(corpus["segment_id"]) for key, one in reviewed.items() if one.positives}
    readable = set(usable_corpus(corpus, split, settings)["segment_id"]) if marked else set()
    rows = []
    for row in qa.join(train, on="qa_id", how="semi").sort("qa_id").iter_rows(named=True):
        answers = marked.get(row["qa_id"], frozenset())
        positives = sorted({*row["segment_ids"], *(answers & readable)})
        negatives, others = labelled.get(row["qa_id"], []), sorted(answers - readable)
        rows.append(_TrainingQuestion(row["qa_id"], row["origin"], row["question"], positives, negatives, others))
    wanted = _augmentation_budget(sum(len(row.positives) for row in rows), settings)
    if wanted:
        rows += _first_examples(_augmented(rows, split, corpus, settings), wanted)
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").sort("qa_id")


class _TrainingQuestion(NamedTuple):
    """A question, in the order of the schema."""

    qa_id: str
    origin: str
    question: str
    positives: list[str]
    labelled_negatives: list[str]
    other_answers: list[str]

    @property
    def key(self) -> tuple[str, ...]:
        """Words and answers; two rows with equal ones are the same."""
        return (normalise_question(self.question), *self.positives)


def _augmentation_budget(examples: int, settings: Settings) -> int:
    """Augmented examples that are wanted and allowed in addition to so many others."""
    options = settings.training_data
    missing = max(0, options.augment_below - examples)
    share = options.max_augmented_share
    return missing if share == 1 else min(missing, math.floor(examples * share / (1 - share)))


def _augmented(
    rows: Sequence[_TrainingQuestion], split: pl.DataFrame, corpus: pl.DataFrame, settings: Settings
) -> list[_TrainingQuestion]:
    """All possible augmented questions, in the order of the setting, shuffled within each origin."""
    origins = settings.training_data.augmentations
    found = _keyword_forms(rows) if "keywords" in origins else []
    structural = tuple(origin for origin in origins if origin != "keywords")
    if structural:
        usable = usable_corpus(corpus, split, settings)
        pairs = structure_pairs(usable, structural, settings.corpus.min_segment_tokens)
        found += [_augmented_row(pair.origin, pair.question, [pair.segment_id]) for pair in pairs]
    ordered = []
    for origin in origins:
        own = sorted(row for row in found if row.origin == origin)
        random.Random(f"{settings.seed} {origin}").shuffle(own)  # noqa: S311 - sampling, not secrets
        ordered += own
    return _without_repeats(ordered, rows, split, settings)


def _first_examples(rows: Sequence[_TrainingQuestion], most: int) -> list[_TrainingQuestion]:
    """The first rows that together make at most so many examples."""
    chosen, examples = [], 0
    for row in rows:
        if examples + len(row.positives) <= most:
            chosen.append(row)
            examples += len(row.positives)
    return chosen


def _keyword_forms(rows: Sequence[_TrainingQuestion]) -> list[_TrainingQuestion]:
    """Each question as people type it into a search box: its content words alone, in order."""
    forms = []
    for row in rows:
        short = " ".join(word for word in words(row.question) if content_words(word))
        if len(short.split()) > 1 and normalise_question(short) != normalise_question(row.question):
            forms.append(_augmented_row("keywords", short, row.positives, row.other_answers))
    return forms


def _augmented_row(
    origin: Augmentation, question: str, positives: Sequence[str], others: Sequence[str] = ()
) -> _TrainingQuestion:
    key = hashlib.sha256("\0".join([origin, question, *positives]).encode()).hexdigest()[:16]
    return _TrainingQuestion(key, origin, question, list(positives), [], list(others))


def _without_repeats(
    found: Sequence[_TrainingQuestion], rows: Sequence[_TrainingQuestion], split: pl.DataFrame, settings: Settings
) -> list[_TrainingQuestion]:
    """Those that repeat no question of dev or test, and no other row word for word with the same answer."""
    held = split.filter(pl.col("split").is_in([DEV, TEST])).sort("qa_id")["question"].to_list()
    threshold = settings.training_data.near_duplicate_questions
    repeats = near_duplicate_questions([row.question for row in found], held, threshold)
    seen = {row.key for row in rows}
    fresh = []
    for index, row in enumerate(found):
        if index not in repeats and row.key not in seen:
            seen.add(row.key)
            fresh.append(row)
    return fresh


def usable_corpus(corpus: pl.DataFrame, split: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Segments of the documents that training may read: on the train side or none, and no copy of a held-out one."""
    from scipy.cluster.hierarchy import DisjointSet

    held = split.filter(pl.col("split").is_in([DEV, TEST]))
    held_documents = set(held["document_ids"].explode())
    whole = pl.col("text").sort_by("position").str.join("")
    documents = corpus.group_by("document_id", maintain_order=True).agg(whole)
    sets = DisjointSet(range(documents.height))
    join_near_duplicates(documents["text"], settings.training_data.near_duplicate_documents, sets)
    ids = documents["document_id"].to_list()
    closed = {sets[place] for place, key in enumerate(ids) if key in held_documents}
    usable = [key for place, key in enumerate(ids) if sets[place] not in closed]
    return corpus.filter(pl.col("document_id").is_in(usable))
