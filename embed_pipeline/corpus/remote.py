"""Documents that lie on object storage or a web server, listed and read through fsspec.

Size, time and entity tag come from the listing; nothing is read to find out what is new. Credentials come from the
environment, as each store's own client reads them, and stand in no message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from embed_pipeline.corpus.files import CorpusError, Scan, SourceFile, other_suffix
from embed_pipeline.settings import Corpus, without_secrets

Entry = Mapping[str, Any]

_TIMES = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "modified", "created")
_TAGS = ("ETag", "etag", "Content-MD5", "content_md5", "md5Hash")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and AWS_ENDPOINT_URL for other than AWS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
}
_REQUESTS = 16
_PAGE = 1000
_DETAIL = 200


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
    suffixes = tuple(suffix.lower() for suffix in corpus.suffixes)
    with _explained(url):
        system, root = _open(url)
        for seen, entry in enumerate(_entries(system, root), start=1):
            if seen > corpus.max_files:
                message = f"documents folder {url} holds over corpus.max_files = {corpus.max_files} entries"
                raise CorpusError(message)
            name = str(entry["name"])
            path = name.removeprefix(f"{root}/") if name.startswith(f"{root}/") else ""
            if entry["type"] != "file" or name.endswith("/") or any(part.startswith(".") for part in path.split("/")):
                continue
            if not path or "?" in path or "#" in path or "//" in path:
                skipped["odd name"] += 1
            elif not path.lower().endswith(suffixes):
                skipped[other_suffix(name)] += 1
            elif entry.get("size") is None:
                unasked.append((path, name))
            else:
                files.append(_file(path, entry))
        files += _asked(system, unasked, skipped)
    return Scan(url, tuple(sorted(files, key=lambda file: file.path)), skipped)


def read_url(url: str, path: str, limit: int) -> bytes:
    """Read at most ``limit`` + 1 bytes of the file ``path`` below ``url``.

    Raises:
        FileNotFoundError: it is gone.
        PermissionError: it may not be read.
        CorpusError: the store cannot be reached.
    """
    with _explained(url, FileNotFoundError, PermissionError):
        system, root = _open(url)
        with system.open(f"{root}/{path}", "rb") as stream:
            content: bytes = stream.read(limit + 1)
    return content


def is_at_url(url: str, path: str) -> bool:
    """True where the file ``path`` is below ``url``.

    Raises:
        CorpusError: the store cannot be reached.
    """
    with _explained(url):
        system, root = _open(url)
        return bool(system.exists(f"{root}/{path}"))


def _open(url: str) -> tuple[Any, str]:
    """The file system of an address, and the address as it names it, without a slash at the end."""
    from fsspec.core import url_to_fs

    system, root = url_to_fs(url, use_listings_cache=False)  # what was listed before may have changed
    return system, str(root).rstrip("/")


def _entries(system: Any, root: str) -> Iterator[Entry]:  # noqa: ANN401 - fsspec has no types
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
            if len(found) == _PAGE:
                break
        return found

    while found := sync(system.loop, page):
        yield from found


def _asked(system: Any, unasked: list[tuple[str, str]], skipped: Counter[str]) -> list[SourceFile]:  # noqa: ANN401
    """Files of a server that lists names alone, each asked for its size and time."""

    def ask(named: tuple[str, str]) -> SourceFile | None:
        try:
            return _file(named[0], system.info(named[1]))
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_REQUESTS) as pool:
        answers = list(pool.map(ask, unasked))
    found = [file for file in answers if file is not None]
    if len(found) < len(answers):
        skipped["gone while looking"] += len(answers) - len(found)
    return found


def _file(path: str, entry: Entry) -> SourceFile:
    time = next((_nanoseconds(entry[name]) for name in _TIMES if entry.get(name)), 0)
    tag = next((str(entry[name]).strip('"') for name in _TAGS if entry.get(name)), "")
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
def _explained(url: str, *passed: type[Exception]) -> Iterator[None]:
    """What a driver raises as one error that names the address and says what to do; all but the classes in ``passed``.

    Raises:
        CorpusError: the address does not exist, may not be read or cannot be reached, or has no driver here.
    """
    protocol = url.partition("://")[0]
    extra = _EXTRAS.get(protocol, "")
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
