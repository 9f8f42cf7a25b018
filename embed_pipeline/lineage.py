"""Where a question-answer pair comes from and where it went: from its documents to the models trained on it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.enumerations import CRITERIA, GENERATED
from embed_pipeline.escaping import on_one_line
from embed_pipeline.storage import check_name, list_folder, scan_table, table_path

Row = dict[str, Any]
ReadTable = Callable[[str], pl.LazyFrame | None]
"""A table's name to its rows, of all batches where it has batches; None: it was never materialized."""

_LEAST_PREFIX = 4
_WIDTH = 110


class LineageError(LookupError):
    """There is no such pair, or no table to look it up in."""


@dataclass(frozen=True)
class Model:
    """A registered model version, and the data versions that it was made from, by table."""

    name: str
    version: str
    data_versions: dict[str, str]


@dataclass(frozen=True)
class Negative:
    """A hard negative of the question."""

    segment_id: str
    path: str
    similarity: float
    text: str


@dataclass(frozen=True)
class Trace:
    """The whole chain of one pair; what was not materialized or does not apply is None or empty.

    Attributes:
        pair: row of :data:`tables.QA_PAIRS` with what :data:`tables.QA_DATASET` adds; null where it is in one of them
            alone.
        documents: rows of :data:`tables.DOCUMENTS` of its sources, each in the version that it was written from.
        segments: rows of :data:`tables.SEGMENTS` of its sources.
        scores: row of :data:`tables.QA_SCORES`.
        decision: row of :data:`tables.QA_DECISIONS`.
        split: row of :data:`tables.DATASET_SPLIT`.
        positive_similarities: cosine of the question and each positive segment.
        negatives: its hard negatives.
        examples: ids of its training examples.
        reviews: rows of :data:`tables.QA_REVIEWS`, oldest first.
        models: the model versions trained on those.
    """

    pair: Row
    documents: list[Row]
    segments: list[Row]
    scores: Row | None
    decision: Row | None
    split: Row | None
    positive_similarities: dict[str, float]
    negatives: list[Negative]
    examples: list[str]
    reviews: list[Row]
    models: list[Model]


def trace(qa_id: str, read: ReadTable, models: Sequence[Model] = ()) -> Trace:
    """Follow a pair from its documents to the models trained on it.

    Args:
        qa_id: the pair, or the first four letters or more of its id.
        read: gives the tables.
        models: every registered version; those made from the present ``training_examples`` count.

    Raises:
        LineageError: no pair, or more than one, has that id, or there are no pairs yet.
    """
    pair = _find_pair(qa_id, read)
    by_id = pl.col("qa_id") == pair["qa_id"]
    in_batch = by_id & pl.col("batch").eq_missing(pl.lit(pair["batch"], pl.String))
    sources = pl.col("segment_id").is_in(pair["segment_ids"])
    # Passages that labels bring along are in the corpus alone, each a document of its own.
    brought = [{**row, "batch": None} for row in _rows(read, "corpus", sources & pl.col("label_set").is_not_null())]
    segments = _rows(read, "segments", sources) + brought
    present = pl.col("document_id").is_in(pair["document_ids"]) & ~pl.col("deleted")
    documents = _rows(read, "documents", present) + brought
    mined = _first(_rows(read, "hard_negatives", by_id))
    examples = read("training_examples")
    own = [row["example_id"] for row in _rows(read, "training_examples", by_id)]
    version = tables.content_hash(examples.collect()) if own and models and examples is not None else ""
    return Trace(
        pair=pair,
        documents=_one_each(documents, "document_id", pair["batch"]),
        segments=_one_each(segments, "segment_id", pair["batch"]),
        scores=_first(_rows(read, "qa_scores", in_batch)),
        decision=_first(_rows(read, "qa_decisions", by_id)),
        split=_first(_rows(read, "dataset_split", by_id)),
        positive_similarities=dict(zip(mined["positive_segment_ids"], mined["positive_similarities"], strict=True))
        if mined
        else {},
        negatives=_negatives(mined, read) if mined else [],
        examples=own,
        reviews=sorted(_rows(read, "qa_reviews", by_id), key=lambda row: (row["reviewed_at"], row["review_id"])),
        models=[model for model in models if own and model.data_versions.get("training_examples") == version],
    )


def stored_tables(root: UPath | Path) -> ReadTable:
    """The tables of a store: ``tables/<name>.parquet``, and ``tables/<name>/<batch>.parquet``.

    Of files on this machine the rows and columns that are asked for are read, of objects all of them.
    """

    def read(name: str) -> pl.LazyFrame | None:
        table = tables.TABLES[name]
        path = table_path(UPath(root), name)
        files = list_folder(path.parent, path.name) or list_folder(path.with_suffix(""), "*.parquet")
        if not files:
            return None
        frames = [scan_table(file, table) for file in files]
        return pl.concat(frames)

    return read


def trained_on_path(root: UPath, version: str) -> UPath:
    """Where the ids in a version of ``training_examples`` are kept, by which the models trained on them are found."""
    return root / "trained_on" / f"{check_name(version)}.parquet"


def format_trace(found: Trace) -> str:
    """The chain as text for a terminal."""
    return "\n".join(
        map(on_one_line, [*_origin(found), *_question(found), *_judgement(found), *_reviews(found), *_use(found)])
    )


def _origin(found: Trace) -> list[str]:
    lines = ["DOCUMENTS"]
    lines += [
        f"  {row['path']}  version {row['document_id']}, {_place(row)}: {row['title']}" for row in found.documents
    ]
    paths = {row["document_id"]: row["path"] for row in found.documents}
    lines.append("SEGMENTS")
    for row in found.segments:
        place = f"{paths.get(row['document_id'], row['document_id'])} #{row['position']}"
        lines.append(f"  {row['segment_id']}  {place}  {row['heading_path']}")
        lines += _wrapped(row["text"])
    return lines


def _place(document: Row) -> str:
    """What brought a document in: its batch, or the label set of a passage that labels bring along."""
    return f"batch {document['batch']}" if document["batch"] is not None else f"label set {document['label_set']}"


def _question(found: Trace) -> list[str]:
    pair = found.pair
    lines = ["HOPS"]
    for hop in pair["hops"]:
        lines += _wrapped(f"{hop['hop_number']}. on {', '.join(hop['segment_ids'])}: {hop['summary']}", indent=2)
    answer = [] if pair["answer"] is None else _wrapped(f"A: {pair['answer']}", indent=2)
    return [
        *lines,
        f"QUESTION  {pair['qa_id']}  ({_kind(pair)})",
        *_wrapped(f"Q: {pair['question']}", indent=2),
        *answer,
    ]


def _kind(pair: Row) -> str:
    """What kind of question it is and who made it."""
    if pair["origin"] != GENERATED:
        of_set = [] if pair["label_set"] is None else [f"label set {pair['label_set']}"]
        side = [] if pair["side"] is None else [f"side {pair['side']} given"]
        return ", ".join([pair["origin"], *of_set, *side])
    asked = f"{pair['query_type']}, {pair['reasoning_type']}, complexity {pair['complexity']}, style {pair['style']}"
    return f"{asked}; by {pair['generator']}, prompt {pair['prompt_version']}"


def _judgement(found: Trace) -> list[str]:
    scores = found.scores
    if found.pair["origin"] != GENERATED:
        return ["SCORES  none: only generated pairs are judged"]
    if scores is None:
        return ["SCORES  none: not judged, or no usable verdict (see rejected_judgements)"]
    ranks = f"base {scores['dense_rank']}, BM25 {scores['bm25_rank']}"
    lines = [f"SCORES  overall {scores['overall']:g}, by {scores['judge']}"]
    for name in CRITERIA:
        lines += _wrapped(f"{name} {scores[name]:g}: {scores[f'{name}_justification']}", indent=2)
    lines.append(
        f"  rank of its sources: {ranks}; grounding {scores['grounding']:.2f}, lexical overlap "
        f"{scores['lexical_overlap']:.2f}, hop need {scores['hop_need']:.2f}"
    )
    if found.decision is not None:
        detail = f" ({found.decision['detail']})" if found.decision["detail"] else ""
        twin = f", kept instead: {found.decision['duplicate_of']}" if found.decision["duplicate_of"] else ""
        lines.append(f"DECISION  {found.decision['reason']}{detail}{twin}")
    return lines


def _reviews(found: Trace) -> list[str]:
    lines = ["REVIEWS"] if found.reviews else []
    for row in found.reviews:
        said = [row["segment_id"], row["question"], row["answer"], row["comment"]]
        what = "; ".join(text for text in said if text)
        lines += _wrapped(
            f"{row['reviewed_at']:%Y-%m-%d %H:%M} UTC  {row['reviewer']}: {row['action']}  {what}", indent=2
        )
    return lines


def _use(found: Trace) -> list[str]:
    side = found.split["split"] if found.split else "none: not in the dataset"
    lines = [f"SPLIT  {side}"]
    if found.negatives or found.positive_similarities:
        closeness = ", ".join(f"{key} {value:.3f}" for key, value in found.positive_similarities.items())
        lines.append(f"NEGATIVES  positives: {closeness}")
        for negative in found.negatives:
            lines.append(f"  {negative.similarity:.3f}  {negative.segment_id}  {negative.path}")
            lines += _wrapped(negative.text, most=2)
    trained = ", ".join(f"{model.name} version {model.version}" for model in found.models)
    lines.append(f"TRAINED ON  {len(found.examples)} examples; models: {trained or 'none of the present data'}")
    return lines


def _find_pair(qa_id: str, read: ReadTable) -> Row:
    generated, dataset = read("qa_pairs"), read("qa_dataset")
    made = tables.QA_PAIRS.empty().lazy() if generated is None else generated
    written = made.with_columns(origin=pl.lit(GENERATED))
    # What is not generated is in the dataset alone.
    pairs = pl.concat([tables.QA_DATASET.empty().lazy() if dataset is None else dataset, written], how="diagonal")
    if pairs.head(1).collect().is_empty():
        message = "there are no question-answer pairs yet; run: embed-pipeline sdg"
        raise LineageError(message)
    if len(qa_id) < _LEAST_PREFIX:
        message = f"qa_id is {qa_id!r}; give at least its first {_LEAST_PREFIX} letters"
        raise LineageError(message)
    meant = pairs.filter(pl.col("qa_id").str.starts_with(qa_id)).collect()
    found = meant.unique("qa_id", keep="last", maintain_order=True)
    if found.height != 1:
        several = ", ".join(found["qa_id"].head(5))
        message = f"{found.height} pairs have an id that starts with {qa_id!r}{': ' + several if several else ''}"
        raise LineageError(message)
    return found.row(0, named=True)


def _negatives(mined: Row, read: ReadTable) -> list[Negative]:
    ids = mined["negative_segment_ids"]
    known = {row["segment_id"]: row for row in _rows(read, "corpus", pl.col("segment_id").is_in(ids))}
    missing = {"path": "no longer in the corpus", "text": ""}
    return [
        Negative(key, known.get(key, missing)["path"], similarity, known.get(key, missing)["text"])
        for key, similarity in zip(ids, mined["negative_similarities"], strict=True)
    ]


def _rows(read: ReadTable, name: str, condition: pl.Expr) -> list[Row]:
    frame = read(name)
    return [] if frame is None else frame.filter(condition).collect().to_dicts()


def _first(rows: list[Row]) -> Row | None:
    return rows[-1] if rows else None


def _one_each(rows: list[Row], key: str, batch: str | None) -> list[Row]:
    """A row for each key: the pair's own batch before others, which hold copies of the same text."""
    chosen: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["batch"] != batch):
        chosen.setdefault(row[key], row)
    return [chosen[name] for name in sorted(chosen)]


def _wrapped(text: str, *, indent: int = 6, most: int = 12) -> list[str]:
    pad = " " * indent
    return textwrap.wrap(
        " ".join(text.split()), _WIDTH, initial_indent=pad, subsequent_indent=pad, max_lines=most, placeholder=" ..."
    )
