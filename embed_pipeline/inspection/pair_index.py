"""All pairs of a store in one frame, accepted and rejected, searched and counted in memory.

Two hundred thousand pairs are searched, filtered, counted and sorted in about a tenth of a second of one core, and held
in about half a gigabyte. A full-text index in SQLite finds rare words faster and common ones slower, and counts for the
charts take longer there, so there is only the frame: no index on disk that could go stale.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.enumerations import CRITERIA, GENERATED
from embed_pipeline.inspection.pair_query import CHOICES, RANGES, PairQuery
from embed_pipeline.lineage import ReadTable, stored_tables
from embed_pipeline.reviews import ReviewVerdict, apply_edits, fold_reviews, read_reviews
from embed_pipeline.storage import list_folder, table_path, version_of

Row = dict[str, Any]
ACCEPTED, REJECTED, INVALID, UNJUDGED, UNDECIDED = "accepted", "rejected", "invalid", "unjudged", "undecided"
STATES = {
    ACCEPTED: "in the dataset",
    REJECTED: "turned down by a threshold, a rule or a reviewer",
    INVALID: "the model's answer was no valid pair",
    UNJUDGED: "valid, without a usable verdict",
    UNDECIDED: "judged, but a source is not in the present corpus or the dataset is yet to be made",
}
"""State of a pair to its meaning."""
SOURCES = (
    "documents",
    "corpus",
    "qa_pairs",
    "rejected_pairs",
    "qa_scores",
    "qa_dataset",
    "qa_decisions",
    "dataset_split",
    "question_results",
)
"""Tables that the index is made of, apart from reviews."""
_RAW_CHARACTERS = 400
_SCORED = (*CRITERIA, "overall", "judge", "dense_rank", "bm25_rank", "grounding", "lexical_overlap", "hop_need")
_LISTED = (
    "qa_id", "question", "answer", "state", "reason", "detail", "document", "overall", "round_trip_rank", "split",
    "outcome", "change", "review", "query_type", "hop_count", "origin", *CRITERIA,
)  # fmt: skip
_WARMED = ("question", "document")


@dataclass(frozen=True)
class CountedValue:
    """A value, or a part of a range, and how many of the pairs have it; ``least`` and ``below`` bound a part."""

    label: str
    count: int
    chosen: bool = False
    least: float | None = None
    below: float | None = None


@dataclass(frozen=True)
class Page:
    """A page of pairs.

    Attributes:
        rows: the pairs.
        total: pairs found.
        everything: pairs there are.
        choices: column of :data:`CHOICES` to its values among the pairs that the other filters leave, commonest first.
        ranges: column of :data:`RANGES` to its parts.
    """

    rows: list[Row]
    total: int
    everything: int
    choices: dict[str, list[CountedValue]]
    ranges: dict[str, list[CountedValue]]


@dataclass
class PairIndex:
    """All pairs.

    Attributes:
        frame: a row for each pair, sorted by id.
        documents: a row for each document of the corpus, with figures of its pairs.
        segments: a row for each segment of the corpus, with figures of its pairs.
    """

    frame: pl.DataFrame
    documents: pl.DataFrame
    segments: pl.DataFrame
    _orders: dict[tuple[str, bool], pl.Series] = field(default_factory=dict)

    @classmethod
    def build(cls, read: ReadTable) -> PairIndex:
        """Join the stored tables.

        Raises:
            StorageError: a table is damaged or of another version.
        """
        corpus = _stored(read, "corpus").select("segment_id", "document_id", "path", "position", "heading_path")
        places = _places(read, corpus)
        frame = _joined(read, places)
        index = cls(frame.with_columns(review=pl.lit(None, pl.Categorical)), *_figures(frame, corpus))
        for column in _WARMED:
            # Texts take longest to sort: nobody is to wait for it.
            index._order(column, descending=False)
        return index

    def with_reviews(self, verdicts: Mapping[str, ReviewVerdict]) -> PairIndex:
        """This index, made without reviews, with what people said: all else stays as it is."""
        edited = any(one.question is not None or one.answer is not None for one in verdicts.values())
        frame = self.frame.drop("review").join(_reviewed(verdicts), on="qa_id", how="left", maintain_order="left")
        if edited:
            frame = apply_edits(frame, verdicts).with_columns(_words())
        gone = {"review", "question"} if edited else {"review"}
        orders = {key: order for key, order in self._orders.items() if key[0] not in gone}
        return PairIndex(frame, self.documents, self.segments, orders)

    def page(self, query: PairQuery) -> Page:
        """The pairs that a query asks for, and how they and their neighbours are spread."""
        masks = self._masks(query)
        kept = _all_of(masks.values(), self.frame.height)
        place = (query.page - 1) * query.size
        order = self._order(query.sort, descending=query.descending)
        rows = order.filter(kept.gather(order)).slice(place, query.size)
        without = {name: _all_of((m for key, m in masks.items() if key != name), self.frame.height) for name in masks}
        return Page(
            self.frame.select(_LISTED)[rows].to_dicts(),
            int(kept.sum()),
            self.frame.height,
            {name: self._values(name, without.get(name, kept), query) for name in CHOICES},
            {name: self._parts(name, without.get(name, kept), query) for name in RANGES},
        )

    def find(self, qa_id: str) -> Row | None:
        """A pair's row; None: there is none."""
        rows = self.frame.filter(pl.col("qa_id") == qa_id).drop("words").to_dicts()
        return rows[0] if rows else None

    def questions(self, ids: Iterable[str]) -> dict[str, str]:
        """Id to question, of those that there are."""
        return dict(self.frame.filter(pl.col("qa_id").is_in(list(ids))).select("qa_id", "question").iter_rows())

    def neighbours(self, query: PairQuery, qa_id: str) -> tuple[str | None, str | None]:
        """The pairs before and after one in the order of a query; None: there is none."""
        order = self._order(query.sort, descending=query.descending)
        ids = self.frame["qa_id"].gather(
            order.filter(_all_of(self._masks(query).values(), self.frame.height).gather(order))
        )
        found = (ids == qa_id).arg_true()
        if not len(found):
            return None, None
        place = int(found[0])
        return (ids[place - 1] if place else None), (ids[place + 1] if place + 1 < len(ids) else None)

    def _masks(self, query: PairQuery) -> dict[str, pl.Series]:
        """Each filter as what it leaves."""
        frame, masks = self.frame, {}
        for number, term in enumerate(query.terms):
            masks[f"word {number}"] = frame["words"].str.contains(term, literal=True)
        for name, values in query.chosen.items():
            masks[name] = frame[name].cast(pl.String).fill_null("none").is_in(values)
        for name in query.least.keys() | query.below.keys():
            column = frame[name].cast(pl.Float64)
            above = column >= query.least[name] if name in query.least else column.is_not_null()
            masks[name] = (above & (column < query.below[name]) if name in query.below else above).fill_null(False)  # noqa: FBT003
        if query.document:
            masks["document"] = frame["document_ids"].list.contains(query.document)
        if query.segment:
            masks["segment"] = frame["segment_ids"].list.contains(query.segment)
        return masks

    def _values(self, name: str, kept: pl.Series, query: PairQuery) -> list[CountedValue]:
        counted = self.frame[name].filter(kept).value_counts(sort=True)
        chosen = query.chosen.get(name, ())
        found = {"none" if value is None else str(value): count for value, count in counted.iter_rows()}
        found |= {value: 0 for value in chosen if value not in found}
        return [CountedValue(value, count, value in chosen) for value, count in found.items()]

    def _parts(self, name: str, kept: pl.Series, query: PairQuery) -> list[CountedValue]:
        ends = RANGES[name][1]
        counts = dict(self.frame[f"{name} part"].filter(kept).value_counts().iter_rows())
        if not any(count for part, count in counts.items() if part is not None):
            return []
        now = (query.least.get(name), query.below.get(name))
        bars = []
        for part, low in enumerate(ends[:-1]):
            below = None if part == len(ends) - 2 else ends[part + 1]
            bars.append(CountedValue(_part_label(ends, part), counts.get(part, 0), now == (low, below), low, below))
        return bars

    def _order(self, column: str, *, descending: bool) -> pl.Series:
        """Numbers of the rows in an order; equal ones by id, rows without a value last."""
        key = (column, descending)
        if key not in self._orders:
            values = self.frame[column or "qa_id"]
            values = (
                values.cast(pl.String).str.to_lowercase() if values.dtype in {pl.String, pl.Categorical} else values
            )
            ranked = pl.DataFrame({"value": values}).with_row_index("place")
            order = ranked.sort("value", descending=descending, nulls_last=True, maintain_order=True)["place"]
            self._orders[key] = order
        return self._orders[key]


def _part_label(ends: Sequence[float], part: int) -> str:
    low, high = ends[part], ends[part + 1]
    if all(isinstance(end, int) for end in ends):
        return "over 100" if low == 101 else f"{low}" if high == low + 1 else f"{low} to {high - 1:g}"  # noqa: PLR2004
    return f"{low:g} to {high:g}"


def _all_of(masks: Any, height: int) -> pl.Series:  # noqa: ANN401 - any series
    return functools.reduce(lambda a, b: a & b, masks, pl.repeat(value=True, n=height, dtype=pl.Boolean, eager=True))


def _stored(read: ReadTable, name: str) -> pl.DataFrame:
    frame = read(name)
    return tables.TABLES[name].empty() if frame is None else frame.collect()


def _places(read: ReadTable, corpus: pl.DataFrame) -> pl.DataFrame:
    """Document id to its path, of every version that was ever stored."""
    stored = read("documents")
    documents = tables.DOCUMENTS.empty().lazy() if stored is None else stored
    seen = documents.filter(~pl.col("deleted")).select("document_id", "path").collect()
    return pl.concat([corpus.select("document_id", "path"), seen]).unique("document_id", keep="first")


def _joined(read: ReadTable, places: pl.DataFrame) -> pl.DataFrame:
    """A row for each pair."""
    made = _stored(read, "qa_pairs").unique("qa_id", keep="last").with_columns(origin=pl.lit(GENERATED))
    dataset = _stored(read, "qa_dataset")
    others = dataset.filter(pl.col("origin") != GENERATED).drop("overall", "round_trip_rank", "side")
    scores = _stored(read, "qa_scores").unique("qa_id", keep="last")
    decisions = _stored(read, "qa_decisions").unique("qa_id", keep="last")
    results = _stored(read, "question_results").filter(pl.col("query_set") == "generated")
    pairs = pl.concat([made, others, _rejects(read)], how="diagonal").drop("hops")
    frame = (
        pairs.join(scores.select("qa_id", *_SCORED, rank_in_batch="round_trip_rank"), on="qa_id", how="left")
        .join(
            decisions.select("qa_id", "accepted", "round_trip_rank", "duplicate_of", decided="reason", said="detail"),
            on="qa_id",
            how="left",
        )
        .join(_stored(read, "dataset_split").select("qa_id", "split"), on="qa_id", how="left")
        .join(
            results.select(pl.col("query_id").alias("qa_id"), "outcome", "change", "base_rank", "tuned_rank"),
            on="qa_id",
            how="left",
        )
    )
    return _completed(frame, places).sort("qa_id")


def _rejects(read: ReadTable) -> pl.DataFrame:
    """Answers that were no valid pair, under ids of their own; what the model wrote stands for the question."""
    rejects = _stored(read, "rejected_pairs")
    asked = pl.col("raw").str.strip_chars().str.slice(0, _RAW_CHARACTERS)
    sources = rejects.with_row_index("place").select("place", segment_id="segment_ids").explode("segment_id")
    owned = sources.join(_segment_documents(read), on="segment_id", how="left").group_by("place")
    owners = owned.agg(pl.col("document_id").drop_nulls().unique().sort()).sort("place")["document_id"]
    return rejects.with_columns(
        qa_id=pl.Series(reject_ids(rejects), dtype=pl.String),
        question=pl.when(asked == "").then(pl.lit("(the model was not asked, or said nothing)")).otherwise(asked),
        origin=pl.lit(GENERATED),
        state=pl.lit(INVALID),
        document_ids=owners,
    ).drop("raw")


def reject_ids(rejects: pl.DataFrame) -> list[str]:
    """Ids of the rows of :data:`tables.REJECTED_PAIRS`: ``x`` and a hash, so that pages about them have addresses."""
    seen: Counter[str] = Counter()
    ids = []
    for row in rejects.select("batch", "segment_ids", "reason", "raw").iter_rows():
        digest = hashlib.sha256(repr(row).encode()).hexdigest()[:15]
        ids.append(f"x{digest}" if not seen[digest] else f"x{digest}-{seen[digest]}")
        seen[digest] += 1
    return ids


def _segment_documents(read: ReadTable) -> pl.DataFrame:
    stored = read("segments")
    segments = tables.SEGMENTS.empty().lazy() if stored is None else stored
    return segments.select("segment_id", "document_id").unique("segment_id").collect()


def _reviewed(reviews: Mapping[str, ReviewVerdict]) -> pl.DataFrame:
    rows = [(key, verdict_word(one)) for key, one in reviews.items()]
    frame = pl.DataFrame(rows, schema={"qa_id": pl.String, "review": pl.String}, orient="row")
    return frame.with_columns(pl.col("review").cast(pl.Categorical))


def verdict_word(verdict: ReviewVerdict) -> str:
    """What people's words on a pair come to, in a word."""
    edited = verdict.question is not None or verdict.answer is not None
    if verdict.accepted is None:
        return "positive marked" if verdict.positives else "withdrawn" if verdict.reviewer else "commented"
    return "edited" if edited and verdict.accepted else ACCEPTED if verdict.accepted else REJECTED


def _completed(frame: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """State, reason, document's path, words to search and parts of ranges."""
    given = pl.col("state") if "state" in frame.columns else pl.lit(None, pl.String)
    generated = pl.col("origin") == GENERATED
    state = (
        pl.when(given.is_not_null()).then(given)
        .when(~generated | pl.col("accepted").fill_null(value=False)).then(pl.lit(ACCEPTED))
        .when(pl.col("accepted").is_not_null()).then(pl.lit(REJECTED))
        .when(pl.col("overall").is_null()).then(pl.lit(UNJUDGED))
        .otherwise(pl.lit(UNDECIDED))
    )  # fmt: skip
    sources = frame.select("qa_id", document_id="document_ids").explode("document_id").drop_nulls("document_id")
    named = pl.col("path").fill_null("a document that is gone").unique().sort().str.join(" + ")
    paths = sources.join(places, on="document_id", how="left").group_by("qa_id").agg(document=named)
    whole = frame.join(paths, on="qa_id", how="left").with_columns(
        state=state,
        reason=pl.coalesce("decided", "reason"),
        detail=pl.coalesce("said", "detail"),
        round_trip_rank=pl.coalesce("round_trip_rank", "rank_in_batch"),
        document=pl.col("document").fill_null(""),
    )
    parts = [
        pl.col(name)
        .cast(pl.Float64)
        .cut([float(end) for end in ends[1:-1]], left_closed=True)
        .to_physical()
        .alias(f"{name} part")
        for name, (_, ends) in RANGES.items()
    ]
    few = [pl.col(name).cast(pl.Categorical) for name in CHOICES if whole.schema.get(name) == pl.String]
    return whole.with_columns(_words(), *parts).with_columns(few).drop("decided", "said", "rank_in_batch", "accepted")


def _words() -> pl.Expr:
    """What is searched."""
    said = pl.concat_str("question", "answer", "document", "qa_id", separator="\n", ignore_nulls=True)
    return said.str.to_lowercase().alias("words")


def _figures(frame: pl.DataFrame, corpus: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What became of the questions of each document and segment of the corpus."""
    counted = [
        (pl.col("state") != INVALID).sum().alias("pairs"),
        (pl.col("state") == ACCEPTED).sum().alias("accepted"),
        (pl.col("outcome") == "won").sum().alias("won"),
        (pl.col("outcome") == "lost").sum().alias("lost"),
    ]
    each = frame.select(
        pl.col("state").cast(pl.String), pl.col("outcome").cast(pl.String), "segment_ids", "document_ids"
    )
    by_segment = each.explode("segment_ids").group_by(segment_id="segment_ids").agg(counted)
    by_document = each.explode("document_ids").group_by(document_id="document_ids").agg(counted)
    numbers = [pl.col(name).fill_null(0) for name in ("pairs", "accepted", "won", "lost")]
    segments = corpus.join(by_segment, on="segment_id", how="left").with_columns(numbers)
    covered = segments.group_by("document_id", "path").agg(segments=pl.len(), covered=(pl.col("accepted") > 0).sum())
    documents = covered.join(by_document, on="document_id", how="left").with_columns(numbers)
    share = pl.when(pl.col("pairs") > 0).then(pl.col("accepted") / pl.col("pairs"))
    return documents.with_columns(share=share).sort("path", "document_id"), segments.sort(
        "path", "document_id", "position"
    )


class CurrentIndex:
    """The index of the tables as they are stored now, made again when one of them was replaced."""

    def __init__(self, root: UPath) -> None:
        self._root, self._read = root, stored_tables(root)
        self._lock = Lock()
        self._made: tuple[list[str], PairIndex] | None = None
        self._shown: tuple[list[str], PairIndex] | None = None

    def get(self) -> PairIndex:
        """The index.

        Raises:
            StorageError: a table is damaged or of another version, or its storage cannot be reached.
        """
        with self._lock:
            versions = [version for name in SOURCES for version in _versions(self._root, name)]
            if self._made is None or self._made[0] != versions:
                self._made, self._shown = (versions, PairIndex.build(self._read)), None
            said = _versions(self._root, tables.QA_REVIEWS.name)
            if self._shown is None or self._shown[0] != said:
                self._shown = said, self._made[1].with_reviews(fold_reviews(read_reviews(self._root)))
            return self._shown[1]


def _versions(root: UPath, name: str) -> list[str]:
    path = table_path(root, name)
    files = list_folder(path.parent, path.name) or list_folder(path.with_suffix(""), "*.parquet")
    return [f"{file} {version_of(file)}" for file in files]
