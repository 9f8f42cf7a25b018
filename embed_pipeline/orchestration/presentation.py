"""How assets look in the Dagster UI: description, schema, group, owner, sample, pictures, column lineage."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline import tables
from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.escaping import as_markdown, for_terminal
from embed_pipeline.evaluation.plots import draw_bars, draw_histograms, markdown_image

OWNERS = ["team:search"]
_SAMPLE_ROWS = 10
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


def readable_sample(frame: pl.DataFrame, seed: int) -> dg.TableMetadataValue:
    """A seeded sample of rows, long texts cut, rows in stored order."""
    chance = random.Random(f"{seed} sample {frame.height}")  # noqa: S311 - which rows are shown
    rows = sorted(chance.sample(range(frame.height), min(_SAMPLE_ROWS, frame.height)))
    return shown_table(frame.columns, ([row[name] for name in frame.columns] for row in frame[rows].to_dicts()))


def shown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.TableMetadataValue:
    """Rows as a table of the UI, which shows every cell as text, whatever markup a document holds."""
    records = [dg.TableRecord(dict(zip(columns, map(_cell, row), strict=True))) for row in rows]
    schema = dg.TableSchema(columns=[dg.TableColumn(name=name, type="string") for name in columns])
    return dg.MetadataValue.table(records, schema=schema)


def shown_list(lines: Iterable[str]) -> dg.MarkdownMetadataValue:
    """Sentences as a list of the UI."""
    return dg.MetadataValue.md("\n".join(f"- {as_markdown(line)}" for line in lines))


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """A PNG that the UI shows inline, with a caption."""
    return dg.MetadataValue.md(f"{markdown_image(png)}\n\n{as_markdown(alternative)}")


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as metadata: numbers and texts as they are, anything nested as JSON."""
    return {
        name: value if isinstance(value, int | float | str | dg.MetadataValue) else dg.MetadataValue.json(value)
        for name, value in values.items()
    }


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    text = for_terminal(" ".join(text.split()))
    return text if len(text) <= _CELL_CHARACTERS else text[:_CELL_CHARACTERS] + " …"


_TRACE_COLUMNS = ("question", "answer", "qa_id", "origin", "hop", "on", "path", "segment", "segment_id", "text")


def traced_pairs(pairs: pl.DataFrame, corpus: pl.DataFrame) -> dg.TableMetadataValue:
    """A fixed sample of accepted pairs, each followed from its question through its hops to segment and document."""
    sources = {row["segment_id"]: row for row in corpus.to_dicts()}
    rows: list[tuple[object, ...]] = []
    for pair in _traced_rows(pairs):
        asked = (pair["question"], pair["answer"], pair["qa_id"], pair["origin"])
        for hop in pair["hops"]:
            for segment in hop["segment_ids"]:
                source = sources[segment]
                place = (source["path"], source["position"], segment, source["text"])
                rows.append((*asked, hop["hop_number"], hop["summary"], *place))
                asked = ("", "", "", "")
    return shown_table(_TRACE_COLUMNS, rows)


def _traced_rows(pairs: pl.DataFrame) -> list[dict[str, Any]]:
    chance = random.Random("traced")  # noqa: S311 - which pairs are shown
    return pairs[sorted(chance.sample(range(pairs.height), min(_SAMPLE_ROWS, pairs.height)))].to_dicts()


def read_pairs(pairs: pl.DataFrame, corpus: pl.DataFrame) -> dict[str, str]:
    """The same fixed sample as lines of text, which the UI shows without a click."""
    paths = dict(corpus.select("segment_id", "path").iter_rows())
    lines = {}
    for number, pair in enumerate(_traced_rows(pairs), start=1):
        places = ", ".join(dict.fromkeys(paths[key] for key in pair["segment_ids"]))
        answer = f" | {_cell(pair['answer'])}" if pair["answer"] else ""
        lines[f"pair {number:02d}"] = f"{_cell(pair['question'])}{answer} | {_cell(places)}"
    return lines


def counts(values: pl.Series, label: str) -> bytes:
    """How often each value occurs, as bars."""
    counted = values.value_counts().sort(values.name)
    return draw_bars([str(value) for value in counted[values.name]], counted["count"].to_list(), label)


def score_histograms(scores: pl.DataFrame) -> bytes:
    """Distribution of the four scores of a batch."""
    return draw_histograms({name: scores[name].to_list() for name in CRITERIA}, (1.0, 10.0))
