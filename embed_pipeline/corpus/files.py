"""The documents folder, or the address that stands for it: which files are there, and their bytes.

Links are never followed, and only regular files below the folder are ever opened: a symlink, a device or a
FIFO is counted and left alone. Object storage and web servers are listed and read through fsspec.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from embed_pipeline.settings import Corpus, without_secrets

STORE_MARK = ("batches", ".lock")
"""File of a store that is there as soon as documents were cut into batches."""
UNREADABLE_FOLDER = "unreadable folder"
"""Reason under which a scan counts folders that it could not look into: what they hold is not known."""
Entry = Mapping[str, Any]
_TIME_FIELDS = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "modified", "created")
_ENTITY_TAG_FIELDS = ("ETag", "etag", "Content-MD5", "content_md5", "md5Hash")
_EXTRA_OF_PROTOCOL = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and AWS_ENDPOINT_URL for other than AWS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
}
_PARALLEL_REQUESTS = 16
_LISTING_PAGE = 1000
_DETAIL = 200


class CorpusError(ValueError):
    """The documents folder gives nothing to work on."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One readable file: path relative to the folder (forward slashes), bytes, modification time in ns.

    ``touched_ns`` is when anything about it changed last, by the file system's clock: a copy that keeps the original's
    modification time is still seen to be young. ``version`` is the entity tag that object storage gives it, if any.
    """

    path: str
    size: int
    mtime_ns: int
    touched_ns: int
    version: str = ""


@dataclass(frozen=True)
class Scan:
    """What a folder holds: readable files sorted by path, and what was left alone, by reason."""

    folder: Path | str
    files: tuple[SourceFile, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    def describe_skipped(self) -> str:
        """The skipped counts as text, such as ``3 .pdf (not in corpus.suffixes), 1 symlink``."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "nothing"


def scan_folder(folder: Path, corpus: Corpus) -> Scan:
    """List the files of ``folder`` that have one of ``corpus.suffixes``, without opening any.

    Hidden files and folders are passed over.

    Raises:
        CorpusError: the folder does not exist, is no folder, or holds more than ``corpus.max_files`` entries.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        message = f"documents folder {folder} {what}; set paths.documents, or run: embed-pipeline sample python"
        raise CorpusError(message)
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    pending = [os.fspath(folder)]
    start = len(os.path.join(pending[0], ""))  # noqa: PTH118 - entries are named by text, a million of them
    seen = 0
    while pending:
        for entry in _entries(pending.pop(), skipped):
            seen += 1
            if seen > corpus.max_files:
                message = f"documents folder {folder} holds over corpus.max_files = {corpus.max_files} entries"
                raise CorpusError(message)
            if entry.is_dir(follow_symlinks=False):
                # Reports and model cards in there are no documents.
                if is_store(entry.path):
                    skipped["a store of embed-pipeline"] += 1
                else:
                    pending.append(entry.path)
                continue
            found = _look_at(entry, start, corpus.suffixes)
            if isinstance(found, SourceFile):
                files.append(found)
            else:
                skipped[found] += 1
    return Scan(folder, tuple(sorted(files, key=lambda file: file.path)), skipped)


def is_store(folder: str | Path) -> bool:
    """Whether a folder is a ``paths.store`` in which documents were cut into batches."""
    return Path(folder, *STORE_MARK).exists()


def _entries(folder: str, skipped: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """Every entry of one folder that is not hidden, one at a time: a folder may hold a million."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError:
        skipped[UNREADABLE_FOLDER] += 1


def _look_at(entry: os.DirEntry[str], start: int, suffixes: tuple[str, ...]) -> SourceFile | str:
    """The file that an entry is, its path from character ``start`` on, or why it is left alone."""
    try:
        status = entry.stat(follow_symlinks=False)
        path = entry.path[start:].replace(os.sep, "/")
        path.encode()
    except OSError:
        return "gone while looking"
    except UnicodeEncodeError:
        return "name not UTF-8"
    if stat.S_ISLNK(status.st_mode):
        return "symlink"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if not entry.name.lower().endswith(suffixes):
        return other_suffix(entry.name)
    return SourceFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def other_suffix(name: str) -> str:
    """The reason under which a file of another ending is counted: its ending."""
    return f"{os.path.splitext(name)[1].lower() or 'without an ending'} (not in corpus.suffixes)"  # noqa: PTH122


def read_regular(folder: Path, path: str, limit: int) -> bytes:
    """Read at most ``limit`` + 1 bytes of a file below ``folder``.

    The file is opened without following a link and without waiting on a FIFO, and checked after opening, so
    that a file swapped for something else between scan and read is still refused.

    Raises:
        OSError: it cannot be opened, or is no longer a regular file.
    """
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        message = f"{path} leaves the documents folder"
        raise OSError(message)
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            message = f"{path} is not a regular file"
            raise OSError(message)
        return stream.read(limit + 1)


def scan_url(url: str, corpus: Corpus) -> Scan:
    """List the files below ``url`` that have one of ``corpus.suffixes``, without reading any.

    Hidden names are passed over. A server that lists names alone is asked about each file.

    Raises:
        CorpusError: the address does not exist, may not be read or has no driver here, or holds more than
            ``corpus.max_files`` entries.
    """
    files: list[SourceFile] = []
    skipped: Counter[str] = Counter()
    unasked: list[tuple[str, str]] = []
    with _explained_access(url):
        system, root = _open_filesystem(url)
        for seen, entry in enumerate(_listed_entries(system, root), start=1):
            if seen > corpus.max_files:
                message = f"documents folder {url} holds over corpus.max_files = {corpus.max_files} entries"
                raise CorpusError(message)
            name = str(entry["name"])
            path = name.removeprefix(f"{root}/") if name.startswith(f"{root}/") else ""
            if entry["type"] != "file" or name.endswith("/") or any(part.startswith(".") for part in path.split("/")):
                continue
            if not path or "?" in path or "#" in path or "//" in path:
                skipped["odd name"] += 1
            elif not path.lower().endswith(corpus.suffixes):
                skipped[other_suffix(name)] += 1
            elif entry.get("size") is None:
                unasked.append((path, name))
            else:
                files.append(_source_file(path, entry))
        files += _asked(system, unasked, skipped)
    return Scan(url, tuple(sorted(files, key=lambda file: file.path)), skipped)


def read_url(url: str, path: str, limit: int) -> bytes:
    """Read at most ``limit`` + 1 bytes of the file ``path`` below ``url``.

    Raises:
        FileNotFoundError: it is gone.
        PermissionError: it may not be read.
        CorpusError: the store cannot be reached.
    """
    with _explained_access(url, FileNotFoundError, PermissionError):
        system, root = _open_filesystem(url)
        with system.open(f"{root}/{path}", "rb") as stream:
            content: bytes = stream.read(limit + 1)
    return content


def is_at_url(url: str, path: str) -> bool:
    """True where the file ``path`` is below ``url``.

    Raises:
        CorpusError: the store cannot be reached.
    """
    with _explained_access(url):
        system, root = _open_filesystem(url)
        return bool(system.exists(f"{root}/{path}"))


def _open_filesystem(url: str) -> tuple[Any, str]:
    """The file system of an address, and the address as it names it, without a slash at the end."""
    from fsspec.core import url_to_fs

    options = {"get_client": _client_of_one_host} if url.startswith(("http://", "https://")) else {}
    system, root = url_to_fs(url, use_listings_cache=False, **options)  # what was listed before may have changed
    return system, str(root).rstrip("/")


class LeavesHostError(PermissionError):
    """A web server sends the reader of its documents to another host."""


async def _client_of_one_host(**options: Any) -> Any:  # noqa: ANN401 - aiohttp's options and session
    """An HTTP client that follows redirects on the host that it asked, and no others.

    A server of documents could else have this machine read what it alone reaches, such as a cloud's metadata.
    """
    import aiohttp

    async def stay(_session: object, _context: object, found: aiohttp.TraceRequestRedirectParams) -> None:
        here, headers = found.response.url, found.response.headers
        place = headers.get("Location") or headers.get("URI") or ""
        there = here.join(type(here)(place))
        secured = here.scheme == "http" and there.scheme == "https" and there.is_default_port()
        if there.host != here.host or not (secured or there.origin() == here.origin()):
            raise LeavesHostError(f"{here} redirects to {there.host}:{there.port}; only its own host is read")

    traces = aiohttp.TraceConfig()
    traces.on_request_redirect.append(stay)
    return aiohttp.ClientSession(trace_configs=[traces], **options)


def _listed_entries(system: Any, root: str) -> Iterator[Entry]:  # noqa: ANN401 - fsspec has no types
    """Every file and folder below ``root``, of which no more is held than a folder, or on S3 a page."""
    if hasattr(system, "_iterdir"):
        yield from _pages(system, root)
        return
    pending, known = [root], {root}
    while pending:
        for entry in system.ls(pending.pop(), detail=True):
            name = str(entry["name"]).rstrip("/")
            if name in known:
                continue  # the folder itself, or a page that links back to it
            if entry["type"] == "directory":
                if not name.startswith(f"{root}/") or name.rsplit("/", 1)[-1].startswith("."):
                    continue
                known.add(name)
                pending.append(str(entry["name"]))
            yield entry


def _pages(system: Any, root: str) -> Iterator[Entry]:  # noqa: ANN401
    """The same of S3: one listing of all keys, whatever folders their names make of them."""
    from fsspec.asyn import sync

    bucket, key, _ = system.split_path(root)
    listing = system._iterdir(bucket, delimiter="", prefix=f"{key}/" if key else "")  # noqa: SLF001 - lists by the page

    async def page() -> list[Entry]:
        found = []
        async for entry in listing:
            found.append(entry)
            if len(found) == _LISTING_PAGE:
                break
        return found

    while found := sync(system.loop, page):
        yield from found


def _asked(system: Any, unasked: list[tuple[str, str]], skipped: Counter[str]) -> list[SourceFile]:  # noqa: ANN401
    """Files of a server that lists names alone, each asked for its size and time."""

    def ask(named: tuple[str, str]) -> SourceFile | str:
        try:
            return _source_file(named[0], system.info(named[1]))
        except FileNotFoundError as error:
            left = isinstance(error.__cause__, LeavesHostError)
            return "redirected to another host" if left else "gone while looking"

    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        answers = list(pool.map(ask, unasked))
    skipped.update(answer for answer in answers if isinstance(answer, str))
    return [answer for answer in answers if isinstance(answer, SourceFile)]


def _source_file(path: str, entry: Entry) -> SourceFile:
    time = next((_nanoseconds(entry[name]) for name in _TIME_FIELDS if entry.get(name)), 0)
    tag = next((str(entry[name]).strip('"') for name in _ENTITY_TAG_FIELDS if entry.get(name)), "")
    return SourceFile(path, int(entry.get("size") or 0), time, time, tag)


def _nanoseconds(value: object) -> int:
    """A time as drivers give it: seconds since 1970, a datetime, or text as JSON or HTTP has it."""
    if isinstance(value, int | float):
        return int(value * 1e9)
    if isinstance(value, datetime):
        when = value
    else:
        try:
            when = datetime.fromisoformat(str(value))
        except ValueError:
            when = parsedate_to_datetime(str(value))
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1e9)


@contextmanager
def _explained_access(url: str, *passed: type[Exception]) -> Iterator[None]:
    """What a driver raises as one error that names the address and says what to do; all but the classes in ``passed``.

    Raises:
        CorpusError: the address does not exist, may not be read or cannot be reached, or has no driver here.
    """
    protocol = url.partition("://")[0]
    extra = _EXTRA_OF_PROTOCOL.get(protocol, "")
    where = f"documents at {url}"
    kept: tuple[type[Exception], ...] = (CorpusError, *passed)
    try:
        yield
    except kept:
        raise
    except ImportError as error:
        need = f"install embed-pipeline[{extra}]" if extra else f"install fsspec's driver ({error})"
        raise CorpusError(f"{where}: nothing here reads {protocol}://; {need}") from error
    except FileNotFoundError as error:
        raise CorpusError(f"{where} do not exist; set paths.documents to a bucket and prefix that do") from error
    except Exception as error:
        # Each driver has classes of its own, and its client's besides.
        said = without_secrets(f"{type(error).__name__}: {error}")[:_DETAIL]
        signed = f"; are the credentials in the environment? {_CREDENTIALS[extra]}" if extra else ""
        raise CorpusError(f"{where} cannot be read ({said}){signed}") from error


def scan_documents(documents: Path | str, corpus: Corpus) -> Scan:
    """List the files that have one of ``corpus.suffixes``, without opening any.

    Raises:
        CorpusError: ``documents`` does not exist, may not be read, or holds more than ``corpus.max_files`` entries.
    """
    return scan_url(documents, corpus) if isinstance(documents, str) else scan_folder(documents, corpus)


def read_document(documents: Path | str, path: str, limit: int) -> bytes:
    """Read at most ``limit`` + 1 bytes of one file.

    Raises:
        OSError: it is gone, may not be read, or is no regular file any more.
        CorpusError: an address cannot be reached at all.
    """
    return read_url(documents, path, limit) if isinstance(documents, str) else read_regular(documents, path, limit)


def document_name(given: str, folder: Path | str) -> str:
    """What a user calls a document, as it is stored: relative to the documents folder, however its path was typed."""
    for place in (folder, folder.absolute()) if isinstance(folder, Path) else ():
        if Path(given).is_relative_to(place):
            return Path(given).relative_to(place).as_posix()
    return given.removeprefix("./")


def is_present(documents: Path | str, path: str) -> bool:
    """True where the file is still there.

    Raises:
        CorpusError: an address cannot be reached.
    """
    return is_at_url(documents, path) if isinstance(documents, str) else (documents / path).exists()
