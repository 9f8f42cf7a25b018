"""A small project on disk for whole-graph tests: documents, settings by environment, the command in a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

_SYLLABLES = ("ba", "de", "ki", "lo", "mu", "na", "po", "ri", "su", "te", "vo", "za")
_LABEL = re.compile(r"^\[(S\d+)\]\n(.*?)(?=^\[S\d+\]|^</segments>)", re.MULTILINE | re.DOTALL)
_REQUEST = re.compile(r"^(\d+)\. on ((?:S\d+, )*S\d+): (\w+), (\w+), style (\w+), complexity (\d)$", re.MULTILINE)
_NAME = re.compile(r"\b[A-Z][a-z]{5}\b")


@dataclass
class Project:
    """Where a small project lives, and the environment that its commands run in."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def documents(self) -> Path:
        return self.root / "documents"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def table(self, name: str) -> pl.DataFrame:
        """A stored table; of a partitioned one all batches."""
        path = self.store / "tables" / name
        return pl.read_parquet(path / "*.parquet" if path.is_dir() else path.with_suffix(".parquet"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``embed-pipeline`` with these arguments."""
        return subprocess.Popen(
            [sys.executable, "-m", "embed_pipeline.cli", *arguments],
            cwd=self.root,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, *arguments: str) -> tuple[int, str]:
        """Run ``embed-pipeline`` to its end: exit status, and standard output and error together."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=500)
        return process.returncode, output


def small_project(root: Path, model: Path | str, base_url: str, **settings: str) -> Project:
    """A project of twelve documents on a tiny base model and a stub endpoint; ``stage__name="value"`` adds settings."""
    values = {
        "PATHS__DOCUMENTS": str(root / "documents"),
        "PATHS__STORE": str(root / "store"),
        "LLM__BASE_URL": base_url,
        "LLM__MODEL": "stub",
        "EMBEDDING__MODEL": str(model),
        "CORPUS__SEGMENT_TOKENS": "60",
        "CORPUS__MIN_SEGMENT_TOKENS": "10",
        "GATES__MIN_ACCEPTED_PAIRS": "5",
        # The stub answers by schema alone; how a model is asked is tried in its own tests.
        "SYNTHESIS__PATH": "structured",
        "SYNTHESIS__JUDGE": "asked",
        # A model of random weights puts all questions close together.
        "SYNTHESIS__NEAR_DUPLICATE_SIMILARITY": "1",
        "TRAINING_DATA__MIN_TEST_QUESTIONS": "2",
        "TRAINING__EPOCHS": "1",
        "EVALUATION__QUERY_SETS": "",
        "EVALUATION__BOOTSTRAP_SAMPLES": "200",
        # A model of random weights learns little from so few examples; what is tested here is the way, not the gain.
        "GATES__MIN_GAIN": "-1",
        **{name.upper(): value for name, value in settings.items()},
    }
    project = Project(root, {f"EMBED_PIPELINE_{name}": value for name, value in values.items()})
    project.documents.mkdir(parents=True)
    shutil.copy(Path(__file__).parent.parent / "dagster.yaml", root)
    for number in range(12):
        write_document(project, number)
    return project


def write_document(project: Project, number: int, edition: str = "") -> Path:
    """A document of three sections about things that no other document knows."""
    sections = []
    for part in range(3):
        name = made_up_name(number * 3 + part)
        sections.append(
            f"## {name}\n\nThe {name} is a value of the class {name.lower()}{edition}. It holds {number + part + 2} "
            f"objects and gives them back in the order of {name.lower()} statements."
        )
    path = project.documents / f"topic-{number:02d}.md"
    path.write_text(f"# Topic {number}\n\n" + "\n\n".join(sections) + "\n", encoding="utf-8")
    return path


def made_up_name(number: int) -> str:
    """A six-letter word, another for each number up to 1,727."""
    digits = (number // 144, number // 12 % 12, number % 12)
    return "".join(_SYLLABLES[digit] for digit in digits).capitalize()


def well_behaved(request: dict[str, Any]) -> str:
    """Answer like a good model: questions about what stands in the segments, high scores, artifacts."""
    kind = request.get("response_format", {}).get("json_schema", {}).get("name")
    text = request["messages"][-1]["content"]
    shown = {label: _NAME.findall(body) or ["Nothing"] for label, body in _LABEL.findall(text)}
    if kind == "ArtifactsAnswer":
        return json.dumps(
            {"artifacts": [{"kind": "concept", "text": names[-1], "segments": [key]} for key, names in shown.items()]}
        )
    if kind == "JudgeAnswer":
        verdict = {"score": 9.0, "justification": "It stands there."}
        return json.dumps(dict.fromkeys(("relevance", "accuracy", "context_support", "clarity"), verdict))
    if kind == "NeedsAnswer":
        return json.dumps({"segments": [{"segment": key, "needed": True, "reason": "It is."} for key in shown]})
    return json.dumps({"pairs": [_pair(asked, shown) for asked in _REQUEST.findall(text)]})


def _pair(asked: tuple[str, ...], shown: dict[str, list[str]]) -> dict[str, Any]:
    number, labels, query_type, reasoning_type, style, complexity = asked
    own = labels.split(", ")
    names = " and ".join(dict.fromkeys(shown[label][-1] for label in own))
    return {
        "request": int(number),
        "question": f"In which order does the {names} give objects back?",
        "answer": f"In the order of {names} statements.",
        "query_type": query_type,
        "reasoning_type": reasoning_type,
        "style": style,
        "complexity": int(complexity),
        "hops": [{"segments": [label], "summary": f"{shown[label][-1]} keeps an order."} for label in own],
    }
