"""A document batch and its manifest: the files as they were when the batch was cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from upath import UPath

from embed_pipeline.corpus.files import CorpusError


@dataclass(frozen=True)
class BatchFile:
    """A file as it was when its batch was cut.

    Attributes:
        path: relative to the documents folder.
        size: bytes.
        mtime_ns: modification time; 0 where an address does not say.
        sha256: of its bytes; empty for a file over the size limit or one that could not be read.
        replaces: True where an earlier batch holds a version of it.
        version: entity tag, of a file on object storage or a web server.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    replaces: bool = False
    version: str = ""


@dataclass(frozen=True)
class Batch:
    """New or changed files, paths that are gone, and lines then known as boilerplate, which are taken out of the files.

    What is learned later does not change the batch: its questions are paid for. ``skipped`` counts what the folder held
    and was left alone, by reason.
    """

    name: str
    files: tuple[BatchFile, ...]
    deleted: tuple[str, ...]
    boilerplate: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)

    def manifest(self) -> str:
        """What is stored of it, as JSON."""
        files = [
            {name: value for name, value in asdict(file).items() if value or name != "version"} for file in self.files
        ]
        body: dict[str, object] = {"files": files, "deleted": list(self.deleted)}
        if self.boilerplate:
            body["boilerplate"] = list(self.boilerplate)
        if self.skipped:
            body["skipped"] = dict(sorted(self.skipped.items()))
        return json.dumps(body, indent=1, ensure_ascii=False)


def parse_batch(path: UPath, content: bytes) -> Batch:
    """The batch whose manifest was stored at ``path``.

    Raises:
        CorpusError: the manifest is damaged.
    """
    try:
        body = json.loads(content)
        files = tuple(BatchFile(**file) for file in body["files"])
        return Batch(
            path.stem, files, tuple(body["deleted"]), tuple(body.get("boilerplate", ())), body.get("skipped", {})
        )
    except (ValueError, KeyError, TypeError) as error:
        message = f"batch manifest {path} is damaged ({error}); restore it, or delete it to read its files again"
        raise CorpusError(message) from error
