"""Forgets a document: removes every stored row that came from it, and names the models that were trained on it."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import dagster as dg
import polars as pl
from filelock import FileLock, Timeout
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.corpus.batches import forget_path
from embed_pipeline.corpus.files import is_present
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.orchestration.freshness import (
    DATA_VERSION,
    FINGERPRINT,
    INPUT_DATA_VERSION,
    fingerprint,
    materializations,
)
from embed_pipeline.settings import Paths, Settings
from embed_pipeline.storage import check_name, list_folder, reaching, read_table, read_whole, table_path, write_whole

Identity = Literal["path", "document_id", "segment_id", "qa_id"]
TRACED_COLUMNS: Mapping[str, Mapping[str, Identity]] = MappingProxyType(
    {
        "documents": {"path": "path"},
        "rejected_documents": {"path": "path"},
        "left_out_documents": {"path": "path"},
        "segments": {"document_id": "document_id"},
        "corpus": {"document_id": "document_id"},
        "document_artifacts": {"document_id": "document_id", "segment_ids": "segment_id"},
        "qa_pairs": {"qa_id": "qa_id", "segment_ids": "segment_id"},
        "rejected_pairs": {"segment_ids": "segment_id"},
        "rejected_judgements": {"segment_ids": "segment_id"},
        "qa_scores": {"qa_id": "qa_id"},
        "qa_dataset": {"qa_id": "qa_id", "segment_ids": "segment_id"},
        "qa_decisions": {"qa_id": "qa_id"},
        "dataset_split": {"qa_id": "qa_id"},
        "hard_negatives": {
            "qa_id": "qa_id",
            "positive_segment_ids": "segment_id",
            "negative_segment_ids": "segment_id",
            "answering_segment_ids": "segment_id",
        },
        "training_examples": {
            "qa_id": "qa_id",
            "positive_segment_id": "segment_id",
            "negative_segment_ids": "segment_id",
        },
        "question_results": {"query_id": "qa_id"},
    }
)
"""Table to the columns, ids or lists of ids, by which its rows are known to come from a document."""
UNTRACED_TABLES = frozenset({"boilerplate", "retrieval_evaluation", "champion_comparison", "deployment"})
"""Tables whose rows come from no single document: figures, and lines that many documents share."""
_TRAINED_ON = "trained_on"
_MIN_ANSWER_CHARACTERS = 12
"""Shorter texts may occur in answers about other documents."""
_ANSWER_COLUMNS = frozenset({"question", "answer", "text", "raw", *(f"{name}_justification" for name in CRITERIA)})
"""Columns that hold words of the language model."""


class ForgettingError(ValueError):
    """A document cannot be forgotten as asked."""


@dataclass(frozen=True)
class Traces:
    """Paths and ids of everything that was made from a document.

    Attributes:
        paths: its files.
        document_ids: its versions that no other file holds.
        segment_ids: their segments.
        qa_ids: pairs whose question needs one of these versions.
    """

    paths: frozenset[str]
    document_ids: frozenset[str]
    segment_ids: frozenset[str]
    qa_ids: frozenset[str]

    def values(self, identity: Identity) -> frozenset[str]:
        """The paths or ids of that kind."""
        kinds = {
            "path": self.paths,
            "document_id": self.document_ids,
            "segment_id": self.segment_ids,
            "qa_id": self.qa_ids,
        }
        return kinds[identity]


@dataclass(frozen=True)
class Forgotten:
    """What was removed.

    Attributes:
        traces: paths and ids of the document.
        rows: table to rows removed.
        answers: stored answers of the language model removed.
        models: MLflow versions of the registered model that were trained on it; it is still in their weights.
        unknown: versions whose training material is not recorded.
    """

    traces: Traces
    rows: Mapping[str, int]
    answers: int
    models: tuple[str, ...]
    unknown: tuple[str, ...]


def forget_document(
    name: str, settings: Settings, instance: dg.DagsterInstance, assets: list[dg.AssetsDefinition]
) -> Forgotten:
    """Remove a document's rows from every table, its batch manifests and the answers of the language model.

    Every rewritten table is recorded as a new version made from its present inputs, so the next run makes nothing again
    and nothing is paid for twice. All vectors, exports and reports are removed; a run makes them again.

    Args:
        name: its path relative to the documents folder, or a document id.
        settings: ``paths``.
        instance: where the new versions of the tables are recorded.
        assets: all assets, in the order in which data flows.

    Raises:
        ForgettingError: no such document is stored, its file is still there, or a command is at work.
    """
    store, root = settings.paths.store, settings.paths.root
    try:
        with FileLock(store / ".lock").acquire(timeout=0):
            traces = find_traces(name, root)
            present = [path for path in sorted(traces.paths) if is_present(settings.paths.documents, path)]
            if present:
                message = f"{', '.join(present)} is still in {settings.paths.documents} and would be read again: "
                raise ForgettingError(message + "remove it first")
            models, unknown = models_trained_on(traces, root, instance)
            answers = _forget_answers(traces, settings.paths)
            for path in sorted(traces.paths):
                forget_path(settings.paths, path)
            rows = _forget_rows(traces, root, instance, assets)
            _remove_derived(store)
    except Timeout as error:
        message = f"a command is at work on {store}; wait for it to end"
        raise ForgettingError(message) from error
    return Forgotten(traces, rows, answers, models, unknown)


def find_traces(name: str, root: UPath) -> Traces:
    """Everything that came from a document, by id.

    Raises:
        ForgettingError: no such document is stored.
    """
    documents = _whole(root, tables.DOCUMENTS)
    paths = frozenset(documents.filter((pl.col("path") == name) | (pl.col("document_id") == name))["path"])
    if not paths:
        message = f"no document {name!r} is stored in {root}; name its path in the documents folder, or its id"
        raise ForgettingError(message)
    own = set(documents.filter(pl.col("path").is_in(paths))["document_id"])
    elsewhere = set(documents.filter(~pl.col("path").is_in(paths))["document_id"])
    document_ids = frozenset(own - elsewhere)
    segments = _whole(root, tables.SEGMENTS).filter(pl.col("document_id").is_in(document_ids))
    pairs = _whole(root, tables.QA_PAIRS)
    qa_ids = frozenset(pairs.filter(_any_of("document_ids", document_ids))["qa_id"])
    return Traces(paths, document_ids, frozenset(segments["segment_id"]), qa_ids)


def remember_examples(root: UPath, examples: pl.DataFrame) -> None:
    """Store the ids in a version of ``training_examples``, by which models trained on a document are found."""
    used = examples.select(
        pl.concat_list("positive_segment_id", "negative_segment_ids").alias("segment_id"), "qa_id"
    ).explode("segment_id")
    path = root / _TRAINED_ON / f"{tables.content_hash(examples)}.parquet"
    write_whole(path, _parquet(used.unique().sort("segment_id", "qa_id")))


def models_trained_on(
    traces: Traces, root: UPath, instance: dg.DagsterInstance
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """MLflow versions that were trained on the document, and those whose training material is not recorded."""
    trained, unknown = [], []
    for event in materializations(instance, dg.AssetKey("finetuned_model")):
        version = event.metadata.get("mlflow_version")
        named = str(version.value) if version is not None else "unregistered"
        examples = (event.tags or {}).get(f"{INPUT_DATA_VERSION}training_examples", "unrecorded")
        try:
            used = pl.read_parquet(io.BytesIO(read_whole(root / _TRAINED_ON / f"{check_name(examples)}.parquet")))
        except FileNotFoundError:
            unknown.append(named)
            continue
        touched = used.filter(pl.col("segment_id").is_in(traces.segment_ids) | pl.col("qa_id").is_in(traces.qa_ids))
        if touched.height:
            trained.append(named)
    return tuple(dict.fromkeys(reversed(trained))), tuple(dict.fromkeys(reversed(unknown)))


def _forget_rows(
    traces: Traces, root: UPath, instance: dg.DagsterInstance, assets: list[dg.AssetsDefinition]
) -> dict[str, int]:
    """Rewrite every table without the document's rows and record its new version; return rows removed by table."""
    removed: dict[str, int] = {}
    for definition in assets:
        for key in sorted(definition.keys, key=str):
            name = key.path[-1]
            if name not in TRACED_COLUMNS:
                continue
            table = tables.TABLES[name]
            for path, batch in _files(root, table):
                frame = read_table(path, table)
                left = frame.filter(~comes_from(name, traces))
                count = frame.height - left.height
                if count:
                    write_whole(path, _parquet(left))
                    removed[name] = removed.get(name, 0) + count
                if count or instance.get_latest_materialization_event(key) is not None:
                    _record(instance, definition, key, batch, left=left, removed=count)
    return removed


def _record(
    instance: dg.DagsterInstance,
    definition: dg.AssetsDefinition,
    key: dg.AssetKey,
    batch: str | None,
    *,
    left: pl.DataFrame,
    removed: int,
) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            partition=batch,
            description=f"a document was forgotten; rows removed: {removed}",
            metadata={
                "dagster/row_count": left.height,
                "forgotten_rows": removed,
                FINGERPRINT: fingerprint(instance, definition, key, batch),
            },
            tags={DATA_VERSION: tables.content_hash(left)},
        )
    )


def comes_from(table: str, traces: Traces) -> pl.Expr:
    """True for the rows of a table of :data:`TRACED_COLUMNS` that came from the document."""
    schema = tables.TABLES[table].schema
    return pl.any_horizontal(
        _any_of(column, traces.values(identity))
        if schema[column] == pl.List
        else pl.col(column).is_in(traces.values(identity))
        for column, identity in TRACED_COLUMNS[table].items()
    )


def _any_of(column: str, ids: frozenset[str]) -> pl.Expr:
    """True where the list column holds one of the ids."""
    return pl.col(column).list.set_intersection(sorted(ids)).list.len() > 0


def _forget_answers(traces: Traces, paths: Paths) -> int:
    """Remove the language model's stored answers about the document, found by the words that its rows hold."""
    path = paths.store / "responses.sqlite"
    if not path.is_file():
        return 0
    texts: set[tuple[str, ...]] = set()
    for table in (tables.QA_PAIRS, tables.QA_SCORES, tables.DOCUMENT_ARTIFACTS, tables.REJECTED_PAIRS):
        rows = _whole(paths.root, table).filter(comes_from(table.name, traces))
        for column in _ANSWER_COLUMNS.intersection(table.schema.names()):
            texts.update((text,) for text in rows[column] if len(text) >= _MIN_ANSWER_CHARACTERS)
    artifacts = _whole(paths.root, tables.DOCUMENT_ARTIFACTS).filter(pl.col("document_id").is_in(traces.document_ids))
    # A single artifact is short; an answer that holds all of a document's artifacts is about it.
    texts.update(tuple(own) for own in artifacts.group_by("document_id").agg("text")["text"].to_list())
    with ResponseStore(path) as responses:
        return responses.remove_holding(texts)


def _remove_derived(store: Path) -> None:
    """Remove what a run makes again: vectors, exports, reports and the weights of the last training."""
    for folder in ("vectors", "exports", "reports", "models/finetuned_model/.work"):
        for path in sorted((store / folder).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


def _whole(root: UPath, table: tables.Table) -> pl.DataFrame:
    """A table over all its batches."""
    frames = [read_table(path, table) for path, _ in _files(root, table)]
    return pl.concat(frames) if frames else table.empty()


def _files(root: UPath, table: tables.Table) -> Iterator[tuple[UPath, str | None]]:
    """Where a table is stored: file and batch."""
    whole = table_path(root, table.name)
    with reaching(whole):
        exists = whole.is_file()
    if exists:
        yield whole, None
    for path in list_folder(whole.with_suffix(""), "*.parquet"):
        yield path, path.stem


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
