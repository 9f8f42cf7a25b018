"""The process that converts PDF and Office files, one after the other, under a memory limit.

:class:`.readers.OfficeReader` starts it with the limits in megabytes of memory and bytes unpacked, and talks to it over
its standard streams: a line of JSON (``suffix``, ``size``), then the file's bytes; the answer is one line of JSON,
``markdown`` or ``reason`` and ``detail``. What such a file can do to a parser ends here.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

_SLIDE = re.compile(r"<!-- Slide number: \d+ -->")
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library says on standard output is no answer
    # All that is needed is loaded before the limit counts.
    from markitdown import StreamInfo  # noqa: F401
    from markitdown import converters as known

    converters: dict[str, Any] = {
        ".pdf": known.PdfConverter(),
        ".docx": known.DocxConverter(),  # type: ignore[no-untyped-call]  # markitdown's
        ".pptx": known.PptxConverter(),  # type: ignore[no-untyped-call]  # markitdown's
    }
    limit = _memory() + int(sys.argv[1]) * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        content = sys.stdin.buffer.read(request["size"])
        answer = _convert(converters[request["suffix"]], content, request["suffix"])
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _convert(converter: Any, content: bytes, suffix: str) -> dict[str, str]:  # noqa: ANN401 - one of markitdown's
    from markitdown import StreamInfo

    try:
        if suffix != ".pdf":
            size, most = unpacked_size(content), int(sys.argv[2])
            if size > most:
                detail = f"it unpacks to {size} bytes, over corpus.max_unpacked_bytes = {most}"
                return {"reason": "too_large", "detail": detail}
        result = converter.convert(io.BytesIO(content), StreamInfo(extension=suffix))
    except Exception as error:  # noqa: BLE001 - parsers of foreign files raise anything; the file is set aside by name
        said = f"{type(error).__name__}: {error}"[:500]
        if isinstance(error, MemoryError) or _was_short_of_memory():
            return {"reason": "too_large", "detail": f"it cannot be converted in {sys.argv[1]} MB of memory: {said}"}
        return {"reason": "not_text", "detail": f"it cannot be converted: {said}"}
    return {"markdown": _IMAGE.sub(r"\1", _SLIDE.sub("", result.markdown))}


def unpacked_size(content: bytes) -> int:
    """Bytes that an archive unpacks to, as its directory says: no more than that is ever unpacked.

    Raises:
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _was_short_of_memory() -> bool:
    """True where over half of the memory was in use: parsers swallow that error and stumble over what comes of it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak:"))
    return peak * 1024 > resource.getrlimit(resource.RLIMIT_AS)[0] - int(sys.argv[1]) * 500_000


def _memory() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
