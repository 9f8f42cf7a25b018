"""Draw the README's picture from ``benchmarks/results``: people's queries under the base and under the tuned model.

    python benchmarks/picture.py

Each row is one measured comparison of all-MiniLM-L6-v2 before and after tuning. The bar around the tuned model is the
95 % bootstrap interval of its difference to the base. Written to ``docs/images/result.svg``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "result.svg"
BASE, TUNED, INK = "#7f8c9b", "#0072b2", "#5b6470"


@dataclass(frozen=True)
class Row:
    """One comparison in nDCG@10; ``low`` and ``high`` bound the difference to the base."""

    label: str
    base: float
    tuned: float
    low: float
    high: float


def rows() -> list[Row]:
    """The comparisons on queries that people wrote, as measured."""
    documents = json.loads((RESULTS / "documents_only.json").read_text(encoding="utf-8"))["cranfield"]
    labels = json.loads((RESULTS / "finetuning.json").read_text(encoding="utf-8"))["summary"]["256 tokens"]["ours"]
    return [
        _documents_alone("Cranfield, 225 queries\ndocuments only, defaults", documents["defaults"]),
        _documents_alone(
            "Cranfield, 225 queries\ndocuments only, with pairs of\nheadings and their texts",
            documents["structure too, with the adapter"],
        ),
        _labelled("SciFact, all 300 test claims\ntrained on labels", labels["nDCG@10"]),
        _labelled("SciFact, 104 claims answered by\npassages new to training", labels["nDCG@10, answer new"]),
    ]


def _documents_alone(label: str, variant: dict[str, Any]) -> Row:
    scores = variant["scores"]["cranfield"]
    base, tuned = scores["base"]["nDCG@10"], scores["tuned"]["nDCG@10"]
    return Row(label, base["value"], tuned["value"], tuned["difference_low"], tuned["difference_high"])


def _labelled(label: str, scores: dict[str, float]) -> Row:
    return Row(label, *(scores[name] for name in ("base", "tuned", "low", "high")))


def _figure(value: float) -> str:
    """Three decimals of one that is stored with four, halves rounded up."""
    return str(Decimal(str(value)).quantize(Decimal("0.001"), ROUND_HALF_UP))


def draw(comparisons: list[Row]) -> Figure:
    """A line for each comparison, from the base to the tuned model and its interval."""
    figure = Figure(figsize=(8, 0.5 + 0.8 * len(comparisons)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(comparisons):
        axes.plot([row.base, row.tuned], [place, place], color=BASE, linewidth=1.5, zorder=1)
        errors = [[row.tuned - row.base - row.low], [row.base + row.high - row.tuned]]
        axes.errorbar(row.tuned, place, xerr=errors, color=TUNED, capsize=4, marker="o", markersize=9, zorder=2)
        axes.plot(row.base, place, color=BASE, marker="o", markersize=9, zorder=3)
        axes.annotate(_figure(row.base), (row.base, place), (0, 9), textcoords="offset points", ha="center", color=INK)
        said = f"{_figure(row.tuned)} ({row.tuned / row.base - 1:+.1%})"
        right = (row.base + row.high, place)
        axes.annotate(said, right, (9, 0), textcoords="offset points", va="center", color=TUNED, weight="bold")
    axes.set_yticks(range(len(comparisons)), [row.label for row in comparisons])
    axes.set_ylim(len(comparisons) - 0.5, -0.6)
    axes.set_xlim(0.3, 1.0)
    axes.set_xlabel("nDCG@10: base (grey), tuned (blue, with the 95 % interval of the difference)")
    axes.grid(axis="x", color="#9aa4b033")
    axes.tick_params(length=0, labelcolor=INK)
    axes.xaxis.label.set_color(INK)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def main() -> None:
    """Write the picture."""
    mpl.rcParams["svg.hashsalt"] = "embed-pipeline"
    draw(rows()).savefig(PICTURE, transparent=True, metadata={"Date": None})
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
