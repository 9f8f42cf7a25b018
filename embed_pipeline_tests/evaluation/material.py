"""A small corpus, split and query sets that the evaluation tests share."""

from __future__ import annotations

import polars as pl

from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.tables import CORPUS, Column

WORDS = "value object class function statement python number letter string list".split()


def corpus() -> pl.DataFrame:
    """Ten documents of two segments each; ``s00`` and ``s19`` have the same text."""
    rows: list[dict[str, object]] = []
    for i in range(20):
        word = WORDS[i // 2]
        text = "the same text" if i in {0, 19} else f"the {word} is {'a ' * (i % 3)}{WORDS[(i * 3) % 10]} {i}"
        known: dict[str, object] = {
            "segment_id": f"s{i:02}",
            "document_id": f"d{i // 2}",
            "path": f"{word}.md",
            "title": word,
            "text": text,
            "position": i % 2,
        }
        rows.append({column.name: known.get(column.name, default(column)) for column in CORPUS.columns})
    return CORPUS.frame(rows)


def default(column: Column) -> object:
    """A value of a column that the tests do not look at."""
    if column.nullable:
        return None
    return "" if column.dtype == pl.String else 0


def generated() -> QuerySet:
    """Six questions, each in the words of its segment."""
    texts = dict(corpus().select("segment_id", "text").iter_rows())
    answers = [f"s{i:02}" for i in (0, 3, 5, 8, 12, 15)]
    return QuerySet(
        name="generated",
        queries={f"q{i}": texts[segment] for i, segment in enumerate(answers)},
        qrels={f"q{i}": {segment: 1} for i, segment in enumerate(answers)},
        slices={"hop_count": {f"q{i}": "1" if i < 4 else "2" for i in range(6)}},
    )


def labelled() -> QuerySet:
    """Three questions about documents."""
    return QuerySet(
        name="people",
        queries={"p1": "what is a class", "p2": "how does the string work", "p3": "number"},
        qrels={"p1": {"class.md": 1}, "p2": {"string.md": 1, "list.md": 1}, "p3": {"number.md": 2}},
        unit="document",
    )
