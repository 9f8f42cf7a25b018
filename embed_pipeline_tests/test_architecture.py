"""The layers hold: who may import what, and what the code location must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
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


@pytest.mark.slow
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_can_run(path):
    """No pickles, in whatever format they come, and no text taken for code."""
    assert not imports_of(path) & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        called, named = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert called not in {"eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system"}, ast.unparse(call)
        assert called != "torch.load" or named.get("weights_only") == "True", ast.unparse(call)
        assert not called.endswith("read_pickle"), ast.unparse(call)
        assert named.get("allow_pickle", "False") == "False", ast.unparse(call)
        assert called not in {"np.load", "numpy.load"} or "allow_pickle" in named, ast.unparse(call)
        assert named.get("shell", "False") == "False", ast.unparse(call)
        assert named.get("trust_remote_code") != "True", ast.unparse(call)


def test_orchestration_keeps_annotations_as_objects():
    # Dagster reads the annotations of context and configuration parameters.
    for path in (PACKAGE / "orchestration").rglob("*.py"):
        assert "from __future__ import annotations" not in path.read_text(encoding="utf-8"), path


def test_rooms_do_not_know_the_orchestration():
    for path in MODULES:
        if path.relative_to(PACKAGE).parts[0] in {*DAGSTER_HOMES, "cli.py"}:
            continue
        assert "embed_pipeline.orchestration" not in path.read_text(encoding="utf-8"), path


@pytest.mark.slow
def test_the_code_location_loads_nothing_heavy(tmp_path):
    # Code servers hold it and every step process repeats it.
    script = f"import sys, embed_pipeline.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def module_name(path: Path) -> str:
    """Dotted name of a module file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def internal_imports() -> dict[str, set[str]]:
    """Module to the modules of the package that it imports, inside functions too."""
    names = {module_name(path) for path in MODULES}
    found: dict[str, set[str]] = {}
    for path in MODULES:
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        found[module_name(path)] = (imported & names) - {module_name(path)}
    return found


def first_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of a circle in ``graph``; empty: there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    # A package imports nothing: what names it means one of its modules.
    packages = {module_name(path) for path in MODULES if path.name == "__init__.py"}
    graph = {name: imported - packages for name, imported in internal_imports().items()}
    assert first_circle({"a": {"b"}, "b": {"a"}}), "the test sees circles"
    assert first_circle(graph) == []


@pytest.mark.slow
def test_no_rooms_import_each_other_in_a_circle():
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, imported in internal_imports().items():
        for other in imported:
            ours, theirs = name.split(".")[1:2], other.split(".")[1:2]
            if ours and theirs and ours != theirs:
                rooms[ours[0]].add(theirs[0])
    assert first_circle(rooms) == []


def test_no_two_modules_have_one_name():
    names = Counter(path.name for path in MODULES if path.name not in {"__init__.py", "__main__.py"})
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.slow
def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(module_name(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_a_room_says_what_goes_in_and_out_and_how_to_read_it(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert "In: " in text
    assert "Out: " in text
    assert "Read " in text
    modules = {path.stem for path in (PACKAGE / room).glob("*.py") if not path.stem.startswith("__")}
    named = set(re.findall(r"``(\w+)``", text))
    assert modules - named == set(), "modules that the reading order leaves out"
