"""Pages lead where they say and show what exists; pages and docstrings keep the rules of plain English.

Spelling is codespell's (`make lint`). Vale would do what PROSE does, but its packages download a program when they run.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import embed_pipeline
from embed_pipeline.cli import app
from embed_pipeline.escaping import counted
from embed_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
GENERATED = {"reference/tables.md", "reference/assets.md", "reference/http.md"}
SOURCES = sorted(
    path
    for room in ("embed_pipeline", "benchmarks", "deploy", "docs", "examples")
    for path in (ROOT / room).rglob("*.py")
)
# They name settings that were removed.
OF_THE_PAST = {"decisions.md", "benchmarks.md", "CHANGELOG.md"}
# Turns of phrase that readers stumble over, and what to write.
PROSE = {
    r"works? off|worked off": "processes",
    r"mend(?:s|ed|ing)?": "fixes",
    r"beside(?!:)": "next to, as well as, other than",
    r"anew": "again",
    r"stands? in|stood in": "is in, occurs in",
    r"tak(?:es?|en|ing) (?:out|up)|took (?:out|up)": "removes, picks up",
    r"taken for": "treated as",
    r"(?:is|are) through": "runs out of, ends",
    r"(?:is|are|was|were) not there(?: yet)?": "does not exist, is missing",
    r"turn(?:s|ed)? (?:away|down)": "rejects, refuses",
    r"go(?:es)? on from": "resumes from",
    r"so much of|looks? into|looked into": "say how much; examines",
    r"seldom": "rarely",
    r"behavior|colors?|favor|favorite|neighbors?|labeled|canceled|summarize[sd]?|(?:organ|recogn|initial)iz(?:es?|ed|ing)":
        "British spelling, as everywhere else: behaviour, colour, neighbour, labelled, recognise",
    r"(?-i:(?!CODE|had|that)(\w+) \1)": "a word twice",
}  # fmt: skip
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands} | {
    group.name for group in app.registered_groups
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub and mkdocs name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_site():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("!!python/name:", "")
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} | GENERATED


def test_the_version_is_said_once():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == version


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170


def blocks(language: str) -> list:
    """Code blocks of the pages, with the page as the test's name."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(code, id=page.name) for page in PAGES for code in fence.findall(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("toml", blocks("toml"))
def test_settings_on_a_page_are_accepted(toml):
    Settings(**tomllib.loads(toml))


@pytest.mark.parametrize("code", blocks("python"))
def test_code_on_a_page_calls_what_exists(code):
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        if ast.unparse(call.func).startswith("ep."):
            function = getattr(embed_pipeline, ast.unparse(call.func).removeprefix("ep."))
            inspect.signature(function).bind(*call.args, **{word.arg: word.value for word in call.keywords})


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OF_THE_PAST], ids=lambda page: page.name)
def test_settings_and_commands_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    code = "\n".join([*FENCE.findall(text), *re.findall(r"`[^`\n]+`|^    .+$", FENCE.sub("", text), re.MULTILINE)])
    groups = {name: field.annotation.model_fields for name, field in Settings.model_fields.items() if name != "seed"}
    for group, name in re.findall(rf"(?<![/.])\b({'|'.join(groups)})\.([a-z]\w*)\b(?!\*)", code):
        assert name in {*groups[group], "json", "py", "toml", "md"}, f"{group}.{name}"
    assert set(re.findall(r"(?:^ *|`|bin/)embed-pipeline (?:--set \S+ )*([a-z]\w*)", code, re.MULTILINE)) <= COMMANDS


def test_a_page_names_every_command():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert {name for name in COMMANDS if not re.search(rf"embed-pipeline {name}\b|`{name}[` ]", pages)} == set()


def prose(path: Path) -> str:
    """What people read in a file: a page without its code, or the docstrings of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, documented))
        text = "\n\n".join(ast.get_docstring(node) or "" for node in nodes)
    return re.sub(r"``[^`]*``|`[^`]*`", "CODE", FENCE.sub("", text))


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain_english(path):
    text = prose(path)
    found = [
        f"{match.group()!r}: {better}"
        for pattern, better in PROSE.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]
    assert not found, found


def test_counts_agree_with_their_nouns():
    assert [counted(number, "file") for number in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
