"""Metadata at the start of a file: YAML between ``---``, TOML between ``+++``."""

from __future__ import annotations

import tomllib
from typing import Any

_MARKS = {"---": ("---", "..."), "+++": ("+++",)}
_MOST_CHARACTERS = 64_000


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The metadata that a text starts with, and the rest.

    What stands between the marks and is no mapping is text: a rule, or a heading that is underlined. A mapping that its
    library cannot read, as templates leave it, is metadata all the same; of it only plain ``key: value`` lines count.
    """
    lines = text[:_MOST_CHARACTERS].split("\n")
    mark = lines[0].rstrip()
    ends = _MARKS.get(mark, ())
    close = next((number for number, line in enumerate(lines[1:], start=1) if line.rstrip() in ends), 0)
    if not close:
        return {}, text
    inner = lines[1:close]
    found = _toml(inner) if mark == "+++" else _yaml(inner)
    if found is None:
        return {}, text
    rest = text[sum(len(line) + 1 for line in lines[: close + 1]) :]
    return found, rest.lstrip("\n")


def title_of(metadata: dict[str, Any]) -> str:
    """The title in it; empty where there is none."""
    title = metadata.get("title", "")
    return str(title) if isinstance(title, str | int | float) and not isinstance(title, bool) else ""


def _toml(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except (ValueError, RecursionError):
        return _plain(lines, "=")


def _yaml(lines: list[str]) -> dict[str, Any] | None:
    import yaml

    try:
        # Without its tags and numbers: a title of 2024-01-01 or 1.10 stays as it was written.
        found = yaml.load("\n".join(lines), Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text
    except (yaml.YAMLError, RecursionError, ValueError):
        return _plain(lines, ":")
    if found in (None, ""):
        return {} if any(line.startswith("#") for line in lines) else None
    return found if isinstance(found, dict) else None


def _plain(lines: list[str], separator: str) -> dict[str, Any] | None:
    """Lines of ``key: value``, where every line at the margin is one, a list item, a bracket or a comment."""
    found: dict[str, Any] = {}
    for line in lines:
        if not line.strip() or line[0] in " \t#-[]{}":
            continue
        key, sign, value = line.partition(separator)
        if not sign or not key.strip().replace("-", "").replace("_", "").replace(".", "").isalnum():
            return None
        found.setdefault(key.strip(), value.strip().strip("\"'"))
    return found or None
