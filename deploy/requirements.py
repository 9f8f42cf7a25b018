"""Prints the dependencies that pyproject.toml names, those of the extras given included, without the project itself.

python requirements.py EXTRA,EXTRA
"""
# ruff: noqa: INP001, T201 - a script

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [wanted for name in sys.argv[1].split(",") for wanted in project["optional-dependencies"][name]]
print(*project["dependencies"], *extras, sep="\n")
