"""Prints the dependencies that pyproject.toml names, those of the extras given included, without the project itself.

python requirements.py EXTRA,EXTRA
"""
# ruff: noqa: INP001, T201 - a script

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(extras: str) -> list[str]:
    """What the extras ask for; an extra may ask for others, as ``embed-pipeline[OTHER,OTHER]``."""
    found = []
    for extra in extras.split(","):
        for wanted in project["optional-dependencies"][extra]:
            own = wanted.removeprefix(f"{project['name']}[")
            found += [wanted] if own == wanted else named(own.removesuffix("]"))
    return found


print(*project["dependencies"], *dict.fromkeys(named(sys.argv[1])), sep="\n")
