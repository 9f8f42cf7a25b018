"""Pages of the site that are generated from the code: tables, assets with their checks, and the HTTP contract.

A hook of mkdocs (``mkdocs.yml``); nothing of it is stored, so the pages cannot fall behind.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from embed_pipeline.definitions import build_definitions
from embed_pipeline.serving.openapi import openapi_document
from embed_pipeline.settings import Serving, Settings
from embed_pipeline.tables import TABLES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, content in {"tables": tables(), "assets": assets(), "http": http()}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Keep the words of links that lead to files outside of the site."""
    return OUTSIDE.sub(r"\1", markdown)


def tables() -> str:
    """Every stored table with its columns."""
    parts = ["# Tables\n\nEvery stored table, a Parquet file or a folder of them in `<store>/tables`.\n"]
    for table in TABLES.values():
        key = f" Key: {', '.join(f'`{name}`' for name in table.key)}." if table.key else ""
        parts.append(f"## {table.name}\n\n{_text(table.description)}{key} Made by `embed-pipeline {table.stage}`.\n")
        parts.append("| column | type | null | meaning |\n|---|---|---|---|")
        parts += [
            f"| `{column.name}` | `{column.dtype}` | {'yes' if column.nullable else ''} | {_text(column.description)} |"
            for column in table.columns
        ]
        parts.append("")
    return "\n".join(parts)


def assets() -> str:
    """Every asset and its checks, by group."""
    graph = build_definitions(Settings()).resolve_asset_graph()
    checks: dict[str, list[str]] = {}
    for key in sorted(graph.asset_check_keys, key=lambda key: key.name):
        spec = graph.get_check_spec(key)
        effect = "blocks what follows" if spec.blocking else "warns"
        line = f"| `{key.name}` | {effect} | {_text(spec.description or '')} |"
        checks.setdefault(key.asset_key.to_user_string(), []).append(line)
    parts = ["# Assets and checks\n\nThe assets of each stage, what they hold, and the checks on them.\n"]
    groups: dict[str, list[str]] = {}
    for key in graph.materializable_asset_keys:
        node, name = graph.get(key), key.to_user_string()
        made_from = ", ".join(f"`{one.to_user_string()}`" for one in sorted(node.parent_keys)) or "the documents folder"
        lines = [f"### {name}\n\n{_text(node.description or '')} Made from {made_from}.\n"]
        if name in checks:
            lines += ["| check | effect | meaning |\n|---|---|---|", *checks[name], ""]
        groups.setdefault(node.group_name or "", []).append("\n".join(lines))
    for group, lines in sorted(groups.items()):
        parts += [f"## {group}\n", *lines]
    return "\n".join(parts)


def http() -> str:
    """Paths of the endpoint, and what it answers."""
    document = openapi_document(Serving(), [])
    parts = [
        "# HTTP contract\n\nPaths of `embed-pipeline serve`; a running one gives the document at `/openapi.json`.\n",
        "| path | method | does | answers |\n|---|---|---|---|",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            said = operation.get("summary") or operation.get("description") or ""
            answers = ", ".join(sorted(operation["responses"]))
            parts.append(f"| `{path}` | {method.upper()} | {_text(said)} | {answers} |")
    parts.append("\n## Schemas\n")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"### {name}\n\n```json\n{json.dumps(schema, indent=2)}\n```\n")
    return "\n".join(parts)


def _text(words: str) -> str:
    """Words of the code as Markdown in a cell."""
    return " ".join(words.replace("``", "`").replace("|", "\\|").split())
