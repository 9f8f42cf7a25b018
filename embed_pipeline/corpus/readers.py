"""Files are read in a process of their own, with a memory limit and a time limit for each.

A hostile file costs its own reading and nothing else: the next one is read by a new process.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

import psutil

from embed_pipeline.corpus.formats import Limits, UnreadableError
from embed_pipeline.settings import Corpus
from embed_pipeline.text.blocks import Block, ParsedDocument

_CLOCK_FACTOR = 10
"""A file may take so many times its limit of processor time by the clock: on a busy machine it is read all the same."""
_LOOK_SECONDS = 0.5


class ReadingProcess:
    """Reads files of every known ending; its process starts with the first one and ends with the block."""

    def __init__(self, corpus: Corpus) -> None:
        self._limits = Limits(
            max_unpacked_bytes=corpus.max_unpacked_bytes,
            conversion_megabytes=corpus.conversion_megabytes,
            conversion_seconds=corpus.conversion_seconds,
            word_comments=corpus.word_comments,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the process."""
        self._end()

    def read(self, path: str, content: bytes) -> ParsedDocument:
        """What the reader of the file's ending makes of it.

        Raises:
            UnreadableError: it is not what its ending says, damaged or protected, or takes more memory or time than the
                settings allow.
        """
        answer = self._ask(PurePosixPath(path).suffix.lower(), content)
        if "text" not in answer:
            self._end()  # what a failed reading left in memory does not count for the next
            raise UnreadableError(answer["reason"], answer["detail"])
        blocks = tuple(Block(*values) for values in answer["blocks"])
        return ParsedDocument(answer["title"], answer["text"], blocks, tuple(answer["left_out"]))

    def _ask(self, suffix: str, content: bytes) -> dict[str, Any]:
        process = self._process = self._process or self._start()
        if process.stdin is None or process.stdout is None:
            message = "the reading process has no streams"
            raise OSError(message)
        limit = self._limits.conversion_seconds
        deadline, most = time.monotonic() + _CLOCK_FACTOR * limit, _processor_seconds(process.pid) + limit
        try:
            process.stdin.write(json.dumps({"suffix": suffix, "size": len(content)}).encode() + b"\n" + content)
            process.stdin.flush()
            line = bytearray()
            while not line.endswith(b"\n"):
                ready, _, _ = select.select([process.stdout], [], [], min(_LOOK_SECONDS, limit))
                if not ready and time.monotonic() < deadline and _processor_seconds(process.pid) < most:
                    continue
                piece = os.read(process.stdout.fileno(), 1 << 20) if ready else b""
                if not piece:
                    self._end()
                    return self._unanswered(process, in_time=bool(ready))
                line += piece
        except BrokenPipeError:
            self._end()
            return self._unanswered(process, in_time=True)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
            [sys.executable, "-m", "embed_pipeline.corpus.conversion", json.dumps(asdict(self._limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _unanswered(self, process: subprocess.Popen[bytes], *, in_time: bool) -> dict[str, str]:
        if in_time:
            return {"reason": "not_text", "detail": f"its reading ended the process (status {process.returncode})"}
        limit = self._limits.conversion_seconds
        return {"reason": "too_large", "detail": f"its reading takes over corpus.conversion_seconds = {limit:g}"}


def _processor_seconds(process: int) -> float:
    """Processor time that a process has taken; 0 where it has ended, which its stream then says."""
    try:
        taken = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(taken.user + taken.system)
