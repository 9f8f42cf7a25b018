"""Records the code that makes the assets: ``python -m embed_pipeline_tests.record_methods``, or ``make methods``.

Of every module of the rooms that :mod:`embed_pipeline.methods` names, the hash of its syntax tree without docstrings:
comments, formatting and prose change nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

from embed_pipeline.methods import METHODS

PACKAGE = Path(__file__).parent.parent / "embed_pipeline"
RECORD = Path(__file__).parent / "methods.json"


def code_hash(text: str) -> str:
    """Hash of a module's syntax tree, docstrings left out."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Docstrings, and those of attributes.
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def recorded() -> dict[str, dict[str, object]]:
    """What the record says."""
    found: dict[str, dict[str, object]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def present() -> dict[str, dict[str, object]]:
    """What the record should say: version of each method, and the hash of each module of each room."""
    rooms = sorted({room for method in METHODS.values() for room in method.rooms})
    code = {
        path.relative_to(PACKAGE).as_posix(): code_hash(path.read_text(encoding="utf-8"))
        for room in rooms
        for path in sorted((PACKAGE / room).rglob("*.py"))
    }
    return {"versions": {name: method.version for name, method in METHODS.items()}, "code": code}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(present(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
