"""Every stored table: its columns, their types and what each means.

Nothing else in the project spells a stored column's type or meaning. Tables are validated on every write and
every read (:func:`validate`), and the Dagster UI shows these descriptions.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import polars as pl

from embed_pipeline.enumerations import (
    ALL_RECALL,
    ARTIFACT_KINDS,
    COPY_KINDS,
    CRITERIA,
    DECISIONS,
    FILE_PROBLEMS,
    HYBRIDS,
    METRICS,
    ORIGINS,
    OUTCOMES,
    QUERY_TYPES,
    REASONING_TYPES,
    REVIEW_ACTIONS,
    SIDES,
    SPLIT_REASONS,
    SPLITS,
    STYLES,
    SYSTEMS,
)


class TableError(ValueError):
    """A frame does not fit its table."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its name.
        dtype: its Polars type.
        description: what it means, with its values or bounds.
        nullable: whether it may be null.
        values: the values that it may have; empty: any.
        bounds: least and greatest number that it may have; None: any.
    """

    name: str
    dtype: pl.DataType
    description: str
    nullable: bool = False
    values: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table:
    """One stored table.

    Attributes:
        name: its name, which is that of the asset.
        description: what its rows are.
        columns: its columns, in stored order.
        key: the columns whose values are unique together.
        stage: the command that makes it.
        sources: columns to those that they are made from, as ``table.column``; a column without an entry comes from
            the columns of its name in the tables that this one is made from.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    stage: str = "sdg"
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def schema(self) -> pl.Schema:
        """Column names and types, in stored order."""
        return pl.Schema({column.name: column.dtype for column in self.columns})

    @property
    def form(self) -> str:
        """Short hash of what :func:`validate` asks of a frame: a table stored in another form has to be made again."""
        asked = [(c.name, str(c.dtype), c.nullable, c.values, c.bounds) for c in self.columns]
        return hashlib.sha256(repr((asked, self.key)).encode()).hexdigest()[:12]

    def empty(self) -> pl.DataFrame:
        """A frame of no rows."""
        return pl.DataFrame(schema=self.schema)

    def frame(self, rows: list[dict[str, object]]) -> pl.DataFrame:
        """A validated frame of ``rows``; a row that lacks a column or brings another is refused."""
        names = {column.name for column in self.columns}
        for row in rows:
            if row.keys() != names:
                message = f"table {self.name}: row has {sorted(row.keys() ^ names)} missing or too many"
                raise TableError(message)
        return validate(pl.DataFrame(rows, schema=self.schema, orient="row"), self)


def validate(frame: pl.DataFrame, table: Table) -> pl.DataFrame:
    """Return ``frame`` with its columns in stored order.

    Raises:
        TableError: naming the table, and the column that is missing, unknown, of another type, null where it
            may not be, not finite, has a value that is none of its values or out of bounds, or a key that occurs twice.
    """
    missing = [c.name for c in table.columns if c.name not in frame.columns]
    unknown = [name for name in frame.columns if name not in table.schema]
    if missing or unknown:
        message = f"table {table.name}: missing columns {missing}, unknown columns {unknown}"
        raise TableError(message)
    for column in table.columns:
        series = frame[column.name]
        if series.dtype != column.dtype:
            message = f"table {table.name}: column {column.name} is {series.dtype}, expected {column.dtype}"
            raise TableError(message)
        if not column.nullable and series.null_count():
            message = f"table {table.name}: column {column.name} has {series.null_count()} nulls"
            raise TableError(message)
        if series.dtype.is_float() and not series.drop_nulls().is_finite().all():
            message = f"table {table.name}: column {column.name} has values that are not finite"
            raise TableError(message)
        problem = _value_problem(series.drop_nulls(), column)
        if problem:
            message = f"table {table.name}: column {column.name} has {problem}"
            raise TableError(message)
    if table.key and frame.height:
        repeated = frame.group_by(table.key).len().filter(pl.col("len") > 1).sort(table.key)
        if repeated.height:
            message = f"table {table.name}: key {table.key} repeats, first {repeated.row(0)[:-1]}"
            raise TableError(message)
    return frame.select(table.schema.names())


def _value_problem(series: pl.Series, column: Column) -> str | None:
    """The first value that the column may not have, and what it may have."""
    if column.values:
        unknown = series.filter(~series.is_in(column.values)).sort()
        if len(unknown):
            return f"{unknown[0]!r}, expected one of {list(column.values)}"
    if column.bounds:
        low, high = column.bounds
        outside = series.filter(~series.is_between(low, high)).sort()
        if len(outside):
            return f"{outside[0]}, expected {low:g} to {high:g}"
    return None


def content_hash(frame: pl.DataFrame) -> str:
    """Hash of names, types and values in row order; equal tables hash alike whenever they were written."""
    # Hashed as it is written: a buffer would hold the table twice more.
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hashlib.file_digest, source, "sha256")
        with os.fdopen(writing, "wb") as sink:
            frame.rechunk().write_ipc(sink, compression="uncompressed", compat_level=pl.CompatLevel.oldest())
        return digest.result().hexdigest()[:32]


_IDS = pl.List(pl.String)
_BLOCKS = pl.List(
    pl.Struct({"kind": pl.String, "level": pl.Int64, "start": pl.Int64, "end": pl.Int64, "text": pl.String})
)
_HOPS = pl.List(pl.Struct({"hop_number": pl.Int64, "segment_ids": _IDS, "summary": pl.String}))
_TIME = pl.Datetime("us", "UTC")
_SCORES, _COMPLEXITY, _FROM_ONE = (1.0, 10.0), (1.0, 5.0), (1.0, math.inf)


def _text(name: str, description: str, *, nullable: bool = False) -> Column:
    return Column(name, pl.String(), description, nullable)


def _one_of(name: str, values: tuple[str, ...], description: str, *, nullable: bool = False) -> Column:
    listed = ", ".join(value for value in values if value)
    return Column(name, pl.String(), f"{description} One of: {listed}.", nullable, values)


def _real(name: str, description: str, *, nullable: bool = False) -> Column:
    return Column(name, pl.Float64(), description, nullable)


def _share(name: str, description: str) -> Column:
    return Column(name, pl.Float64(), description, bounds=(0, 1))


def _score(name: str, description: str, *, nullable: bool = False) -> Column:
    return Column(name, pl.Float64(), description, nullable, bounds=_SCORES)


def _count(name: str, description: str, *, nullable: bool = False) -> Column:
    return Column(name, pl.Int64(), description, nullable)


def _number(name: str, bounds: tuple[float, float], description: str, *, nullable: bool = False) -> Column:
    return Column(name, pl.Int64(), description, nullable, bounds=bounds)


def _ids(name: str, description: str) -> Column:
    return Column(name, _IDS, description)


_BATCH = _text("batch", "Document batch (partition) that the row belongs to.")
_PATH = _text("path", "File, relative to the documents folder, with forward slashes.")
_DOCUMENT_ID = _text("document_id", "Document version: hash of its text.")
_SEGMENT_ID = _text("segment_id", "Segment: hash of document id and position; stable while the document is unchanged.")

DOCUMENTS = Table(
    "documents",
    "Document versions of a batch, one row each; a deleted file is a row with `deleted` and no text.",
    (
        _DOCUMENT_ID,
        _PATH,
        _text("title", "What the document calls itself, its first heading, or the file's name."),
        _text("text", "The document as plain text or Markdown, newline-normalised, without metadata and boilerplate."),
        Column(
            "blocks",
            _BLOCKS,
            "Its headings (with level and words), paragraphs, lists, tables, code, quotes and metadata, in order; "
            "`start` and `end` count characters of the text.",
        ),
        _count("bytes", "Size of the file in bytes."),
        Column("modified_at", _TIME, "Modification time of the file."),
        _BATCH,
        Column("deleted", pl.Boolean(), "True for a tombstone: the file is gone since this batch."),
    ),
    key=("path",),
)

REJECTED_DOCUMENTS = Table(
    "rejected_documents",
    "Files of a batch, or parts of them, that were set aside, and why.",
    (
        _PATH,
        _BATCH,
        _one_of("reason", FILE_PROBLEMS, "Why the file was set aside; in_part: the rest of it was read."),
        _text("detail", "What was found."),
    ),
    key=("path",),
)

BOILERPLATE = Table(
    "boilerplate",
    "Lines that many documents have, most frequent first; each stays in one document and was removed from the others.",
    (
        _BATCH,
        _text("line_id", "Line: hash of its text, by which later batches know it."),
        _text("text", "The line, as it stands where it was met first."),
        _count("documents", "Documents of the batch that have it."),
        _count("removed_from", "Documents of the batch that it was removed from."),
        Column("known", pl.Boolean(), "True where an earlier batch found it: no document of this one keeps it."),
    ),
    key=("line_id",),
)

_SEGMENT_BODY = (
    _count("position", "Place in the document, from 0."),
    _text("heading_path", "Headings above the segment, outermost first, joined by ' > '; empty before the first."),
    _text("text", "The segment; one that goes on with a table repeats the table's header first."),
    _count("token_count", "Tokens of the text under the base encoder's tokenizer, without special tokens."),
)

SEGMENTS = Table(
    "segments",
    "Documents cut at headings and sentence ends, none longer than the encoder reads.",
    (
        _SEGMENT_ID,
        _DOCUMENT_ID,
        _BATCH,
        *_SEGMENT_BODY,
        _count("unknown_tokens", "Tokens that stand for words or characters which the encoder does not know."),
        _count(
            "repeated",
            "Characters at the start of the text that only repeat a table's header; without them, all segments of a "
            "document joined in order give its text back.",
        ),
        _text("withheld", "What no model is shown of the text, because it addresses a model; empty: all is shown."),
    ),
    key=("segment_id",),
    sources={
        "segment_id": ("documents.document_id",),
        **dict.fromkeys(("position", "token_count", "unknown_tokens", "withheld"), ("documents.text",)),
        **dict.fromkeys(("heading_path", "repeated"), ("documents.blocks",)),
    },
)

DOCUMENT_ARTIFACTS = Table(
    "document_artifacts",
    "What each document is about: the terms and statements that steer question writing.",
    (
        _DOCUMENT_ID,
        _BATCH,
        _one_of("kind", ARTIFACT_KINDS, "What kind of thing it is."),
        _text("text", "The artifact, in the document's words."),
        _ids("segment_ids", "Segments that it occurs in."),
        _text("extractor", "What found it: a model's name, or `keyphrases` for the statistical extractor."),
    ),
    sources={"segment_ids": ("segments.segment_id",)},
)

_GENERATED_BY = (
    _text("generator", "Model that wrote the row."),
    _text("prompt_version", "Hash of the prompt files that asked for it."),
)


def _pair_body(*, generated: bool) -> tuple[Column, ...]:
    """What a pair says and asks; ``generated``: a generator wrote all of them, so that nothing is null."""
    other = "" if generated else " Null: the pair was not generated."
    unanswered = "" if generated else " Null: the label has none."
    return (
        _text("question", "The question."),
        _text("answer", f"The answer, from the segments alone.{unanswered}", nullable=not generated),
        _one_of("query_type", QUERY_TYPES, f"What the question asks for.{other}", nullable=not generated),
        _one_of("reasoning_type", REASONING_TYPES, f"How it is answered.{other}", nullable=not generated),
        _number(
            "complexity",
            _COMPLEXITY,
            f"1 (a stated fact) to 5 (reasoning over several statements).{other}",
            nullable=not generated,
        ),
        _number("hop_count", _FROM_ONE, "Number of hops."),
        Column("hops", _HOPS, "Each hop: its number from 1, the segments it needs, a summary of the context it uses."),
        _ids("segment_ids", "Source segments: the union over the hops, sorted."),
        _ids("document_ids", "Documents of the source segments, sorted."),
    )


QA_PAIRS = Table(
    "qa_pairs",
    "Question-answer pairs written from the segments, validated, not yet scored.",
    (
        _text("qa_id", "Pair: hash of question and source segments."),
        _BATCH,
        *_pair_body(generated=True),
        _one_of("style", STYLES, "How it is asked."),
        *_GENERATED_BY,
    ),
    key=("qa_id",),
    sources={
        "question": ("segments.text", "document_artifacts.text"),
        "answer": ("segments.text",),
        **dict.fromkeys(("hops", "segment_ids"), ("segments.segment_id",)),
        "document_ids": ("segments.document_id",),
    },
)

REJECTED_PAIRS = Table(
    "rejected_pairs",
    "Model answers that are no valid pair, with the reason and the raw answer; nothing disappears.",
    (
        _BATCH,
        _ids("segment_ids", "Segments that the question was asked of."),
        _text("reason", "Which rule failed."),
        _text("detail", "What was found."),
        _text("raw", "The model's answer as it came."),
        *_GENERATED_BY,
    ),
    sources={"segment_ids": ("segments.segment_id",)},
)

REJECTED_JUDGEMENTS = replace(
    REJECTED_PAIRS,
    name="rejected_judgements",
    description="Pairs that got no usable verdict, with the reason and the judge's raw answer; "
    "with the reason planted, what the judge made of bad pairs that it was tried on.",
    # They are the judge's, not those of the pair.
    sources={"generator": (), "prompt_version": ()},
)

_CRITERION_MEANING = {
    "relevance": "how much the question is about its source segments",
    "accuracy": "how right the answer is",
    "context_support": "how far the segments alone support question and answer",
    "clarity": "how clear and self-contained the question is",
}
_OVERALL = _score("overall", "Mean of the four scores, computed here.")

QA_SCORES = Table(
    "qa_scores",
    "One verdict for each pair: four scores with justifications, and the measured signals.",
    (
        _text("qa_id", "The pair judged."),
        _BATCH,
        *(_score(name, f"1-10: {meaning}.") for name, meaning in _CRITERION_MEANING.items()),
        *(_text(f"{name}_justification", f"Why that score: {name}.") for name in CRITERIA),
        _OVERALL,
        _text("judge", "Who spoke: `measured`, or the judge model's name."),
        *(
            _score(
                f"measured_{name}",
                f"1-10: {name} as measured, next to the judge's; null: one judge spoke.",
                nullable=True,
            )
            for name in (*_CRITERION_MEANING, "overall")
        ),
        _number(
            "dense_rank",
            _FROM_ONE,
            "Worst rank of its source segments among the batch's under the base model; 101: lower.",
        ),
        _number("bm25_rank", _FROM_ONE, "The same under BM25."),
        _number("round_trip_rank", _FROM_ONE, "The worst over its source segments of the better of both ranks."),
        _share("grounding", "Share of the answer's content words that occur in the source segments."),
        _share("lexical_overlap", "Share of the question's content words that occur in the source segments."),
        Column("well_formed", pl.Boolean(), "True where the question has the form of one."),
        _share("hop_need", "Share of the question's rare words that the least of its hops alone holds; 1: one hop."),
        Column("hops_needed", pl.Boolean(), "False where the answer follows without one of the hops."),
    ),
    key=("qa_id",),
    sources={
        **dict.fromkeys(("relevance", "clarity", "well_formed"), ("qa_pairs.question",)),
        "accuracy": ("qa_pairs.answer",),
        **dict.fromkeys(("context_support", "grounding"), ("qa_pairs.answer", "segments.text")),
        "lexical_overlap": ("qa_pairs.question", "segments.text"),
        "round_trip_rank": ("qa_pairs.segment_ids",),
    },
)

CORPUS = Table(
    "corpus",
    "Segments of the newest version of every document still present: what is searched.",
    (
        _SEGMENT_ID,
        _DOCUMENT_ID,
        _PATH,
        _text("title", "The document's title."),
        *_SEGMENT_BODY,
        replace(_BATCH, description="Document batch that it was read with; null: a label set's.", nullable=True),
        _text("label_set", "Label set that brings the passage along; null: it is of the documents.", nullable=True),
    ),
    key=("segment_id",),
)

LEFT_OUT_DOCUMENTS = Table(
    "left_out_documents",
    "Present documents that are not in the corpus because another one says the same, and which.",
    (
        _PATH,
        _DOCUMENT_ID,
        _BATCH,
        _one_of("reason", COPY_KINDS, "Whether the other one has the same text, or nearly."),
        _text("duplicate_of", "Path of the document that is in the corpus."),
        _share("resemblance", "Share of the longer document's word 5-grams that occur in the other."),
    ),
    key=("path",),
    sources={"duplicate_of": ("documents.path",), "resemblance": ("documents.text",)},
)

_RANKED = ("qa_pairs.question", "qa_pairs.segment_ids", "corpus.text")

QA_DATASET = Table(
    "qa_dataset",
    "Accepted pairs over the present corpus, deduplicated across batches, and the pairs of other sources.",
    (
        _text("qa_id", "The pair."),
        _one_of("origin", ORIGINS, "Where the pair comes from."),
        replace(_BATCH, description="Document batch that it was generated from; null: not generated.", nullable=True),
        _text("label_set", "Label set that it comes from; null: not labelled.", nullable=True),
        _one_of(
            "side", SIDES, "Side on which the label's own split has it; null: the split here decides.", nullable=True
        ),
        *_pair_body(generated=False),
        *(replace(column, nullable=True) for column in _GENERATED_BY),
        _score("overall", "Mean of the judge's four scores; null: nobody judged it.", nullable=True),
        _number(
            "round_trip_rank",
            _FROM_ONE,
            "Worst rank of its source segments in the whole corpus; null: not measured.",
            nullable=True,
        ),
    ),
    key=("qa_id",),
    sources={"label_set": (), "round_trip_rank": _RANKED},
)

QA_REVIEWS = Table(
    "qa_reviews",
    "What people said of pairs on the inspection page, in order; rows are added and none is changed.",
    (
        _text("review_id", "Review: hash of everything else in the row."),
        _text("qa_id", "The pair."),
        Column("reviewed_at", _TIME, "When it was said."),
        _text("reviewer", "Who said it."),
        _one_of(
            "action",
            REVIEW_ACTIONS,
            "What was done; edit: accepted with other words; positive: a segment answers it as well; withdraw: nothing "
            "that was said before counts any more.",
        ),
        _text("question", "The question as edited; null: left as it is.", nullable=True),
        _text("answer", "The answer as edited; null: left as it is.", nullable=True),
        _text("segment_id", "The segment that answers it as well; null: another action.", nullable=True),
        _text("comment", "Why; empty: nothing was said."),
    ),
    key=("review_id",),
    stage="inspect",
)

QA_DECISIONS = Table(
    "qa_decisions",
    "What became of every scored pair, and why.",
    (
        _text("qa_id", "The pair."),
        _BATCH,
        _text("question", "The question."),
        Column("accepted", pl.Boolean(), "True where the pair is in qa_dataset."),
        _one_of("reason", DECISIONS, "Accepted, or the first threshold or rule that it failed; reviewer: a person."),
        _text("detail", "The value that failed and its bound, or who decided; empty where the rules accept it."),
        _OVERALL,
        _number("round_trip_rank", _FROM_ONE, "Worst rank of its source segments in the whole corpus."),
        _text("duplicate_of", "The better-scored pair that asks the same.", nullable=True),
    ),
    key=("qa_id",),
    sources={"reason": ("qa_scores.overall",), "round_trip_rank": _RANKED, "duplicate_of": ("qa_pairs.qa_id",)},
)

DATASET_SPLIT = Table(
    "dataset_split",
    "Which side each accepted pair is on; a document group is on one side whole.",
    (
        _text("qa_id", "The pair."),
        _text("question", "The question."),
        _ids("document_ids", "Documents of its source segments."),
        _ids("paths", "Files of those documents, in the same order: an edited document keeps its side."),
        _text("group_id", "Document group: joined by near-duplicate text or multi-hop questions; empty: several."),
        _one_of("split", SPLITS, "The side; held_out: on none."),
        _one_of("reason", SPLIT_REASONS, "Why it is held out; given: by the label's own split; empty: by its group."),
    ),
    key=("qa_id",),
    stage="prep",
    sources={"paths": ("corpus.path",), "group_id": ("corpus.text",), "split": ("qa_dataset.side",)},
)

BASE_COMPARISON = Table(
    "base_comparison",
    "The candidates for the base model, untuned, on every query set; empty where embedding.candidates names none.",
    (
        _text("model", "The candidate, as it is named in the settings."),
        _text("query_set", "`generated` for the held-out questions, else the labelled set's name."),
        _count("queries", "Queries measured."),
        _real("ndcg_10", "nDCG@10, 0 to 1."),
        _real("ndcg_10_low", "Lower end of its bootstrap 95 % interval."),
        _real("ndcg_10_high", "Upper end of that interval."),
        _real("recall_10", "Recall@10, 0 to 1."),
        _real("recall_10_low", "Lower end of its bootstrap 95 % interval."),
        _real("recall_10_high", "Upper end of that interval."),
        _count("dimensions", "Length of a vector."),
        _count("max_tokens", "Longest text that it reads, in its own tokens."),
        _share("cut_segments", "Share of the searched passages that are longer, so that their ends are not read."),
        _real("megabytes", "Size of its weights on disk in fp32, as it would be released."),
        _real("gigaflops", "Billions of operations for a text of 128 tokens: what a vector costs."),
        _real("vectors_per_second", "Passages encoded a second when it was measured, on that machine."),
        Column("chosen", pl.Boolean(), "True where it is the base that is trained."),
    ),
    key=("model", "query_set"),
    stage="prep",
)

BASE_MODEL = Table(
    "base_model",
    "The base model that is trained: embedding.model, or the candidate chosen where that is auto.",
    (_text("model", "As it is named in the settings."),),
    stage="prep",
)

HARD_NEGATIVES = Table(
    "hard_negatives",
    "For each training question its positives and the most similar wrong segments under the ceiling.",
    (
        _text("qa_id", "The pair, or the structure pair, that is the question."),
        _one_of("origin", ORIGINS, "Where the question comes from; keywords: it is shortened from another."),
        _text("question", "The question."),
        _ids("positive_segment_ids", "Segments that answer it; of those that say the same, one."),
        Column("positive_similarities", pl.List(pl.Float64), "Cosine of question and positive, in the same order."),
        _real("ceiling", "Greatest similarity that a mined negative may have."),
        _ids(
            "negative_segment_ids", "Hard negatives: labelled, then mined, most similar first; few where few survive."
        ),
        Column("negative_similarities", pl.List(pl.Float64), "Cosine of question and negative, in the same order."),
        _count("labelled_negatives", "Negatives at the front that come with the labels: no ceiling holds for them."),
        _count("above_ceiling", "Candidates rejected because they came too close to the positive."),
        _ids("answering_segment_ids", "Candidates that a cross-check says answer it: dropped, or positives now."),
        _text("cross_check", "Who checked and what became of answers, such as `drop by judge gpt-x`; empty: nobody."),
    ),
    key=("qa_id",),
    stage="prep",
    sources={
        "positive_segment_ids": ("qa_dataset.segment_ids", "qa_reviews.segment_id"),
        "negative_segment_ids": ("corpus.segment_id",),
    },
)

TRAINING_EXAMPLES = Table(
    "training_examples",
    "One row for each question and positive; siblings share a qa_id.",
    (
        _text("example_id", "Example: hash of question id and positive."),
        _text("qa_id", "The original question; examples that share it are siblings."),
        _one_of("origin", ORIGINS, "Where the question comes from; keywords: it is shortened from another."),
        _text("question", "The question."),
        _text("positive_segment_id", "The segment that answers it."),
        _ids("negative_segment_ids", "Hard negatives, the same for all siblings."),
        _real("positive_similarity", "Cosine of question and positive under the base model."),
        Column("negative_similarities", pl.List(pl.Float64), "Cosine of question and each negative."),
    ),
    key=("example_id",),
    stage="prep",
    sources={
        "example_id": ("hard_negatives.qa_id",),
        "positive_segment_id": ("hard_negatives.positive_segment_ids",),
        "positive_similarity": ("hard_negatives.positive_similarities",),
    },
)

RETRIEVAL_EVALUATION = Table(
    "retrieval_evaluation",
    "Every metric of every system on every query set, with its difference to the base model.",
    (
        _text("query_set", "`generated` for the held-out questions, else the labelled set's name."),
        _text("slice", "`all`, or the slice such as `hop_count=2`."),
        _one_of("system", SYSTEMS, "What ranked the passages."),
        _one_of("metric", (*METRICS, ALL_RECALL), "What is measured; AllRecall: no row where no query needs several."),
        _count("k", "Cut-off."),
        _count("queries", "Queries measured; AllRecall: those that need several segments or documents."),
        _real("value", "Mean over the queries, 0 to 1."),
        _real("difference", "Value less the base model's; 0 for the base."),
        _real("difference_low", "Lower end of the paired bootstrap 95 % interval of the difference."),
        _real("difference_high", "Upper end of that interval."),
    ),
    key=("query_set", "slice", "system", "metric", "k"),
    stage="eval",
)

FUSION_WEIGHTS = Table(
    "fusion_weights",
    "nDCG@10 of BM25 fused with each model, at each dense weight and by reciprocal ranks; empty without dev questions.",
    (
        _text("query_set", "`dev`, on which the weights are chosen, or a set that they are checked on."),
        _one_of("system", HYBRIDS, "The model that is fused with BM25."),
        _text("fusion", "The dense weight, or `RRF`."),
        _real("dense_weight", "Weight of the dense z-score; null: by reciprocal ranks.", nullable=True),
        _count("queries", "Queries measured: all, or a sample of 500."),
        _share("ndcg_10", "Mean nDCG@10."),
        Column("chosen", pl.Boolean(), "True at the weight that the evaluation's hybrid has."),
    ),
    key=("query_set", "system", "fusion"),
    stage="eval",
)

QUESTION_RESULTS = Table(
    "question_results",
    "What base, tuned model and BM25 make of each query: wins and losses of the tuned model.",
    (
        _text("query_set", "`generated`, or the labelled set's name."),
        _text("query_id", "The pair's qa_id, or the set's query id."),
        _text("question", "The query."),
        _real("base_ndcg_10", "nDCG@10 under the base model."),
        _real("tuned_ndcg_10", "nDCG@10 under the tuned model."),
        _real("bm25_ndcg_10", "nDCG@10 under BM25."),
        _real("base_recall_10", "Recall@10 under the base model."),
        _real("tuned_recall_10", "Recall@10 under the tuned model."),
        _real(
            "base_all_recall_10",
            "1 where the base model ranks all that the query needs within 10; null: it needs one.",
            nullable=True,
        ),
        _real("tuned_all_recall_10", "The same under the tuned model; null as above.", nullable=True),
        _count(
            "base_rank", "Rank of the base model's first answer; null: not within the deepest cut-off.", nullable=True
        ),
        _count("tuned_rank", "Rank of the first answer under the tuned model; null as above.", nullable=True),
        _count("bm25_rank", "Rank of BM25's first answer; null as above, or it shares no word.", nullable=True),
        _real("change", "nDCG@10 under the tuned model less that under the base model."),
        _one_of("outcome", OUTCOMES, "The sign of the change."),
        _text("base_first", "Segment that the base model ranks first."),
        _text("tuned_first", "Segment that the tuned model ranks first."),
        _text("bm25_first", "Segment that BM25 ranks first; empty: none shares a word with the query."),
    ),
    key=("query_set", "query_id"),
    stage="eval",
    sources={
        "query_id": ("qa_dataset.qa_id",),
        **dict.fromkeys(("base_first", "tuned_first", "bm25_first"), ("corpus.segment_id",)),
    },
)

CHAMPION_COMPARISON = Table(
    "champion_comparison",
    "The candidate release against the one served now, on the frozen test questions and every labelled set.",
    (
        _text("query_set", "`generated` for the held-out questions, else the labelled set's name."),
        _text("champion", "Version of the release served now."),
        _text("candidate", "Version of the release that may take its place."),
        _count("queries", "Queries measured."),
        _real("champion_ndcg_10", "nDCG@10 of the champion, 0 to 1."),
        _real("candidate_ndcg_10", "nDCG@10 of the candidate."),
        _real("difference_low", "Lower end of the paired bootstrap 95 % interval of candidate less champion."),
        _real("difference_high", "Upper end of that interval."),
    ),
    key=("query_set",),
    stage="deploy",
)

DEPLOYMENT = Table(
    "deployment",
    "The last deployment: what was served, where, and what its verification measured.",
    (
        _text("release_version", "Version of the release bundle that was served."),
        _text("precision", "What the model computed in: fp32, int8, fp16 or bf16."),
        _text("runtime", "By what: onnxruntime, openvino or torch; endpoint: a server that is not ours."),
        _text("url", "Base URL of the endpoint."),
        Column("left_running", pl.Boolean(), "True where an endpoint was left running there."),
        _count("texts_compared", "Texts whose served vectors were compared with the model's."),
        _real("min_cosine", "Least cosine between served and original vector."),
        _real("top10_overlap", "Mean overlap of the ten best passages, served against original."),
        _real("median_milliseconds", "Median time of a single-query request."),
    ),
    stage="deploy",
)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        DOCUMENTS,
        REJECTED_DOCUMENTS,
        BOILERPLATE,
        SEGMENTS,
        DOCUMENT_ARTIFACTS,
        QA_PAIRS,
        REJECTED_PAIRS,
        REJECTED_JUDGEMENTS,
        QA_SCORES,
        CORPUS,
        LEFT_OUT_DOCUMENTS,
        QA_REVIEWS,
        QA_DATASET,
        QA_DECISIONS,
        DATASET_SPLIT,
        BASE_COMPARISON,
        BASE_MODEL,
        HARD_NEGATIVES,
        TRAINING_EXAMPLES,
        RETRIEVAL_EVALUATION,
        FUSION_WEIGHTS,
        QUESTION_RESULTS,
        CHAMPION_COMPARISON,
        DEPLOYMENT,
    )
}
