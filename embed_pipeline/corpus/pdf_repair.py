"""PDF files whose end is missing: what is left of them with a new table of contents of its objects.

A file that a download broke off has lost the table that says where its objects are, and often the list of its pages.
"""

from __future__ import annotations

import re
import zlib

_OBJECT = re.compile(rb"(?<![^\s])(\d{1,9}) (\d{1,5}) obj\b")
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_CONTENTS = re.compile(rb"/Contents\s*\[?\s*(\d{1,9}) \d{1,5} R")
_PACKED = re.compile(rb"/Type\s*/ObjStm\b")
_COUNT = re.compile(rb"/N\s+(\d{1,6})")
_FIRST = re.compile(rb"/First\s+(\d{1,9})")
_MOST_UNPACKED = 50_000_000


def repaired_pdf(content: bytes) -> bytes:
    """The whole objects of a file and its whole pages in the order of the file; empty where no page is whole."""
    objects: dict[int, bytes] = {}
    for found in _OBJECT.finditer(content):
        end = content.find(b"endobj", found.end())
        if end >= 0:
            objects[int(found[1])] = content[found.end() : end].strip(b"\r\n ")
    left = _MOST_UNPACKED
    for body in [body for body in objects.values() if _PACKED.search(body[:500])]:
        inner = _unpacked(body, left)
        left -= sum(map(len, inner.values()))
        objects = inner | objects
    pages = [number for number, body in objects.items() if _PAGE.search(body) and _is_whole(body, objects)]
    if not pages:
        return b""
    root = max(objects) + 1
    kids = b" ".join(b"%d 0 R" % page for page in pages)
    objects[root] = b"<< /Type /Catalog /Pages %d 0 R >>" % (root + 1)
    objects[root + 1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(pages), kids)
    return _written(objects, root)


def _is_whole(page: bytes, objects: dict[int, bytes]) -> bool:
    contents = _CONTENTS.search(page)
    return contents is not None and int(contents[1]) in objects


def _unpacked(body: bytes, most: int) -> dict[int, bytes]:
    """The objects that a compressed stream holds; none where it is damaged or larger than ``most`` bytes."""
    head, _, rest = body.partition(b"stream")
    count, first = _COUNT.search(head), _FIRST.search(head)
    if count is None or first is None or b"/FlateDecode" not in head:
        return {}
    try:
        unpacked = zlib.decompressobj().decompress(rest.lstrip(b"\r\n"), most)
    except zlib.error:
        return {}
    numbers = [int(word) for word in unpacked[: int(first[1])].split()[: 2 * int(count[1])] if word.isdigit()]
    places = [int(first[1]) + place for place in numbers[1::2]]
    ends = [*places[1:], len(unpacked)]
    return {number: unpacked[start:end] for number, start, end in zip(numbers[::2], places, ends, strict=False)}


def _written(objects: dict[int, bytes], root: int) -> bytes:
    pieces, offsets, place = [b"%PDF-1.7\n"], {}, len(b"%PDF-1.7\n")
    for number, body in objects.items():
        offsets[number] = place
        pieces.append(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        place += len(pieces[-1])
    sections = b"".join(b"%d 1\n%010d 00000 n \n" % (number, offsets[number]) for number in sorted(offsets))
    pieces.append(b"xref\n0 1\n0000000000 65535 f \n%s" % sections)
    pieces.append(b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (max(objects) + 1, root, place))
    return b"".join(pieces)
