"""Atomic writes, reads and hashes of stored files, in a local folder or on object storage.

A local file is written under a temporary name next to its place and moved there; an object store puts an object in one
step by itself. Drivers of object stores raise errors of no common class; here they become a :class:`StorageError` that
names the address.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from upath import UPath

if TYPE_CHECKING:
    import polars as pl

    from embed_pipeline.tables import Table


_FREE_SPACE, _MAY_WRITE = "free space there", "make it writable for this user"
_ADVICE = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EFBIG: _FREE_SPACE,
    errno.EROFS: _MAY_WRITE,
    errno.EACCES: _MAY_WRITE,
    errno.EPERM: _MAY_WRITE,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "check the disk",
}
_FETCHED_AT_ONCE = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class StorageError(RuntimeError):
    """Stored data is missing, damaged, of another shape or out of reach; the message says what to do."""


def check_name(name: str) -> str:
    """``name`` back, if it can be the name of a file or folder and nothing else.

    Raises:
        StorageError: it holds a separator, a dot at its start, or other characters than letters, digits, ``. _ -``.
    """
    if not _NAME.fullmatch(name):
        message = f"{name[:80]!r} is no name of a stored file or folder: letters, digits and . _ -"
        raise StorageError(message)
    return name


def table_path(root: UPath, name: str) -> UPath:
    """Where a table lies below ``paths.root``; one that has batches is the folder of that name without the suffix."""
    return root / "tables" / f"{name}.parquet"


def read_table(path: UPath | Path, table: Table) -> pl.DataFrame:
    """Read and validate a stored table.

    Raises:
        FileNotFoundError: it was never materialized.
        StorageError: the file is damaged or of another schema, or its storage cannot be reached.
    """
    local = as_local(path)
    return parse_table(path, read_whole(path) if local is None else local, table)


def scan_table(path: UPath | Path, table: Table) -> pl.LazyFrame:
    """A stored table of which a query reads what it needs; an object is read whole.

    Raises:
        FileNotFoundError: it was never materialized.
        StorageError: the file is damaged or of another schema, or its storage cannot be reached.
    """
    import polars as pl

    from embed_pipeline import tables

    local = as_local(path)
    if local is None:
        return read_table(path, table).lazy()
    try:
        frame = pl.scan_parquet(local, glob=False)
        tables.validate(pl.DataFrame(schema=frame.collect_schema()), table)
    except tables.TableError as error:
        raise _of_another_version(path, table, error) from error
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, table, error) from error
    return frame.select(table.schema.names())


def parse_table(path: UPath | Path, content: bytes | Path, table: Table) -> pl.DataFrame:
    """The table that ``path`` holds, from its bytes or the file that they are in.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: they are damaged or of another schema.
    """
    # An endpoint reads releases alone, and loads no dataframes for it.
    import polars as pl

    from embed_pipeline import tables

    try:
        source = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
        with source:
            return tables.validate(pl.read_parquet(source), table)
    except tables.TableError as error:
        raise _of_another_version(path, table, error) from error
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, table, error) from error


def _of_another_version(path: UPath | Path, table: Table, error: Exception) -> StorageError:
    return StorageError(f"{path} was stored by another version ({error}); run: embed-pipeline {table.stage}")


def _damaged(path: UPath | Path, table: Table, error: Exception) -> StorageError:
    return StorageError(f"{path} is damaged ({error}); make it again with: embed-pipeline {table.stage} --force")


def read_whole(path: UPath | Path) -> bytes:
    """The bytes at ``path``.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: its storage cannot be reached.
    """
    with reaching(path, FileNotFoundError):
        return path.read_bytes()


def version_of(path: UPath | Path) -> str:
    """A text that changes when what is at ``path`` is replaced, found without reading it.

    Raises:
        FileNotFoundError: nothing is there.
        StorageError: its storage cannot be reached.
    """
    local = as_local(path)
    if local is not None:
        status = local.stat()
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
    with reaching(path, FileNotFoundError):
        place = UPath(path)
        place.fs.invalidate_cache()
        return str(place.fs.ukey(place.path))


class BatchTables(Mapping[str, "pl.DataFrame"]):
    """The table of every batch, read when it is asked for and not kept, so that one is in memory at a time.

    Objects that are asked for in the order of their batches are fetched some at a time, at the same time.
    """

    def __init__(self, paths: Mapping[str, UPath], table: Table) -> None:
        """Take where each batch's table lies, and which table it is."""
        self._paths, self._table = {batch: paths[batch] for batch in sorted(paths)}, table
        self._places = {batch: place for place, batch in enumerate(self._paths)}
        self._next = 0
        self._fetched: dict[str, bytes] = {}

    def __getitem__(self, batch: str) -> pl.DataFrame:
        """A batch's table.

        Raises:
            KeyError: there is none.
            FileNotFoundError: it was removed since.
            StorageError: the file is damaged or of another schema, or its storage cannot be reached.
        """
        path = self._paths[batch]
        if as_local(path) is not None:
            return read_table(path, self._table)
        if batch not in self._fetched:
            place = self._places[batch]
            run = list(self._paths)[place : place + (_FETCHED_AT_ONCE if place == self._next else 1)]
            self._fetched = dict(zip(run, read_all([self._paths[name] for name in run]), strict=True))
            self._next = place + len(run)
        return parse_table(path, self._fetched.pop(batch), self._table)

    def __iter__(self) -> Iterator[str]:
        """The batches, in order of their names."""
        return iter(self._paths)

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._paths)

    def only(self, batches: Container[str]) -> BatchTables:
        """The tables of those that are among ``batches``."""
        return BatchTables({batch: path for batch, path in self._paths.items() if batch in batches}, self._table)


def read_all(paths: list[UPath]) -> list[bytes]:
    """The bytes at each of ``paths``, fetched at the same time where they are objects.

    Raises:
        FileNotFoundError: nothing is at one of them.
        StorageError: their storage cannot be reached.
    """
    if not paths or as_local(paths[0]) is not None:
        return [path.read_bytes() for path in paths]
    with reaching(paths[0].parent, FileNotFoundError):
        found = paths[0].fs.cat([path.path for path in paths])
    return [found[path.path] for path in paths]


def list_folder(path: UPath, pattern: str) -> list[UPath]:
    """What lies in a folder and fits the pattern, sorted; nothing where there is no such folder.

    Raises:
        StorageError: the storage cannot be reached.
    """
    with reaching(path):
        return sorted(path.glob(pattern))


def write_whole(path: UPath | Path, content: bytes) -> None:
    """Put ``content`` at ``path`` in one step, or leave what was there.

    Raises:
        StorageError: the disk is full, the folder cannot be written, or the object storage refused it or cannot be
            reached.
    """
    local = as_local(path)
    if local is None:
        with reaching(path):
            UPath(path).fs.pipe_file(UPath(path).path, content)
        return
    with _synced(local) as stream:
        stream.write(content)


def write_table(path: UPath | Path, frame: pl.DataFrame) -> None:
    """Put a table at ``path`` in one step, or leave what was there; a local file is written without a copy in memory.

    Raises:
        StorageError: as :func:`write_whole`.
    """
    local = as_local(path)
    if local is None:
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd")
        write_whole(path, buffer.getvalue())
        return
    with _synced(local) as stream:
        frame.write_parquet(stream, compression="zstd")


@contextmanager
def _synced(path: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary file that is on the disk, under the name ``path``, when the block ends without error."""
    with replacing(path) as staged, staged.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def copy_whole(source: Path, path: UPath) -> None:
    """Put a file of this machine at ``path`` in one step, or leave what was there.

    Raises:
        StorageError: as :func:`write_whole`.
    """
    local = as_local(path)
    if local is None:
        with reaching(path):
            path.fs.put_file(str(source), path.path)
        return
    with replacing(local) as staged:
        shutil.copyfile(source, staged)


def as_local(path: UPath | Path) -> Path | None:
    """The path as a path of this machine's file system; None: it is an object's address."""
    if isinstance(path, Path):
        return path
    return Path(path.path) if path.protocol in {"file", "local"} else None


@contextmanager
def reaching(path: UPath | Path, *passed: type[Exception]) -> Iterator[None]:
    """What a driver raises while ``path`` is read or written, as one error; all but the classes in ``passed``.

    Raises:
        StorageError: the storage refused it or cannot be reached.
    """
    if as_local(path) is not None:
        yield
        return
    known: tuple[type[Exception], ...] = (StorageError, *passed)
    try:
        yield
    except known:
        raise
    except Exception as error:
        # Every driver has classes of its own, and its connections' and clients' besides.
        message = f"{path} cannot be reached: {type(error).__name__}: {error}"
        raise StorageError(message) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a temporary file to write; it replaces ``path`` in one step when the block ends without an error.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staged
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(explain_system_error(error, path)) from error


def explain_system_error(error: OSError, path: Path | None = None) -> str:
    """A sentence with the path and what to do, of an error of the operating system.

    Args:
        error: the error.
        path: what was being written, where that says more than the error's own path.
    """
    place = path or error.filename
    what = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "see to that")
    kept = "and run the same command again; what was stored before is intact"
    return f"{what}: {place}; {advice}, {kept}" if place else f"{what}; {advice}, {kept}"


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file under ``folder``, by path relative to it, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in files}


def content_name(files: Mapping[str, str]) -> str:
    """The name of a folder that holds these files (path to sha256); equal content gives equal names."""
    text = "".join(f"{path}\0{digest}\0" for path, digest in files.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
