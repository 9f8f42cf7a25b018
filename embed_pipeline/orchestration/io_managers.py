"""Storage: tables as Parquet on any fsspec path, models as folders. Writes are whole or not there."""

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.orchestration.presentation import readable_sample
from embed_pipeline.release.manifest import file_hash

LATEST_FILE = "latest"
"""Beside a model asset's folders: the name of the newest one."""
_KEPT_FOLDERS = 5


class StorageError(RuntimeError):
    """Stored data is missing, damaged or of another shape; the message says what to materialize again."""


class ParquetIOManager(dg.UPathIOManager):
    """Tables as ``<base>/<asset>.parquet``, per batch ``<base>/<asset>/<batch>.parquet``, validated both ways."""

    extension = ".parquet"

    def __init__(self, base: UPath, seed: int) -> None:
        super().__init__(base_path=base)
        self._seed = seed

    def dump_to_path(self, context: dg.OutputContext, obj: pl.DataFrame, path: UPath) -> None:
        """Write a validated table in one step: a crash leaves the previous file."""
        frame = tables.validate(obj, _table(context))
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        write_whole(path, buffer.getvalue())

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

    def load_partitions(self, context: dg.InputContext) -> Any:  # noqa: ANN401 - a frame, or frames by batch
        """One batch's table, or for a fan-in (metadata ``by_batch``) a dict of them, however many there are."""
        if not (context.definition_metadata or {}).get("by_batch"):
            return super().load_partitions(context)
        paths = self._get_paths_for_partitions(context)
        present = {batch: path for batch, path in paths.items() if self.path_exists(path)}
        return {batch: self.load_from_path(context, path) for batch, path in sorted(present.items())}

    def load_input(self, context: dg.InputContext) -> Any:  # noqa: ANN401 - as load_partitions
        """Load, and explain a table that is not there yet."""
        try:
            loaded = super().load_input(context)
        except FileNotFoundError as error:
            name = context.asset_key.path[-1]
            message = f"{name} is not there yet ({error.filename or error}); materialize it first"
            raise StorageError(message) from error
        is_fan_in = (context.definition_metadata or {}).get("by_batch")
        return {} if loaded is None and is_fan_in else loaded

    def get_metadata(self, context: dg.OutputContext, obj: pl.DataFrame) -> dict[str, Any]:
        """Row count and a readable sample."""
        return {
            "dagster/row_count": obj.height,
            "sample": readable_sample(tables.validate(obj, _table(context)), self._seed),
        }


def read_table(path: UPath, table: tables.Table) -> pl.DataFrame:
    """Read and validate a stored table.

    Raises:
        FileNotFoundError: it was never materialized.
        StorageError: the file is damaged or of another schema.
    """
    content = path.read_bytes()
    try:
        return tables.validate(pl.read_parquet(io.BytesIO(content)), table)
    except (pl.exceptions.PolarsError, tables.TableError) as error:
        message = f"{path} cannot be used ({error}); materialize {table.name} again"
        raise StorageError(message) from error


class ModelFolderIOManager(dg.IOManager):
    """Folders as ``<base>/<asset>/<name>``; the asset returns a staged folder (:func:`stage_folder`), moved here."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def handle_output(self, context: dg.OutputContext, obj: Path) -> None:
        """Move the staged folder into place, then point ``latest`` at it; older ones are kept, five in all."""
        home = self._base / context.asset_key.path[-1]
        target = home / obj.name
        if target.exists():
            shutil.rmtree(target)
        obj.replace(target)
        write_whole(UPath(home / LATEST_FILE), obj.name.encode())
        others = sorted(
            (folder for folder in home.iterdir() if folder.is_dir() and not folder.name.startswith(".")),
            key=lambda folder: folder.stat().st_mtime,
        )
        pinned = {path.read_text(encoding="utf-8").strip() for path in home.iterdir() if path.is_file()}
        for folder in others[:-_KEPT_FOLDERS]:
            if folder.name not in pinned:
                shutil.rmtree(folder)
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        context.add_output_metadata({"path": dg.MetadataValue.path(str(target)), "megabytes": round(size / 1e6, 1)})

    def load_input(self, context: dg.InputContext) -> Path:
        """The newest folder.

        Raises:
            StorageError: there is none.
        """
        return latest_folder(self._base, context.asset_key.path[-1])


def latest_folder(base: Path, asset: str) -> Path:
    """The folder that the asset's newest materialization wrote.

    Raises:
        StorageError: there is none.
    """
    pointer = base / asset / LATEST_FILE
    folder = base / asset / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
    if folder is None or not folder.is_dir():
        message = f"{asset} is not there yet ({pointer}); materialize it first"
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
    digest = hashlib.sha256()
    for path in sorted(staged.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(staged).as_posix()}\0{file_hash(path)}\0".encode())
    return staged.rename(staged.with_name(digest.hexdigest()[:16]))


def write_whole(path: UPath, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step; object stores do so by themselves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(path, Path):
        path.write_bytes(content)
        return
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with staged.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _table(context: dg.OutputContext | dg.InputContext) -> tables.Table:
    return tables.TABLES[context.asset_key.path[-1]]
