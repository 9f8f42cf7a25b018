"""The extra serve is enough to serve: nothing that it does not bring along is imported."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROGRAM = '''
import sys
from importlib.machinery import PathFinder

refused = set(sys.argv.pop(1).split(","))

class Installed:
    """The finder of installed modules, without the refused ones."""

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Installed()
from embed_pipeline.cli import main
main()
'''


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules_beyond_serve() -> set[str]:
    """Installed modules that neither the extra serve nor anything it depends on brings along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    left = [Requirement(line) for line in project["dependencies"] + extras["serve"]]
    found: dict[str, set[str]] = {}
    while left:
        wanted = left.pop()
        name = normalized(wanted.name)
        if name in found and wanted.extras <= found[name]:
            continue
        found.setdefault(name, set()).update(wanted.extras)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for part in map(Requirement, lines):
            markers = [{"extra": extra} for extra in wanted.extras or {""}]
            if part.marker is None or any(part.marker.evaluate(one) for one in markers):
                left.append(part)
    installed = packages_distributions().items()
    return {top for top, of in installed if not {normalized(one) for one in of} & found.keys()} - {"embed_pipeline"}


@pytest.mark.slow
def test_an_endpoint_needs_the_extra_serve_and_nothing_else(bundle, tmp_path):
    refused = modules_beyond_serve()
    assert {"torch", "dagster", "mlflow", "transformers", "openai"} <= refused
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROGRAM, ",".join(refused), "serve", "--bundle", str(bundle), "--port", "0"]
    with log.open("w") as written, subprocess.Popen(command, cwd=tmp_path, stderr=written) as process:
        try:
            address = ""
            while not address and process.poll() is None:
                address = "".join(re.findall(r"listening on (\S+)", log.read_text()))
            while process.poll() is None:
                if httpx.get(f"{address}/v1/health/ready").status_code == 200:
                    break
            asked = {"model": "embed-pipeline", "input": "what is it"}
            answer = httpx.post(f"{address}/v1/embeddings", json=asked) if address else None
        finally:
            process.terminate()
    assert answer is not None, log.read_text()
    assert answer.status_code == 200
    assert len(answer.json()["data"][0]["embedding"]) == 32


@pytest.mark.slow
def test_what_another_command_needs_is_named_by_its_extra(tmp_path):
    command = [sys.executable, "-c", PROGRAM, ",".join(modules_beyond_serve()), "status"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: \w+ is not installed, and this command needs it: pip install 'embed-pipeline\[pipeline\]'\n",
        done.stderr,
    )
