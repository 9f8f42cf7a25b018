"""The layers hold: who may import what, and what the code location must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "embed_pipeline"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "sentence_transformers", "faiss", "onnxruntime", "mlflow", "xllamacpp")
DAGSTER_HOMES = ("orchestration", "definitions.py")
MAX_LINES = 500
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_to_its_layer(path):
    place = path.relative_to(PACKAGE).parts[0]
    imported = imports_of(path)
    if place not in DAGSTER_HOMES:
        assert not {name for name in imported if name.startswith("dagster")}, "only orchestration/ imports dagster"
    if place != "tracking.py":
        assert "mlflow" not in imported, "only tracking.py imports mlflow"
    assert path.name not in FORBIDDEN_NAMES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES or path.name in {"settings.py", "tables.py"}


def test_orchestration_keeps_annotations_as_objects():
    # Dagster reads the annotations of context and configuration parameters.
    for path in (PACKAGE / "orchestration").rglob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(encoding="utf-8"), path


def test_rooms_do_not_know_the_orchestration():
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] in {*DAGSTER_HOMES, "cli.py", "record_commands.py"}:
            continue
        assert "embed_pipeline.orchestration" not in path.read_text(encoding="utf-8"), path


def test_the_code_location_loads_nothing_heavy(tmp_path):
    # Code servers hold it and every step process repeats it.
    script = f"import sys, embed_pipeline.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"
