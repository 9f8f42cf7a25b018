"""MDX without what is code in it: imports, exports and comments, over several lines too."""

from __future__ import annotations

import re

_MODULE = re.compile(
    r"import\s*(?:['\"]|[\w$*{][^\n]{0,500}\bfrom\s*['\"]|\{[^}\n]{0,500}$|[\w$]{1,80},\s?\{[^}\n]{0,500}$)"
    r"|export\s+(?:const|let|var|default|function|async|class|type|interface)\b|export\s*(?:\{|\*)"
)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_STRING = re.compile(r"'(?:[^'\\\n]|\\.){0,2000}'|\"(?:[^\"\\\n]|\\.){0,2000}\"|`[^`\n]{0,2000}`|//[^\n]*$")
_OPENING, _CLOSING = "([{", ")]}"
_COMMENT = "{/*", "*/}"


def without_code(text: str) -> str:
    """The text without imports, exports and comments; lines in fences stay, and so does what no bracket closes."""
    lines = text.split("\n")
    kept: list[str] = []
    fence, place = "", 0
    while place < len(lines):
        line = lines[place]
        mark = _FENCE.match(line)
        if mark and (not fence or (mark[1].startswith(fence) and not line.strip(" `~"))):
            fence = "" if fence else mark[1]
        is_start = not fence and (not kept or not kept[-1].strip())
        end = 0
        if is_start and _MODULE.match(line):
            end = _end_of_module(lines, place)
        elif not fence and line.lstrip().startswith(_COMMENT[0]):
            end = next((n + 1 for n in range(place, len(lines)) if lines[n].rstrip().endswith(_COMMENT[1])), 0)
        if not end:
            kept.append(line)
        place = end or place + 1
    return "\n".join(kept)


def _end_of_module(lines: list[str], start: int) -> int:
    """The line after a statement: where its brackets are closed; 0 where they never are."""
    depth = 0
    for place in range(start, len(lines)):
        code = _STRING.sub("", lines[place])
        depth += sum(code.count(sign) for sign in _OPENING) - sum(code.count(sign) for sign in _CLOSING)
        goes_on = code.rstrip().endswith(("=", "=>", "(", ",", "&&", "||", "?", ":"))
        if depth <= 0 and not goes_on:
            return place + 1
    return 0
