"""Finds the documents that people name by their paths, however they write them."""

from __future__ import annotations

import logging
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote

import polars as pl

logger = logging.getLogger(__name__)


def _spelt(path: str) -> str:
    """A path with slashes, from the documents folder, in one of Unicode's forms."""
    return posixpath.normpath(unicodedata.normalize("NFC", path.strip().replace("\\", "/"))).lstrip("/")


# From what says most to what says least: as a path, as a part of an address, and in any letters.
_FORMS: tuple[Callable[[str], str], ...] = (
    _spelt,
    lambda path: _spelt(unquote(path)),
    lambda path: _spelt(unquote(path)).casefold(),
)


class DocumentPaths:
    """The documents of a corpus by their paths.

    A path that people write means the document of that very path, or else the only one whose path it is apart from
    slashes at the beginning, ``./``, backslashes and Unicode's forms, then from the percent signs of addresses
    (``my%20doc.md``), then from capitals. Where two documents fit alike, none is meant.
    """

    def __init__(self, paths: Iterable[str], left_out: pl.DataFrame | None) -> None:
        """The documents, and their copies.

        Args:
            paths: of the documents.
            left_out: table ``left_out_documents``, whose copies mean the document that stayed; None: there are none.
        """
        known = {path: path for path in paths}
        copies = [] if left_out is None else left_out.select("path", "duplicate_of").iter_rows()
        self._meant: dict[str, str] = {copy: stayed for copy, stayed in copies if stayed in known} | known
        self._made: list[dict[str, tuple[str, ...]]] = []

    def find(self, written: str) -> str | None:
        """The path of the document that is meant; None (and a line in the log where several fit): there is none."""
        if written in self._meant:
            return self._meant[written]
        for form, index in zip(_FORMS, self._indexes(), strict=False):
            fitting = index.get(form(written), ())
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                logger.warning("%r may mean any of %s, and is left out; write the path of one", written, [*fitting])
                return None
        return None

    def _indexes(self) -> Iterator[dict[str, tuple[str, ...]]]:
        """For each form, the documents that fit a path in it; made when they are first asked for."""
        for place, form in enumerate(_FORMS):
            if place == len(self._made):
                index: dict[str, tuple[str, ...]] = {}
                for path, stayed in self._meant.items():
                    found = index.get(key := form(path), ())
                    index[key] = found if stayed in found else (*found, stayed)
                self._made.append(index)
            yield self._made[place]
