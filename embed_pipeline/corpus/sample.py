"""Sample documents that need no download: ``write_sample("python", documents)`` fills a documents folder.

The one sample is the Python language reference in the form that every interpreter carries for ``help()``: the module
``pydoc_data.topics``, generated from the Python documentation, copyright Python Software Foundation, under the PSF
licence (https://docs.python.org/3/license.html). It is written from the running interpreter, so its wording follows
that interpreter's version.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from embed_pipeline.storage import write_whole

PYTHON_FOLDER = "python-reference"

_LEVELS = {"*": "#", "=": "##", "-": "###", "~": "####"}
_UNDERLINE = re.compile(r"([*=\-~])\1+")
_ADMONITIONS = frozenset({"Note:", "See also:", "Warning:", "Important:", "Tip:", "Caution:"})
_TEXT_START = re.compile(r"[*+|] |\+-|\+=|\d+\. |\w+ in version |-\[|\*\*")
_CODE_START = re.compile(
    r">>> |@\w|\w+\s+::=|(async )?(def|class|with|for) .*:|(if|while|try|match|except).*:$|(import|from|yield|raise) "
    r"|(del|return|print|assert)\b|[\w.]+(\[.*?\])? [-+*/|&^@%]?= "
)


class SampleError(ValueError):
    """No sample has the name asked for, or it cannot be written where documents are read from."""


def write_python_reference(documents: Path) -> list[Path]:
    """Write each topic of the running interpreter's ``pydoc_data.topics`` to ``python-reference/<topic>.md``.

    The source is the Python documentation (PSF licence) that each interpreter carries. A file that already holds the
    same bytes is left alone, so its modification time stays; any other is replaced in one step.

    Args:
        documents: The documents folder; made when missing.

    Returns:
        The path of every topic's file, sorted by topic, written or not.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    from pydoc_data.topics import topics

    folder = documents / PYTHON_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for topic, text in sorted(topics.items()):
        path = folder / f"{topic}.md"
        _write_if_changed(path, topic_to_markdown(text))
        paths.append(path)
    return paths


SAMPLES: Mapping[str, Callable[[Path], list[Path]]] = MappingProxyType({"python": write_python_reference})
"""Every sample by the name that ``write_sample`` takes."""


def write_sample(name: str, documents: Path | str) -> list[Path]:
    """Write the sample called ``name`` into the folder ``documents`` and return the paths of its files.

    Raises:
        SampleError: no sample is called ``name``, the message lists those there are; or ``documents`` is an address.
        OSError: a file cannot be written.
    """
    if name not in SAMPLES:
        raise SampleError(f"sample {name!r} is unknown; the samples are: {', '.join(sorted(SAMPLES))}")
    if isinstance(documents, str):
        raise SampleError(f"paths.documents is {documents}; samples are written into a folder of this machine")
    return SAMPLES[name](documents)


def topic_to_markdown(text: str) -> str:
    """One ``pydoc`` topic as Markdown: ATX headings, fenced code and grammar, every other line as it was.

    Runs of blank lines become one and the text ends with one newline.
    """
    pieces: list[str] = []
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    blocks = list(_blocks(lines))
    before: list[str] = []
    position = 0
    while position < len(blocks):
        block = blocks[position]
        position += 1
        if _is_code(block, before):
            end = position
            while end < len(blocks) and _continues(blocks[end], block, before):
                end += 1
            pieces.append(_fenced([block, *blocks[position:end]]))
            position = end
        else:
            pieces.append("\n".join(_with_headings(block)))
            before = block
    return "\n\n".join(pieces) + "\n"


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines without a blank one, trailing white space removed."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def _is_code(block: list[str], before: list[str]) -> bool:
    """Whether an indented block is code. Bodies of definitions and of notes are indented too and stay text."""
    indent, first = _indent(block[0]), block[0].strip()
    if not indent or _TEXT_START.match(first):
        return False
    if first.startswith(">>> "):
        return True
    if not before or before[0].strip() in _ADMONITIONS or indent <= _indent(before[-1]):
        return False
    if _CODE_START.match(first):
        return True
    is_definition = len(block) > 1 and _indent(block[1]) > indent
    return before[-1].endswith(":") and not is_definition


def _continues(block: list[str], opened: list[str], before: list[str]) -> bool:
    """Whether ``block`` goes on with the code that ``opened`` began after the text ``before``."""
    if before and _indent(opened[0]) <= _indent(before[-1]):
        return block[0].strip().startswith(">>> ")
    return min(_indent(line) for line in block) >= _indent(opened[0])


def _fenced(blocks: list[list[str]]) -> str:
    """Blocks of code as one fence, the common indent taken off; grammar and others carry no language."""
    margin = min(_indent(line) for block in blocks for line in block)
    body = "\n\n".join("\n".join(line[margin:] for line in block) for block in blocks)
    return f"```\n{body}\n```"


def _with_headings(block: list[str]) -> list[str]:
    """The lines of ``block`` with an underlined title turned into an ATX heading."""
    if len(block) > 1 and _UNDERLINE.fullmatch(block[1]) and len(block[1]) >= len(block[0]):
        return [f"{_LEVELS[block[1][0]]} {block[0]}", *block[2:]]
    return block


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _write_if_changed(path: Path, text: str) -> None:
    """Put ``text`` (as UTF-8) at ``path`` in one step, unless it is there already."""
    content = text.encode("utf-8")
    if path.is_file() and path.read_bytes() == content:
        return
    write_whole(path, content)
