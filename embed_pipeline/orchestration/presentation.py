"""How assets look in the Dagster UI: description, schema, group, owner, sample, plots, column lineage.

The UI shows numbers, texts and tables where they stand, and Markdown below 1,000 characters; what is longer waits
behind [Show Markdown]. So a plot that is to be seen at once is a small SVG that carries its own data, and a detailed
picture (PNG) is one click away.
"""

import html
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg
import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.escaping import as_markdown, for_terminal
from embed_pipeline.evaluation.plots import markdown_image

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
    """A seeded sample of rows in stored order, long texts cut; columns without anything to read are left out.

    Those are nested columns, and those with the same value in all of several rows.
    """
    chance = random.Random(f"{seed} sample {frame.height}")  # noqa: S311 - which rows are shown
    sample = frame[sorted(chance.sample(range(frame.height), min(_SAMPLE_ROWS, frame.height)))]
    flat = [column for column in sample if not column.dtype.is_nested()]
    told = [column.name for column in flat if sample.height < 2 or column.n_unique() > 1]  # noqa: PLR2004 - several
    return shown_table(told, sample.select(told).iter_rows())


def shown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.TableMetadataValue:
    """Rows as a table of the UI, which shows every cell as text, whatever markup a document holds."""
    records = [dg.TableRecord(dict(zip(columns, map(_cell, row), strict=True))) for row in rows]
    schema = dg.TableSchema(columns=[dg.TableColumn(name=name, type="string") for name in columns])
    return dg.MetadataValue.table(records, schema=schema)


def shown_list(lines: Iterable[str]) -> dg.MarkdownMetadataValue:
    """Sentences as a list of the UI."""
    return dg.MetadataValue.md("\n".join(f"- {as_markdown(line)}" for line in lines))


def picture(png: bytes, alternative: str) -> dg.MarkdownMetadataValue:
    """A PNG with a caption, which the UI shows after a click."""
    return dg.MetadataValue.md(f"{markdown_image(png)}\n\n{as_markdown(alternative)}")


def figures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as metadata: numbers and texts as they are, anything nested as JSON, what is None or empty not at all."""
    return {
        name: value if isinstance(value, int | float | str | dg.MetadataValue) else dg.MetadataValue.json(value)
        for name, value in values.items()
        if value is not None and value not in ({}, [], ())
    }


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    text = for_terminal(" ".join(text.split()))
    return text if len(text) <= _CELL_CHARACTERS else text[:_CELL_CHARACTERS] + " …"


_TRACE_COLUMNS = ("question", "answer", "qa_id", "origin", "hop", "on", "path", "segment", "segment_id", "text")


def traced_pairs(pairs: pl.DataFrame, corpus: pl.DataFrame) -> dg.TableMetadataValue:
    """A fixed sample of accepted pairs, each followed from its question through its hops to segment and document."""
    traced = _traced_rows(pairs)
    named = {segment for pair in traced for hop in pair["hops"] for segment in hop["segment_ids"]}
    sources = {row["segment_id"]: row for row in corpus.filter(pl.col("segment_id").is_in(named)).to_dicts()}
    rows: list[tuple[object, ...]] = []
    for pair in traced:
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


def read_pairs(pairs: pl.DataFrame, corpus: pl.DataFrame) -> dg.TableMetadataValue:
    """The same fixed sample with no more than a person reads: question, answer and documents."""
    traced = _traced_rows(pairs)
    named = {segment for pair in traced for segment in pair["segment_ids"]}
    paths = dict(corpus.filter(pl.col("segment_id").is_in(named)).select("segment_id", "path").iter_rows())
    rows = [
        (pair["question"], pair["answer"], ", ".join(dict.fromkeys(paths[key] for key in pair["segment_ids"])))
        for pair in traced
    ]
    return shown_table(("question", "answer", "documents"), rows)


# So that a plot stays below a thousand characters.
_MOST_BARS, _LABEL_CHARACTERS, _BINS, _POINTS = 12, 14, 9, 24
_PANEL, _TALL = 150, 60
_UNQUOTED = " =:/'"


def bars(values: Mapping[str, float]) -> dg.MetadataValue[Any] | None:
    """A bar for each value, its number written next to it; more than 12 values as a table, None for none."""
    if not values:
        return None
    if len(values) > _MOST_BARS:
        return shown_table(("", "value"), values.items())
    most = max([*values.values(), 1e-9])
    texts = "".join(
        f"<text y='{14 + 18 * row}'>{html.escape(_cell(name)[:_LABEL_CHARACTERS])} {_cell(value)}</text>"
        for row, (name, value) in enumerate(values.items())
    )
    path = "".join(f"M150 {10 + 18 * row}h{200 * value / most:.0f}" for row, value in enumerate(values.values()))
    return _plot(texts + _path(path, 12), 360, 18 * len(values))


def counts(values: pl.Series) -> dg.MetadataValue[Any] | None:
    """How often each value occurs, as bars."""
    counted = values.drop_nulls().value_counts().sort(values.name)
    return bars({str(value): count for value, count in counted.iter_rows()})


def histograms(
    samples: Mapping[str, Sequence[float]], low: float, high: float, *, mark: float | None = None
) -> dg.MetadataValue[Any] | None:
    """Histograms side by side over the same bounds; ``mark``: where a line is drawn across them. None for no values."""
    if not any(samples.values()):
        return None
    width, path, lines = (_PANEL - 20) // _BINS, "", ""
    for panel, sample in enumerate(samples.values()):
        found, _ = np.histogram(sample, bins=_BINS, range=(low, high))
        for place, share in enumerate(found / max(1, found.max())):
            path += f"M{_PANEL * panel + width * place + width // 2} {_TALL}v{-_TALL * share:.0f}" if share else ""
        if mark is not None:
            lines += f"M{_PANEL * panel + width * _BINS * (mark - low) / (high - low):.0f} 0v{_TALL}"
    captions = [f"{name} {low:g}-{high:g}" for name in samples]
    return _panels(captions, _path(path, width - 1) + (_path(lines, 1, "tomato") if lines else ""))


def curves(lines: Mapping[str, Sequence[tuple[float, float]]]) -> dg.MetadataValue[Any] | None:
    """Curves side by side, each over its own bounds; None where there are none."""
    lines = {name: line for name, line in lines.items() if line}
    if not lines:
        return None
    path, captions = "", []
    for panel, (name, line) in enumerate(lines.items()):
        points = [*line[: -1 : -(-len(line) // _POINTS)], line[-1]]
        left, right = points[0][0], points[-1][0]
        low, high = (end(value for _, value in line) for end in (min, max))
        path += "M" + "L".join(
            f"{_PANEL * panel + (_PANEL - 20) * (place - left) / (right - left or 1):.0f} "
            f"{_TALL - (_TALL - 4) * (value - low) / (high - low or 1):.0f}"
            for place, value in points
        )
        captions.append(f"{name} {low:.3g}-{high:.3g}")
    return _panels(captions, _path(path, 2))


def _panels(captions: Sequence[str], body: str) -> dg.MarkdownMetadataValue:
    texts = (
        f"<text x='{_PANEL * panel}' y='{_TALL + 14}'>{html.escape(_cell(text))}</text>"
        for panel, text in enumerate(captions)
    )
    return _plot(body + "".join(texts), _PANEL * len(captions), _TALL + 18)


def _path(path: str, width: int, color: str = "steelblue") -> str:
    return f"<path d='{path}' fill='none' stroke='{color}' stroke-width='{width}'/>"


def _plot(body: str, width: int, height: int) -> dg.MarkdownMetadataValue:
    """An SVG as a Markdown image."""
    size = f"width='{width}' height='{height}'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='Arial' font-size='12' fill='gray'>{body}</svg>"
    return dg.MetadataValue.md(f"![plot](<data:image/svg+xml,{quote(svg, safe=_UNQUOTED)}>)")
