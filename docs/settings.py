"""Prints the settings reference from the definitions: ``python docs/settings.py > docs/settings.md``."""

from __future__ import annotations

import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types

from embed_pipeline.settings import Setting, Settings

HEAD = """# Settings

Every setting, from its definition in `embed_pipeline/settings.py` (this page is printed by `python docs/settings.py`).
Settings come from `embed_pipeline.toml` (`[group]`, then `name = value`), are overridden by environment variables
(`EMBED_PIPELINE_GROUP__NAME=value`) and on the command line (`--set group.name=value`). In variables and on the command
line lists are separated by commas, and tables are written `a=2,b=1`.

**What it changes** says what a changed value makes stale:

- assets: the setting decides what they hold. They are made again, and what follows from them where it then differs;
- *runs*: the setting says how, where or within which bounds the work runs. Nothing is made again;
- *gate*: a bound of a check. Nothing is made again; the bound holds from the next time that the check runs.

`auto` leaves a choice to the product, `none` says that something is absent, 0 is zero. `training` stands for the
trained weights, a part of `finetuned_model`: where nothing that decides them changed they are kept, and the choice
among them, the linear adapter and the guard against forgetting are made again in a minute.
"""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
UNITS = {
    "per_million_prompt_tokens": "currency",
    "per_million_completion_tokens": "currency",
    "cost": "currency",
    "seconds": "seconds",
    "days": "days",
    "megabytes": "MB",
    "bytes": "bytes",
    "tokens": "tokens",
    "share": "share",
    "cosine": "cosine",
}


def type_of(annotation: Any, bounds: tuple[Any, ...] = ()) -> str:  # noqa: ANN401 - any type
    """A type in words, with its bounds."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return type_of(inner, (*bounds, *(part for one in more for part in getattr(one, "metadata", [one]))))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    if get_origin(annotation) in {Union, UnionType}:
        return ", or ".join(type_of(part, bounds) for part in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"list of: {type_of(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "table of weights"
    words = {int: "integer", float: "number", str: "text", bool: "`true`, `false`", Path: "path", type(None): "`none`"}
    limits = {name: value for one in bounds for name, value in vars_of(one).items()}
    said = " and ".join(f"{BOUNDS[name]} {value:,}" for name, value in limits.items())
    return f"{words[annotation]} {said}".strip()


def vars_of(bound: object) -> dict[str, Any]:
    """The limits in a bound of pydantic's."""
    if isinstance(bound, annotated_types.Ge | annotated_types.Gt | annotated_types.Le | annotated_types.Lt):
        return {name: getattr(bound, name) for name in BOUNDS if hasattr(bound, name)}
    return {}


def text_of(value: object) -> str:
    """A default as it is written in a file."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value) or "empty"
    if isinstance(value, dict):
        return ", ".join(f"`{name}` {weight:g}" for name, weight in value.items())
    return "`none`" if value is None else f"`{value}`"


def row_of(setting: Setting) -> str:
    """A setting's line of the table."""
    field = setting.field
    changes = {"runs": "*runs*", "gates": "*gate*"}.get(setting.kind, ", ".join(f"`{name}`" for name in setting.assets))
    unit = next((unit for word, unit in UNITS.items() if setting.name.endswith(f"_{word}")), "")
    kind = type_of(field.annotation, tuple(field.metadata))
    said = re.sub(r"``", "`", " ".join((field.description or "").split())).replace("None:", "none:").replace("|", "\\|")
    return (
        f"| `{setting.name}` | {kind}{f' ({unit})' if unit else ''} | {text_of(field.default)} | {changes} | {said} |"
    )


def page() -> str:
    """The whole reference."""
    parts = [HEAD]
    last = None
    for setting in Settings.definitions():
        group = setting.name.partition(".")[0] if "." in setting.name else ""
        if group != last:
            title = f"[{group}]" if group else "At the top of the file"
            about = Settings.model_fields[group].annotation.__doc__ if group else "Of every group."  # type: ignore[union-attr]
            parts.append(f"\n## {title}\n\n{about}\n\n| name | type | default | changes | |\n|---|---|---|---|---|")
            last = group
        parts.append(row_of(setting))
    return "\n".join(parts)


if __name__ == "__main__":
    print(page())
