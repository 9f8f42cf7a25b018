"""Forgets a document: removes every stored row that came from it, and names the models that were trained on it."""

import io
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import dagster as dg
import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.corpus.batches import forget_path
from embed_pipeline.corpus.current import present_documents
from embed_pipeline.corpus.files import is_present
from embed_pipeline.enumerations import LABELLED
from embed_pipeline.lineage import trained_on_path
from embed_pipeline.orchestration.absence import (
    Record,
    WordHashes,
    find_remains,
    forget_answers,
    path_hash,
    recall,
    remember,
    stored_texts,
    table_files,
)
from embed_pipeline.orchestration.freshness import (
    DATA_VERSION,
    FINGERPRINT,
    INPUT_DATA_VERSION,
    fingerprint,
    materializations,
)
from embed_pipeline.orchestration.reviewing import report_reviews
from embed_pipeline.orchestration.store_lock import locked_store, unfinished_runs
from embed_pipeline.settings import Settings
from embed_pipeline.storage import read_table, read_whole, write_whole
from embed_pipeline.tracking import Tracker

Identity = Literal["path", "document_id", "segment_id", "qa_id"]
TRACED_COLUMNS: Mapping[str, Mapping[str, Identity]] = MappingProxyType(
    {
        "documents": {"path": "path", "document_id": "document_id"},
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
        "qa_reviews": {"qa_id": "qa_id", "segment_id": "segment_id"},
    }
)
"""Table to the columns, ids or lists of ids, by which its rows are known to come from a document."""
UNTRACED_TABLES = frozenset(
    {
        "boilerplate",
        "base_comparison",
        "base_model",
        "retrieval_evaluation",
        "fusion_weights",
        "champion_comparison",
        "deployment",
    }
)
"""Tables whose rows come from no single document: figures, and lines that many documents share."""
_ASIDE: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "hard_negatives": {
            "positive_segment_ids": ("positive_similarities",),
            "negative_segment_ids": ("negative_similarities",),
            "answering_segment_ids": (),
        },
        "training_examples": {"negative_segment_ids": ("negative_similarities",)},
    }
)
"""Table to its lists of segments that a row can lose some of, each with the lists in the same order."""
_WORDLESS = frozenset(
    {"batch", "origin", "reason", "kind", "style", "query_type", "reasoning_type", "generator", "judge", "path"}
)
"""Columns of words that say nothing of a document; ids are left out as well."""


class ForgettingError(ValueError):
    """A document cannot be forgotten as asked."""


@dataclass(frozen=True)
class Traces:
    """Paths and ids of everything that was made from a document.

    Attributes:
        paths: its files, those that it was before it was renamed among them.
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
        answers: stored answers of the language model removed on this machine.
        shortened: table to rows of other documents that lost a negative, which the next run mines again.
        artifacts: MLflow's artifacts that quoted it and were deleted, run and path.
        meanwhile: runs that began while it was forgotten; they may have written some of it back.
        models: MLflow versions of the registered model that were trained on it; it is still in their weights.
        unknown: versions whose training material is not recorded.
    """

    traces: Traces
    rows: Mapping[str, int]
    answers: int
    shortened: Mapping[str, int]
    artifacts: tuple[str, ...]
    meanwhile: tuple[str, ...]
    models: tuple[str, ...]
    unknown: tuple[str, ...]


def forget_document(
    name: str, settings: Settings, instance: dg.DagsterInstance, assets: list[dg.AssetsDefinition], tracker: Tracker
) -> Forgotten:
    """Remove a document's rows from every table, its batch manifests, the answers about it and reports that quote it.

    Every rewritten table is recorded as a new version made from its present inputs, so the next run makes nothing again
    and nothing is paid for twice; only the negatives of questions that lost one are mined again. All vectors, exports
    and reports are removed; a run makes them again. Forgetting can be repeated, after a crash or a run that wrote some
    of it back: hashes of its ids and words are kept (:class:`embed_pipeline.orchestration.absence.Record`).

    Args:
        name: its path relative to the documents folder, or a document id.
        settings: ``paths``.
        instance: where the new versions of the tables are recorded.
        assets: all assets, in the order in which data flows.
        tracker: whose artifacts may quote it.

    Raises:
        ForgettingError: no such document is stored or was forgotten, its file is still there, or runs are in progress.
        StoreBusyError: a command is at work.
    """
    store, root = settings.paths.store, settings.paths.root
    with locked_store(instance, store):
        running = unfinished_runs(instance)
        if running:
            message = f"{len(running)} runs wait or are in progress and may write it back: {', '.join(running)}; "
            raise ForgettingError(message + "wait for them to end, or terminate them in the UI")
        started = datetime.now(UTC)
        known = recall(root, name)
        traces = find_traces(name, root, known)
        present = [path for path in sorted(traces.paths) if is_present(settings.paths.documents, path)]
        if present:
            message = f"{', '.join(present)} is still in {settings.paths.documents} and would be read again: "
            raise ForgettingError(message + "remove it first")
        models, unknown = models_trained_on(traces, root, instance)
        record = _record_of(traces, root, known)
        # Before anything is removed: where this is cut off, it can be repeated.
        remember(root, record)
        for path in sorted(traces.paths):
            forget_path(settings.paths, path)
        again = {"corpus", "left_out_documents"} if _stays_elsewhere(traces, root) else set()
        rows, shortened = _forget_rows(traces, root, instance, assets, again)
        _remove_derived(store)
        record = replace(record, words=record.words.without(stored_texts(root)))
        remember(root, record)
        answers = forget_answers(settings.paths)
        artifacts = tracker.remove_artifacts(record.words.are_in)
        meanwhile = unfinished_runs(instance, since=started)
    return Forgotten(traces, rows, answers, shortened, tuple(artifacts), tuple(meanwhile), models, unknown)


def check_absence(name: str, settings: Settings, instance: dg.DagsterInstance, tracker: Tracker) -> Mapping[str, int]:
    """Every place where a forgotten document is still found, with how often; none: it is absent.

    Raises:
        ForgettingError: it was never forgotten here.
    """
    record = recall(settings.paths.root, name)
    if record is None:
        message = f"no document {name!r} was forgotten in {settings.paths.root}; its words are not known"
        raise ForgettingError(message)
    return find_remains(record.words, record.paths, settings, instance, tracker)


def _record_of(traces: Traces, root: UPath, known: Record | None) -> Record:
    """The record of a document that is about to be forgotten, with what an earlier one knows."""
    texts: set[str] = set()
    for name in TRACED_COLUMNS:
        table = tables.TABLES[name]
        rows = _whole(root, table)
        if name in _ASIDE:
            own = rows.join(without_document(rows, name, traces)[0], on=table.key, how="anti")
        else:
            own = rows.filter(comes_from(name, traces))
        columns = [column for column, kind in own.schema.items() if kind == pl.String and _is_worded(column)]
        texts.update(text for column in columns for text in own[column].drop_nulls())
        for hops in own["hops"] if "hops" in own.columns else []:
            texts.update(hop["summary"] for hop in hops)
    artifacts = _whole(root, tables.DOCUMENT_ARTIFACTS).filter(pl.col("document_id").is_in(traces.document_ids))
    groups = artifacts.group_by("document_id").agg("text")["text"].to_list()
    words = WordHashes.of(texts - traces.paths, groups, known.words.salt if known else None)
    return Record(
        frozenset(map(path_hash, traces.paths)) | (known.paths if known else frozenset()),
        traces.document_ids, traces.segment_ids, traces.qa_ids,
        words.joined(known.words) if known else words,
        known.times + 1 if known else 1,
    )  # fmt: skip


def _is_worded(column: str) -> bool:
    return column not in _WORDLESS and not column.endswith(("_id", "_version"))


def find_traces(name: str, root: UPath, known: Record | None = None) -> Traces:
    """Everything that came from a document, by id.

    Args:
        name: its path, or a document id.
        root: where the tables are.
        known: what is known of it because it was forgotten before.

    Raises:
        ForgettingError: no such document is stored, and none was forgotten.
    """
    documents = _whole(root, tables.DOCUMENTS)
    present = present_documents({"": documents.sort("batch", maintain_order=True)})
    paths = frozenset(documents.filter((pl.col("path") == name) | (pl.col("document_id") == name))["path"])
    if not paths and known is None:
        message = f"no document {name!r} is stored in {root}; name its path in the documents folder, or its id"
        raise ForgettingError(message)
    if known is not None and path_hash(name) in known.paths:
        paths |= {name}
    before = known.document_ids if known else frozenset()
    paths, own = _with_former_paths(paths, documents, present)
    own |= before
    elsewhere = set(present.filter(~pl.col("path").is_in(paths))["document_id"])
    document_ids = frozenset(own - elsewhere)
    segments = frozenset(_whole(root, tables.SEGMENTS).filter(pl.col("document_id").is_in(document_ids))["segment_id"])
    pairs = _whole(root, tables.QA_PAIRS)
    qa_ids = frozenset(pairs.filter(_any_of("document_ids", document_ids))["qa_id"])
    if known is not None and not elsewhere & before:
        segments, qa_ids = segments | known.segment_ids, qa_ids | known.qa_ids
    return Traces(paths, document_ids, segments, qa_ids)


def _with_former_paths(
    paths: frozenset[str], documents: pl.DataFrame, present: pl.DataFrame
) -> tuple[frozenset[str], set[str]]:
    """The paths and those that a document had before it was renamed, and all versions of it.

    A path where another document is now is none of its own any more.
    """
    gone = documents.filter(~pl.col("path").is_in(present["path"].implode()))
    while True:
        versions = set(documents.filter(pl.col("path").is_in(paths))["document_id"])
        former = frozenset(gone.filter(pl.col("document_id").is_in(versions))["path"])
        if former <= paths:
            return paths, versions
        paths |= former


def _stays_elsewhere(traces: Traces, root: UPath) -> bool:
    """Whether the corpus has to be made again: another file holds a version, or was left out as a copy of this one."""
    documents, left_out = _whole(root, tables.DOCUMENTS), _whole(root, tables.LEFT_OUT_DOCUMENTS)
    versions = set(documents.filter(pl.col("path").is_in(traces.paths))["document_id"])
    return bool(versions - traces.document_ids) or left_out["duplicate_of"].is_in(traces.paths).any()


def remember_examples(root: UPath, examples: pl.DataFrame) -> None:
    """Store the ids in a version of ``training_examples``, by which models trained on a document are found."""
    used = examples.select(
        pl.concat_list("positive_segment_id", "negative_segment_ids").alias("segment_id"), "qa_id"
    ).explode("segment_id")
    path = trained_on_path(root, tables.content_hash(examples))
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
            used = pl.read_parquet(io.BytesIO(read_whole(trained_on_path(root, examples))))
        except FileNotFoundError:
            unknown.append(named)
            continue
        touched = used.filter(pl.col("segment_id").is_in(traces.segment_ids) | pl.col("qa_id").is_in(traces.qa_ids))
        if touched.height:
            trained.append(named)
    return tuple(dict.fromkeys(reversed(trained))), tuple(dict.fromkeys(reversed(unknown)))


def _forget_rows(
    traces: Traces,
    root: UPath,
    instance: dg.DagsterInstance,
    assets: list[dg.AssetsDefinition],
    again: Container[str],
) -> tuple[dict[str, int], dict[str, int]]:
    """Rewrite every table without the document and record its new version; ``again``: those to be made again.

    Returns:
        Table to rows removed, and table to rows of other documents that lost a segment from a list.
    """
    removed: dict[str, int] = {}
    shortened: dict[str, int] = {}
    # First of all: what is made from them is then recorded as made from those that are left.
    removed[tables.QA_REVIEWS.name] = _forget_reviews(traces, root, instance)
    for definition in assets:
        for key in sorted(definition.keys, key=str):
            name = key.path[-1]
            if name not in TRACED_COLUMNS:
                continue
            table = tables.TABLES[name]
            for path, batch in table_files(root, table):
                frame = read_table(path, table)
                left, touched = without_document(frame, name, traces)
                count = frame.height - left.height
                if count or touched:
                    write_whole(path, _parquet(left))
                    removed[name] = removed.get(name, 0) + count
                    shortened[name] = shortened.get(name, 0) + touched
                if count or touched or instance.get_latest_materialization_event(key) is not None:
                    remade = bool(touched) or name in again
                    _record(instance, definition, key, batch, left=left, removed=count, again=remade)
    return _some(removed), _some(shortened)


def _forget_reviews(traces: Traces, root: UPath, instance: dg.DagsterInstance) -> int:
    """Rewrite what people said without the document, which no step makes; return how many reviews were removed."""
    table, count = tables.QA_REVIEWS, 0
    for path, _ in table_files(root, table):
        frame = read_table(path, table)
        left, _ = without_document(frame, table.name, traces)
        if left.height < frame.height:
            write_whole(path, _parquet(left))
            count += frame.height - left.height
    report_reviews(instance, root)
    return count


def _some(counted: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counted.items() if count}


def without_document(frame: pl.DataFrame, table: str, traces: Traces) -> tuple[pl.DataFrame, int]:
    """A table of :data:`TRACED_COLUMNS` without the document, and how many rows of others lost one of its segments.

    A question that has a segment of the document among its negatives keeps the others. So does one that has it among
    its positives, if people labelled several or a cross-check added it; any other was made from the document.
    """
    if table not in _ASIDE:
        return frame.filter(~comes_from(table, traces)), 0
    gone, rows, touched = traces.segment_ids, [], 0
    made_from = _made_from(frame, gone) if table == "training_examples" else frozenset()
    for before in frame.filter(~comes_from(table, replace(traces, segment_ids=frozenset()))).to_dicts():
        needed = set(before.get("positive_segment_ids", ())) - set(before.get("answering_segment_ids", ()))
        if before.get("positive_segment_id") in gone or (needed & gone and before["origin"] != LABELLED):
            continue
        row = _without_segments(before, table, gone)
        # Of a question that loses one positive of several, the others are unrolled again by the next run.
        touched += row != before or before["qa_id"] in made_from
        if before["qa_id"] not in made_from and row.get("positive_segment_ids", ["known"]):
            rows.append(row)
    return tables.TABLES[table].frame(rows), touched


def _made_from(examples: pl.DataFrame, gone: frozenset[str]) -> frozenset[str]:
    """Questions that were not labelled by people and have a positive that is gone."""
    lost = examples.filter(pl.col("positive_segment_id").is_in(gone) & (pl.col("origin") != LABELLED))
    return frozenset(lost["qa_id"])


def _without_segments(before: Mapping[str, Any], table: str, gone: frozenset[str]) -> dict[str, Any]:
    """A row whose lists of segments, and the lists in the same order, have lost those that are gone."""
    row = dict(before)
    for column, beside in _ASIDE[table].items():
        kept = [place for place, segment in enumerate(before[column]) if segment not in gone]
        for name in (column, *beside):
            row[name] = [before[name][place] for place in kept]
        if column == "negative_segment_ids" and "labelled_negatives" in row:
            row["labelled_negatives"] = sum(place < before["labelled_negatives"] for place in kept)
    return row


def _record(
    instance: dg.DagsterInstance,
    definition: dg.AssetsDefinition,
    key: dg.AssetKey,
    batch: str | None,
    *,
    left: pl.DataFrame,
    removed: int,
    again: bool,
) -> None:
    """Record a rewritten table; ``again``: not as current, so that the next run makes it again."""
    current = {} if again else {FINGERPRINT: fingerprint(instance, definition, key, batch)}
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            partition=batch,
            description=f"a document was forgotten; rows removed: {removed}",
            metadata={
                "dagster/row_count": left.height,
                "forgotten_rows": removed,
                **current,
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
        else pl.col(column).is_in(traces.values(identity)).fill_null(value=False)
        for column, identity in TRACED_COLUMNS[table].items()
    )


def _any_of(column: str, ids: frozenset[str]) -> pl.Expr:
    """True where the list column holds one of the ids."""
    return pl.col(column).list.set_intersection(sorted(ids)).list.len() > 0


def _remove_derived(store: Path) -> None:
    """Remove what a run makes again: vectors, exports, reports and the weights of the last training."""
    for folder in ("vectors", "exports", "reports", "models/finetuned_model/.work"):
        for path in sorted((store / folder).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _whole(root: UPath, table: tables.Table) -> pl.DataFrame:
    """A table over all its batches."""
    frames = [read_table(path, table) for path, _ in table_files(root, table)]
    return pl.concat(frames) if frames else table.empty()


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
