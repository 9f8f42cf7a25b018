"""General-purpose questions that every install has: the first sentence of a docstring, answered by the rest of it.

The text is that of the standard library's modules, read as source and never imported. The sample's documents come
from ``pydoc_data``, which is left out, so that the check stays apart from what a first run trains on.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from embed_pipeline.evaluation.query_sets import EvaluationError, QuerySet

NAME = "general"
_LEAST_QUESTION_WORDS = 5
_LEAST_ANSWER_WORDS = 15
_LEAST_QUESTIONS = 50
# Several passages to each question, so that finding the right one is a task.
_PASSAGES_PER_QUESTION = 3
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+|\n\s*\n")


def general_set(
    questions: int, library: Path | None = None, least: int = _LEAST_QUESTIONS
) -> tuple[QuerySet, tuple[list[str], list[str]]]:
    """Questions with the passages to search.

    The choice depends only on the interpreter's version.

    Args:
        questions: questions wanted; fewer where the library has fewer.
        library: folder of modules; None: the interpreter's standard library.
        least: questions below which there is no check.

    Returns:
        The question set, and ids and texts of the passages: three for each question, where there are as many.

    Raises:
        EvaluationError: the library has fewer than ``least`` usable docstrings, for instance no sources.
    """
    folder = library or Path(sysconfig.get_path("stdlib"))
    found: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for name, docstring in _docstrings(folder):
        pair = split_docstring(docstring)
        if pair and pair[0].lower() not in seen and pair[1].lower() not in seen:
            seen |= {pair[0].lower(), pair[1].lower()}
            found[name] = pair
    if len(found) < least:
        message = (
            f"{folder} holds {len(found)} usable docstrings, below {least}: forgetting cannot be checked here; "
            "set forgetting.questions to 0 to train without the check"
        )
        raise EvaluationError(message)
    order = sorted(found, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    asked, searched = sorted(order[:questions]), sorted(order[: _PASSAGES_PER_QUESTION * questions])
    query_set = QuerySet(
        name=NAME,
        queries={name: found[name][0] for name in asked},
        qrels={name: {name: 1} for name in asked},
    )
    return query_set, (searched, [found[name][1] for name in searched])


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """First sentence and the rest, each on one line; None where either is too short to ask or to answer."""
    parts = _SENTENCE_END.split(inspect.cleandoc(docstring), maxsplit=1)
    if len(parts) == 1:
        return None
    question, answer = (" ".join(part.split()) for part in parts)
    if len(question.split()) < _LEAST_QUESTION_WORDS or len(answer.split()) < _LEAST_ANSWER_WORDS:
        return None
    return question, answer


def _docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of every module, class and function at the top of ``folder``."""
    for path in sorted(folder.glob("*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
        yield from _documented(tree, path.stem)


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node)
    if docstring:
        yield name, docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
