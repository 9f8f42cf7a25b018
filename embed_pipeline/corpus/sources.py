"""Where documents lie: a folder of this machine, or an address that fsspec can list."""

from __future__ import annotations

from pathlib import Path

from embed_pipeline.corpus.files import Scan, read_regular, scan_folder
from embed_pipeline.corpus.remote import is_at_url, read_url, scan_url
from embed_pipeline.settings import Corpus


def scan_documents(documents: Path | str, corpus: Corpus) -> Scan:
    """List the files that have one of ``corpus.suffixes``, without opening any.

    Raises:
        CorpusError: ``documents`` is not there, may not be read, or holds more than ``corpus.max_files`` entries.
    """
    return scan_url(documents, corpus) if isinstance(documents, str) else scan_folder(documents, corpus)


def read_document(documents: Path | str, path: str, limit: int) -> bytes:
    """Read at most ``limit`` + 1 bytes of one file.

    Raises:
        OSError: it is gone, may not be read, or is no regular file any more.
        CorpusError: an address cannot be reached at all.
    """
    return read_url(documents, path, limit) if isinstance(documents, str) else read_regular(documents, path, limit)


def is_present(documents: Path | str, path: str) -> bool:
    """True where the file is still there.

    Raises:
        CorpusError: an address cannot be reached.
    """
    return is_at_url(documents, path) if isinstance(documents, str) else (documents / path).exists()
