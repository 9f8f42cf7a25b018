"""The comparison as a self-contained page, as Markdown, and in a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.enumerations import ALL_RECALL, SYSTEMS
from embed_pipeline.escaping import as_markdown
from embed_pipeline.evaluation import plots
from embed_pipeline.evaluation.adoption import LABELS
from embed_pipeline.evaluation.base_comparison import COLUMNS, comparison_rows
from embed_pipeline.evaluation.query_sets import GENERATED
from embed_pipeline.evaluation.retrieval import Comparison
from embed_pipeline.evaluation.significance import Verdict

_TEMPLATES = Path(__file__).parent / "templates"
_EXAMPLES = 5
_EXCERPT = 420
_TABLE_CUTOFFS = (1, 5, 10, 100)
SUMMARY_COLUMNS = (
    "questions",
    "system",
    "nDCG@10",
    "Recall@10",
    "AllRecall @10",
    "nDCG@10 less the base's (95 % interval)",
)


@dataclass(frozen=True)
class Cell:
    """A figure of one system; ``mark`` is ``better`` or ``worse`` where its interval excludes zero, else empty."""

    value: float
    difference: float
    low: float
    high: float
    mark: str


@dataclass(frozen=True)
class FigureRow:
    """A metric, or a slice, and its figure under every system."""

    label: str
    queries: int
    cells: dict[str, Cell]

    @property
    def group(self) -> str:
        """The metric, or the dimension of the slice; rows of one group are shown together."""
        return self.label.replace("=", "@").split("@")[0]


@dataclass(frozen=True)
class Example:
    """A question before and after: nDCG@10, rank of the first answer, and the text that each model ranks first."""

    question: str
    base: float
    tuned: float
    base_rank: int | None
    tuned_rank: int | None
    base_text: str
    tuned_text: str
    answer: str


@dataclass(frozen=True)
class Section:
    """One query set in the report."""

    name: str
    verdict: Verdict
    metrics: list[FigureRow]
    slices: list[FigureRow]
    wins: list[Example]
    losses: list[Example]
    counts: tuple[int, int, int]
    recall: str


def write_report(
    comparison: Comparison,
    folder: Path,
    context: Mapping[str, object],
    gate: Sequence[str] = (),
    candidates: pl.DataFrame | None = None,
) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` into ``folder``.

    Both contain their pictures, so each can be sent and stored as a single file.

    Args:
        comparison: what the evaluation found.
        folder: made where it is absent.
        context: facts to print, label to value, such as models, data versions and dates.
        gate: why the tuned model may not be released, a sentence each; empty: it may.
        candidates: table ``base_comparison``; None or empty: candidates for the base were not compared.

    Returns:
        Paths of the HTML page and of the Markdown file.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    environment.filters["plain"] = as_markdown
    bars = plots.headline_bars(comparison.metrics)
    fused = comparison.fusions["query_set"].unique(maintain_order=True).to_list()
    values: dict[str, Any] = {
        "sections": [_section(comparison, name) for name in comparison.verdicts],
        "warnings": comparison.warnings,
        "context": dict(context),
        "gate": list(gate),
        "systems": LABELS,
        "advice": comparison.advice,
        "fusions": {name: plots.data_uri(plots.fusion_curves(comparison.fusions, name)) for name in fused},
        "bars": plots.data_uri(bars),
        "candidates": None,
    }
    if candidates is not None and candidates.height:
        values["candidates"] = {
            "columns": COLUMNS,
            "rows": comparison_rows(candidates),
            "bars": plots.data_uri(plots.candidate_bars(candidates)),
        }
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "report.html", folder / "report.md"
    for path in paths:
        path.write_text(environment.get_template(path.name).render(values), encoding="utf-8")
    return paths


def _section(comparison: Comparison, name: str) -> Section:
    metrics = comparison.metrics.filter(pl.col("query_set") == name)
    questions = comparison.questions.filter(pl.col("query_set") == name)
    wins = questions.filter(pl.col("outcome") == "won").sort(["change", "query_id"], descending=[True, False])
    losses = questions.filter(pl.col("outcome") == "lost").sort(["change", "query_id"])
    return Section(
        name=name,
        verdict=comparison.verdicts[name],
        metrics=_metric_rows(metrics.filter(pl.col("slice") == "all")),
        slices=_slice_rows(metrics.filter(pl.col("slice") != "all")),
        wins=_examples(comparison, name, wins.head(_EXAMPLES)),
        losses=_examples(comparison, name, losses.head(_EXAMPLES)),
        counts=(wins.height, questions.height - wins.height - losses.height, losses.height),
        recall=plots.data_uri(plots.recall_curves(comparison.metrics, name)),
    )


def _metric_rows(metrics: pl.DataFrame) -> list[FigureRow]:
    shown = metrics.filter(pl.col("k").is_in(_TABLE_CUTOFFS))
    return [
        _figure_row(f"{metric}@{k}", part) for (metric, k), part in shown.group_by(["metric", "k"], maintain_order=True)
    ]


def _slice_rows(metrics: pl.DataFrame) -> list[FigureRow]:
    headline = metrics.filter((pl.col("metric") == "nDCG") & (pl.col("k") == 10))  # noqa: PLR2004 - the headline figure is nDCG@10
    return [_figure_row(str(label), part) for (label,), part in headline.group_by(["slice"], maintain_order=True)]


def _figure_row(label: str, part: pl.DataFrame) -> FigureRow:
    cells = {}
    for row in part.to_dicts():
        low, high = row["difference_low"], row["difference_high"]
        mark = "better" if low > 0 else "worse" if high < 0 else ""
        cells[row["system"]] = Cell(row["value"], row["difference"], low, high, mark)
    return FigureRow(label, int(part["queries"][0]), cells)


def _examples(comparison: Comparison, name: str, rows: pl.DataFrame) -> list[Example]:
    return [
        Example(
            question=row["question"],
            base=row["base_ndcg_10"],
            tuned=row["tuned_ndcg_10"],
            base_rank=row["base_rank"],
            tuned_rank=row["tuned_rank"],
            base_text=_excerpt(comparison.passages[row["base_first"]]),
            tuned_text=_excerpt(comparison.passages[row["tuned_first"]]),
            answer=_excerpt(comparison.answers.get((name, row["query_id"]), "")),
        )
        for row in rows.to_dicts()
    ]


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _EXCERPT else flat[:_EXCERPT].rsplit(" ", 1)[0] + " …"


def headline_rows(metrics: pl.DataFrame) -> list[list[str]]:
    """A row for each query set and system, under :data:`SUMMARY_COLUMNS`; the generated questions first.

    Args:
        metrics: table ``retrieval_evaluation``.
    """
    shown = metrics.filter((pl.col("slice") == "all") & (pl.col("k") == 10))  # noqa: PLR2004 - the headline figures are at 10
    values = {(row["query_set"], row["system"], row["metric"]): row for row in shown.to_dicts()}
    names = sorted({name for name, _, _ in values}, key=lambda name: (name != GENERATED, name))
    return [
        _summary_row(
            values[name, system, "nDCG"], values[name, system, "Recall"], values.get((name, system, ALL_RECALL))
        )
        for name in names
        for system in SYSTEMS
        if (name, system, "nDCG") in values
    ]


def _summary_row(ndcg: dict[str, Any], recall: dict[str, Any], complete: dict[str, Any] | None) -> list[str]:
    several = complete and complete["queries"] != ndcg["queries"] and f" ({complete['queries']})"
    changed = f"{ndcg['difference']:+.4f} ({ndcg['difference_low']:+.4f} to {ndcg['difference_high']:+.4f})"
    return [
        f"{ndcg['query_set']} ({ndcg['queries']})",
        LABELS[ndcg["system"]],
        f"{ndcg['value']:.4f}",
        f"{recall['value']:.4f}",
        f"{complete['value']:.4f}{several or ''}" if complete else "",
        "" if ndcg["system"] == "base" else changed,
    ]
