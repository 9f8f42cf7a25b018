"""Text of documents, questions and paths shown as text: one function for Markdown, one for a terminal.

HTML is written by Jinja with its escaping on, and by the search page's script as ``textContent``; nothing else writes
any. Values that Dagster shows in a table or as plain text need no escaping: its UI puts no markup into them.
"""

from __future__ import annotations

import logging
import re
import unicodedata

_BACKTICKS = re.compile(r"`+")
_KEPT_CONTROLS = "\n\t"
# Format characters that turn the direction of the text after them, so that it reads otherwise than it is.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def as_markdown(text: str, *, in_table: bool = False) -> str:
    """``text`` on one line as a code span, in which Markdown knows no link, image, markup or HTML.

    Backslashes before special characters would not do: GitHub's Markdown, and what Dagster's UI is made of, still
    turn addresses into links.

    Args:
        text: any text; line breaks and repeated spaces become single spaces.
        in_table: it is a table's cell, where ``|`` ends the cell even in a code span.
    """
    line = for_terminal(" ".join(text.split()))
    if not line:
        return ""
    if in_table:
        # A backslash before the bar's own would take its place.
        line = line.replace("\\|", "\\\u200b|").replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in _BACKTICKS.findall(line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def for_terminal(text: str) -> str:
    r"""``text`` with what a terminal would act upon as visible escapes, such as ``\x1b``; line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    acts = unicodedata.category(character) in {"Cc", "Cs"} or character in _TURNING
    if not acts or character in _KEPT_CONTROLS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def on_one_line(text: str) -> str:
    """``text`` for a terminal with its line breaks as escapes: what it holds cannot pass for a line of its own."""
    return for_terminal(text).replace("\n", "\\n")


class TerminalFormatter(logging.Formatter):
    """A log's lines as they may be shown in a terminal, a message on one line; a traceback follows on its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record's line."""
        return on_one_line(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The record's line and traceback."""
        return for_terminal(super().format(record))


def counted(number: int, noun: str) -> str:
    """A count with its noun: "1 file", "2 files", "3 queries", "4 batches"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"
