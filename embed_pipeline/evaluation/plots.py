"""Pictures of a comparison and of a training, as PNG bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from embed_pipeline.enumerations import HYBRIDS, RECIPROCAL_RANKS
from embed_pipeline.evaluation.adoption import LABELS
from embed_pipeline.evaluation.gates import headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]

# Okabe and Ito's palette, which people of every colour vision can tell apart, on white and on dark alike.
_COLORS = {
    "base": "#7f8c9b",
    "tuned": "#0072b2",
    "bm25": "#e69f00",
    "hybrid_base": "#009e73",
    "hybrid_tuned": "#cc79a7",
}
_INK = "#5b6470"
_GRID = "#9aa4b033"
_DPI = 130


def recall_curves(metrics: pl.DataFrame, query_set: str) -> bytes:
    """Recall at every cut-off of every system on one query set: a PNG with a transparent background.

    Args:
        metrics: table ``retrieval_evaluation``.
        query_set: its name.
    """
    rows = metrics.filter(
        (pl.col("query_set") == query_set) & (pl.col("slice") == "all") & (pl.col("metric") == "Recall")
    ).sort("k")
    figure, axes = _figure(5.6, 3.5)
    cutoffs = rows["k"].unique().sort().to_list()
    for system, label in LABELS.items():
        values = rows.filter(pl.col("system") == system)["value"].to_list()
        strong = system == "tuned"
        axes.plot(
            range(len(cutoffs)),
            values,
            marker="o",
            markersize=4,
            linewidth=2.4 if strong else 1.6,
            color=_COLORS[system],
            label=label,
            zorder=3 if strong else 2,
        )
    axes.set_xticks(range(len(cutoffs)), [str(k) for k in cutoffs])
    axes.set_ylim(max(0.0, float(rows["value"].min() or 0.0) - 0.1), 1.02)  # type: ignore[arg-type]  # a float column
    axes.set_xlabel("passages retrieved (k)")
    axes.set_ylabel("Recall@k")
    axes.legend(frameon=False, labelcolor=_INK, loc="lower right")
    return _png(figure)


def headline_bars(metrics: pl.DataFrame) -> bytes:
    """nDCG@10 of every system on every query set, with the 95 % interval of the difference to the base: a PNG."""
    found = headline(metrics)
    sets = list(dict.fromkeys(query_set for query_set, _ in found))
    figure, axes = _figure(1.8 + 3.0 * len(sets), 3.5)
    width = 0.8 / len(LABELS)
    for place, (system, label) in enumerate(LABELS.items()):
        rows = [found[name, system] for name in sets]
        at = [index + (place - (len(LABELS) - 1) / 2) * width for index in range(len(sets))]
        values = [row["value"] for row in rows]
        axes.bar(at, values, width * 0.9, color=_COLORS[system], label=label, zorder=2)
        for x, value, row in zip(at, values, rows, strict=True):
            axes.text(x, 0.02, f"{value:.3f}", ha="center", va="bottom", fontsize=8, color="white", rotation=90)
            if system != "base":
                low = row["difference"] - row["difference_low"]
                high = row["difference_high"] - row["difference"]
                axes.errorbar(x, value, yerr=[[low], [high]], color=_INK, capsize=3, linewidth=1, zorder=3)
    axes.set_xticks(range(len(sets)), sets)
    axes.set_ylabel("nDCG@10")
    axes.legend(frameon=False, labelcolor=_INK, ncols=len(LABELS), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _png(figure)


def fusion_curves(weights: pl.DataFrame, query_set: str) -> bytes:
    """nDCG@10 of BM25 with each model at every dense weight on one query set, the weights chosen marked: a PNG.

    Args:
        weights: table ``fusion_weights``.
        query_set: its name.
    """
    figure, axes = _figure(5.6, 3.2)
    for hybrid in HYBRIDS:
        rows = weights.filter(query_set=query_set, system=hybrid)
        curve = rows.drop_nulls("dense_weight").sort("dense_weight")
        color, label = _COLORS[hybrid], LABELS[hybrid]
        axes.plot(curve["dense_weight"], curve["ndcg_10"], color=color, linewidth=2, label=label)
        ranks = rows.filter(fusion=RECIPROCAL_RANKS)["ndcg_10"].item()
        axes.axhline(ranks, color=color, linewidth=1, linestyle=":", label=f"{label}, by reciprocal ranks")
        for row in curve.filter("chosen").to_dicts():
            axes.plot(row["dense_weight"], row["ndcg_10"], marker="o", color=color)
    axes.set_xlabel("dense weight (0: BM25 alone, 1: the model alone)")
    axes.set_ylabel("nDCG@10")
    axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
    return _png(figure)


def candidate_bars(frame: pl.DataFrame) -> bytes:
    """nDCG@10 of every candidate for the base on every query set, with its 95 % interval: a PNG.

    Args:
        frame: table ``base_comparison``.
    """
    sets, models = (frame[name].unique(maintain_order=True).to_list() for name in ("query_set", "model"))
    figure, axes = _figure(2.4 + 2.6 * len(sets), 3.5)
    width = 0.8 / len(models)
    colors = [_COLORS[name] for name in ("tuned", "bm25", "hybrid_base", "base")]
    for place, model in enumerate(models):
        rows = [
            frame.row(by_predicate=(pl.col("model") == model) & (pl.col("query_set") == n), named=True) for n in sets
        ]
        at = [index + (place - (len(models) - 1) / 2) * width for index in range(len(sets))]
        values = [row["ndcg_10"] for row in rows]
        ends = [
            [row["ndcg_10"] - row["ndcg_10_low"] for row in rows],
            [row["ndcg_10_high"] - row["ndcg_10"] for row in rows],
        ]
        axes.bar(at, values, width * 0.9, color=colors[place % len(colors)], label=Path(model).name, zorder=2)
        axes.errorbar(at, values, yerr=np.maximum(ends, 0), fmt="none", color=_INK, capsize=3, linewidth=1, zorder=3)
    axes.set_xticks(range(len(sets)), sets)
    axes.set_ylabel("nDCG@10, untuned")
    axes.legend(frameon=False, labelcolor=_INK, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return _png(figure)


def training_curves(losses: Curve, dev: Curve, best_step: int) -> bytes:
    """Loss of every step, and dev nDCG@10 with the step whose weights won: a PNG."""
    figure, axes = _figure(5.6, 3.2)
    axes.plot([step for step, _ in losses], [value for _, value in losses], color=_COLORS["base"], linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if dev:
        right = axes.twinx()
        _style(right, grid=False)
        color = _COLORS["tuned"]
        right.plot([step for step, _ in dev], [value for _, value in dev], color=color, marker="o", markersize=4)
        right.axvline(best_step, color=color, linewidth=1, linestyle=":")
        right.set_ylabel("dev nDCG@10", color=color)
    return _png(figure)


def data_uri(png: bytes) -> str:
    """``png`` as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def markdown_image(png: bytes, alternative: str = "plot") -> str:
    """``png`` as a Markdown image that carries its own data."""
    return f"![{alternative}]({data_uri(png)})"


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    # Built without pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Any, *, grid: bool = True) -> None:  # noqa: ANN401 - matplotlib is imported lazily
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(_GRID)
    if grid:
        axes.grid(axis="y", color=_GRID, zorder=0)
        axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, transparent=True, metadata={"Software": None})
    return buffer.getvalue()
