"""Forgetting a document: every stored row that came from it goes, and the models that learned from it are named."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
from filelock import FileLock, Timeout
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.corpus.batches import forget_path
from embed_pipeline.corpus.files import is_present
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.orchestration.freshness import FINGERPRINT, fingerprint
from embed_pipeline.settings import Paths, Settings
from embed_pipeline.storage import list_folder, reaching, read_table, read_whole, table_path, write_whole

_TRAINED_ON = "trained_on"
_LEAST_FRAGMENT = 12
_PAGE = 500
_DATA_VERSION = "dagster/data_version"


class ForgettingError(ValueError):
    """A document cannot be forgotten as asked."""


@dataclass(frozen=True)
class Traces:
    """What a document left behind.

    Attributes:
        paths: its files.
        document_ids: its versions that no other file holds.
        segment_ids: their segments.
        qa_ids: pairs that need one of them.
    """

    paths: frozenset[str]
    document_ids: frozenset[str]
    segment_ids: frozenset[str]
    qa_ids: frozenset[str]


@dataclass(frozen=True)
class Forgotten:
    """What was removed.

    Attributes:
        traces: what was looked for.
        rows: table to rows removed.
        answers: stored answers of the language model removed.
        models: MLflow versions of the registered model that were trained on it; it is still in their weights.
        unknown: versions of which it is not known what they were trained on.
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

    What is made over all batches is recorded as made anew from what is left, so that nothing is paid for again; the
    next run follows from there. Vectors and reports, which a run makes again, go whole.

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
    """Keep which segments a version of ``training_examples`` holds, so that a model's material is known later."""
    used = examples.select(
        pl.concat_list("positive_segment_id", "negative_segment_ids").alias("segment_id"), "qa_id"
    ).explode("segment_id")
    path = root / _TRAINED_ON / f"{tables.content_hash(examples)}.parquet"
    write_whole(path, _parquet(used.unique().sort("segment_id", "qa_id")))


def models_trained_on(
    traces: Traces, root: UPath, instance: dg.DagsterInstance
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """MLflow versions that were trained on the document, and those of which it is not known; oldest first."""
    trained, unknown = [], []
    for event in _materializations(instance, "finetuned_model"):
        version = event.metadata.get("mlflow_version")
        named = str(version.value) if version is not None else "unregistered"
        examples = (event.tags or {}).get("dagster/input_data_version/training_examples", "")
        try:
            used = pl.read_parquet(io.BytesIO(read_whole(root / _TRAINED_ON / f"{examples}.parquet")))
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
    """Rewrite every table without the rows, and record each as a new version; rows removed by table."""
    removed: dict[str, int] = {}
    for definition in assets:
        for key in sorted(definition.keys, key=str):
            table = tables.TABLES.get(key.path[-1])
            condition = _condition(table, traces) if table is not None else None
            if table is None or condition is None:
                continue
            for path, batch in _files(root, table):
                frame = read_table(path, table)
                kept = frame.filter(~condition)
                if kept.height < frame.height:
                    write_whole(path, _parquet(kept))
                    removed[table.name] = removed.get(table.name, 0) + frame.height - kept.height
                    _record(instance, definition, key, batch, kept=kept, removed=frame.height - kept.height)
                elif instance.get_latest_materialization_event(key) is not None:
                    _record(instance, definition, key, batch, kept=kept, removed=0)
    return removed


def _record(
    instance: dg.DagsterInstance,
    definition: dg.AssetsDefinition,
    key: dg.AssetKey,
    batch: str | None,
    *,
    kept: pl.DataFrame,
    removed: int,
) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            partition=batch,
            description=f"a document was forgotten: {removed} rows removed",
            metadata={
                "dagster/row_count": kept.height,
                "forgotten_rows": removed,
                FINGERPRINT: fingerprint(instance, definition, key, batch),
            },
            tags={_DATA_VERSION: tables.content_hash(kept)},
        )
    )


def _condition(table: tables.Table, traces: Traces) -> pl.Expr | None:
    """Which rows of a table came from the document; None: none can."""
    columns = set(table.schema.names())
    found: list[pl.Expr] = []
    if table.key == ("path",):
        found.append(pl.col("path").is_in(traces.paths))
    known = (("document_id", traces.document_ids), ("qa_id", traces.qa_ids), ("query_id", traces.qa_ids))
    found += [pl.col(name).is_in(ids) for name, ids in known if name in columns and table.key != ("path",)]
    found += [pl.col("positive_segment_id").is_in(traces.segment_ids)] if "positive_segment_id" in columns else []
    lists = ("segment_ids", "positive_segment_ids", "negative_segment_ids")
    found += [_any_of(name, traces.segment_ids) for name in lists if name in columns]
    return pl.any_horizontal(found) if found else None


def _any_of(column: str, ids: frozenset[str]) -> pl.Expr:
    """True where the list column holds one of the ids."""
    return pl.col(column).list.set_intersection(sorted(ids)).list.len() > 0


def _forget_answers(traces: Traces, paths: Paths) -> int:
    """Remove what the language model said about the document, known by the words that its rows hold."""
    path = paths.store / "responses.sqlite"
    if not path.is_file():
        return 0
    groups: set[tuple[str, ...]] = set()
    for table in (tables.QA_PAIRS, tables.QA_SCORES, tables.DOCUMENT_ARTIFACTS, tables.REJECTED_PAIRS):
        condition = _condition(table, traces)
        if condition is None:
            continue
        rows = _whole(paths.root, table).filter(condition)
        texts = [name for name, dtype in table.schema.items() if dtype == pl.String and name in _SAID]
        for column in texts:
            groups.update((text,) for text in rows[column] if len(text) >= _LEAST_FRAGMENT)
    artifacts = _whole(paths.root, tables.DOCUMENT_ARTIFACTS).filter(pl.col("document_id").is_in(traces.document_ids))
    # Artifacts are short; an answer that holds all of a document's is about it.
    groups.update(tuple(own) for own in artifacts.group_by("document_id").agg("text")["text"].to_list())
    with ResponseStore(path) as responses:
        return responses.remove_holding(groups)


_SAID = frozenset({"question", "answer", "text", "raw", *(f"{name}_justification" for name in CRITERIA)})


def _remove_derived(store: Path) -> None:
    """Vectors, exports, reports and the weights that the last training left: what a run makes again."""
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


def _materializations(instance: dg.DagsterInstance, asset: str) -> Iterator[dg.AssetMaterialization]:
    """Every materialization of an asset, newest first."""
    cursor = None
    while True:
        page = instance.fetch_materializations(dg.AssetKey(asset), limit=_PAGE, cursor=cursor)
        yield from (record.asset_materialization for record in page.records if record.asset_materialization)
        if not page.has_more:
            return
        cursor = page.cursor
