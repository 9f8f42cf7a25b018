"""How assets look in the Dagster UI: description, schema, group, owner, sample, pictures, column lineage."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline import tables
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.evaluation.plots import draw_bars, draw_histograms, markdown_image

OWNERS = ["team:search"]
_SAMPLE_ROWS = 8
_CELL_CHARACTERS = 240


def described(name: str, group: str, kinds: set[str]) -> dict[str, Any]:
    """Keyword arguments of an asset that stores the table called ``name``."""
    table = tables.TABLES[name]
    return {
        "description": table.description,
        "metadata": {"dagster/column_schema": column_schema(table)},
        "group_name": group,
        "owners": OWNERS,
        "kinds": {"polars", *kinds},
        "io_manager_key": "tables",
    }


def column_schema(table: tables.Table) -> dg.TableSchema:
    """A table's columns with types and meanings, as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=str(column.dtype),
                description=column.description,
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable, unique=table.key == (column.name,), other=None
                ),
            )
            for column in table.columns
        ],
    )


def column_lineage(asset: dg.AssetKey, upstream: Iterable[dg.AssetKey]) -> dict[str, dg.TableColumnLineage]:
    """The metadata that shows which columns each column of a table comes from; empty where it comes from none.

    Args:
        asset: what is stored; a model has no columns.
        upstream: the assets that it is made from.
    """
    table = tables.TABLES.get(asset.path[-1])
    if table is None:
        return {}
    read = sorted({key.path[-1] for key in upstream} & tables.TABLES.keys())
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for name in table.schema.names():
        same_name = tuple(f"{source}.{name}" for source in read if name in tables.TABLES[source].schema)
        for source, column in (place.split(".") for place in table.sources.get(name, same_name)):
            deps.setdefault(name, []).append(dg.TableColumnDep(asset_key=dg.AssetKey(source), column_name=column))
    return {"dagster/column_lineage": dg.TableColumnLineage(deps)} if deps else {}


def readable_sample(frame: pl.DataFrame, seed: int) -> dg.MarkdownMetadataValue:
    """A seeded sample of rows as a Markdown table, long texts cut, rows in stored order."""
    chance = random.Random(f"{seed} sample {frame.height}")  # noqa: S311 - which rows are shown
    rows = sorted(chance.sample(range(frame.height), min(_SAMPLE_ROWS, frame.height)))
    return markdown_table(frame.columns, ([row[name] for name in frame.columns] for row in frame[rows].to_dicts()))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """A PNG that the UI shows in place."""
    return dg.MetadataValue.md(markdown_image(png, alternative))


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as metadata: numbers and texts as they are, anything nested as JSON."""
    return {
        name: value if isinstance(value, int | float | str | dg.MetadataValue) else dg.MetadataValue.json(value)
        for name, value in values.items()
    }


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    text = " ".join(text.replace("|", "\\|").replace("`", "'").split())
    return text if len(text) <= _CELL_CHARACTERS else text[:_CELL_CHARACTERS] + " …"


def traced_pairs(pairs: pl.DataFrame, corpus: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """A fixed sample of accepted pairs, each followed from its question through its hops to segment and document."""
    sources = {row["segment_id"]: row for row in corpus.to_dicts()}
    chance = random.Random("traced")  # noqa: S311 - which pairs are shown
    parts = []
    for row in pairs[sorted(chance.sample(range(pairs.height), min(_SAMPLE_ROWS, pairs.height)))].to_dicts():
        parts.append(f"**{_cell(row['question'])}** `{row['qa_id']}`, {row['origin']}\n\n{_cell(row['answer'])}\n")
        for hop in row["hops"]:
            for segment in hop["segment_ids"]:
                source = sources[segment]
                place = f"{source['path']}, segment {source['position']} `{segment}`: {_cell(source['text'])}"
                parts.append(f"- hop {hop['hop_number']}: {_cell(hop['summary'])}\n  - {place}")
        parts.append("")
    return dg.MetadataValue.md("\n".join(parts))


def counts(values: pl.Series, label: str) -> bytes:
    """How often each value occurs, as bars."""
    counted = values.value_counts().sort(values.name)
    return draw_bars([str(value) for value in counted[values.name]], counted["count"].to_list(), label)


def score_histograms(scores: pl.DataFrame) -> bytes:
    """Distribution of the four scores of a batch."""
    return draw_histograms({name: scores[name].to_list() for name in CRITERIA}, (1.0, 10.0))
