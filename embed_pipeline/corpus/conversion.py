"""The process that reads files, one after the other, under a memory limit.

:class:`.readers.ReadingProcess` starts it with the limits of settings ``corpus`` as JSON and talks to it over its
standard streams: a line of JSON (``suffix``, ``size``), then the file's bytes. The answer is a line of JSON: ``title``,
``text``, ``blocks`` and ``left_out``, or ``reason`` and ``detail``. What a file can do to a parser ends here.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embed_pipeline.corpus.formats import Limits, UnreadableError, load_parser, read_file


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library says on standard output is no answer
    limits = Limits(**json.loads(sys.argv[1]))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        content = sys.stdin.buffer.read(request["size"])
        answers.write(json.dumps(_answer(request["suffix"], content, limits)).encode() + b"\n")
        answers.flush()


def _answer(suffix: str, content: bytes, limits: Limits) -> dict[str, Any]:
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    load_parser(suffix)
    most = _memory() + limits.conversion_megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (most, unlimited[1]))
    try:
        read = read_file(suffix, content, limits)
    except UnreadableError as error:
        return {"reason": error.reason, "detail": error.detail}
    except Exception as error:  # noqa: BLE001 - parsers of foreign files raise anything; the file is set aside by name
        said = f"{type(error).__name__}: {error}"[:500]
        if isinstance(error, MemoryError) or _was_short_of_memory(limits):
            size = limits.conversion_megabytes
            return {"reason": "too_large", "detail": f"it cannot be read in {size} MB of memory: {said}"}
        return {"reason": "not_text", "detail": f"it cannot be read: {said}"}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    return {**asdict(read), "blocks": [[b.kind, b.start, b.end, b.level, b.text] for b in read.blocks]}


def _was_short_of_memory(limits: Limits) -> bool:
    """True where over half of the memory was in use: parsers swallow that error and stumble over what comes of it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak:"))
    return peak * 1024 > resource.getrlimit(resource.RLIMIT_AS)[0] - limits.conversion_megabytes * 500_000


def _memory() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
