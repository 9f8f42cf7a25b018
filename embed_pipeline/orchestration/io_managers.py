"""Storage: tables as Parquet on any fsspec path, models as folders. Writes are whole or not there."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.corpus.batches import check_batch_name
from embed_pipeline.orchestration.presentation import readable_sample
from embed_pipeline.shelf import LATEST, Shelf
from embed_pipeline.storage import (
    BatchTables,
    StorageError,
    content_name,
    file_hashes,
    list_folder,
    reaching,
    read_table,
    write_table,
)


class ParquetIOManager(dg.UPathIOManager):
    """Tables as ``<base>/<asset>.parquet``, per batch ``<base>/<asset>/<batch>.parquet``, validated both ways."""

    extension = ".parquet"

    def __init__(self, base: UPath, seed: int) -> None:
        super().__init__(base_path=base)
        self._seed = seed

    def dump_to_path(self, context: dg.OutputContext, obj: pl.DataFrame, path: UPath) -> None:
        """Write a validated table in one step: a crash leaves the previous file."""
        write_table(path, tables.validate(obj, _table(context)))

    def get_path_for_partition(self, context: dg.InputContext | dg.OutputContext, path: UPath, partition: str) -> UPath:
        """Where a batch's table lies, once its name is known to be one.

        Raises:
            CorpusError: the partition is no batch.
        """
        return super().get_path_for_partition(context, path, check_batch_name(partition))

    def make_directory(self, path: UPath) -> None:
        """Nothing: the write makes what folders it needs, and object storage has none."""

    def path_exists(self, path: UPath) -> bool:
        """Whether a table is stored.

        Raises:
            StorageError: the storage cannot be reached.
        """
        with reaching(path):
            return path.exists()

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pl.DataFrame:
        """Read and validate a table.

        Raises:
            FileNotFoundError: it was never materialized.
            StorageError: the file is damaged or of another schema.
        """
        return read_table(path, _table(context))

    def read_previous(self, name: str) -> pl.DataFrame | None:
        """The unpartitioned table as its last materialization left it, for its own next one; None: there is none."""
        path = self._with_extension(self._base_path / name)
        return read_table(path, tables.TABLES[name]) if self.path_exists(path) else None

    def read_stored(self, name: str) -> pl.DataFrame:
        """An unpartitioned table that an asset depends on without loading it every time.

        Raises:
            StorageError: it was never materialized, or the file is damaged or of another schema.
        """
        found = self.read_previous(name)
        if found is None:
            message = f"{name} is not there yet; materialize it first"
            raise StorageError(message)
        return found

    def load_partitions(self, context: dg.InputContext) -> Any:  # noqa: ANN401 - a frame, or frames by batch
        """One batch's table, or for a fan-in (metadata ``by_batch``) those of all, read when they are asked for."""
        if not (context.definition_metadata or {}).get("by_batch"):
            return super().load_partitions(context)
        # One listing, where a request for each of many batches would take minutes.
        stored = {path.stem: path for path in list_folder(self._base_path / context.asset_key.path[-1], "*.parquet")}
        asked = set(context.asset_partition_keys)
        return BatchTables({batch: path for batch, path in stored.items() if batch in asked}, _table(context))

    def load_input(self, context: dg.InputContext) -> Any:  # noqa: ANN401 - as load_partitions
        """Load a table, and explain what to do where it does not exist yet."""
        try:
            loaded = super().load_input(context)
        except FileNotFoundError as error:
            name = context.asset_key.path[-1]
            message = f"{name} is not there yet ({error.filename or error}); materialize it first"
            raise StorageError(message) from error
        is_fan_in = (context.definition_metadata or {}).get("by_batch")
        return BatchTables({}, _table(context)) if loaded is None and is_fan_in else loaded

    def get_metadata(self, context: dg.OutputContext, obj: pl.DataFrame) -> dict[str, Any]:
        """Row count and a readable sample."""
        return {
            "dagster/row_count": obj.height,
            "sample": readable_sample(tables.validate(obj, _table(context)), self._seed),
        }


class ModelFolderIOManager(dg.IOManager):
    """Folders as ``<base>/<asset>/<name>``; the asset returns a staged folder (:func:`stage_folder`), moved here."""

    def __init__(self, base: Shelf) -> None:
        self._base = base

    def handle_output(self, context: dg.OutputContext, obj: Path) -> None:
        """Move the staged folder into place, then point ``latest`` at it; older ones are kept, five in all."""
        shelf = self._base.under(context.asset_key.path[-1])
        target = shelf.local / obj.name
        if target.exists():
            shutil.rmtree(target)
        obj.replace(target)
        shelf.publish(obj.name)
        shelf.point(LATEST, obj.name)
        shelf.prune()
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        kept = str(shelf.address / obj.name)
        context.add_output_metadata({"path": dg.MetadataValue.path(kept), "megabytes": round(size / 1e6, 1)})

    def load_input(self, context: dg.InputContext) -> Path:
        """The newest folder.

        Raises:
            StorageError: there is none.
        """
        return latest_folder(self._base, context.asset_key.path[-1])


def latest_folder(base: Shelf, asset: str) -> Path:
    """The folder that the asset's newest materialization wrote, on this machine.

    Raises:
        StorageError: there is none, or it cannot be fetched.
    """
    shelf = base.under(asset)
    name = shelf.pointed(LATEST)
    folder = shelf.fetch(name) if name else None
    if folder is None or not folder.is_dir():
        message = f"{asset} is not there yet ({shelf.address / LATEST}); materialize it first"
        raise StorageError(message)
    return folder


def stage_folder(base: Path, asset: str) -> Path:
    """An empty folder on the same disk as the asset's storage, for the body to fill; leftovers are removed."""
    staging = base / asset / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    folder = staging / "unnamed"
    folder.mkdir(parents=True)
    return folder


def name_by_content(staged: Path) -> Path:
    """Rename a staged folder to the hash of its files, which becomes its name in storage and its data version."""
    return staged.rename(staged.with_name(content_name(file_hashes(staged))))


def _table(context: dg.OutputContext | dg.InputContext) -> tables.Table:
    return tables.TABLES[context.asset_key.path[-1]]
