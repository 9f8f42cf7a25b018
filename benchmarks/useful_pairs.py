"""What share of the accepted pairs is useful to a person who reads them, blind, for two stores side by side.

    python benchmarks/useful_pairs.py draw SHEET before=STORE after=STORE --pairs 100 --seed 8
    python benchmarks/useful_pairs.py count SHEET

``draw`` takes so many accepted pairs of each store at random, shuffles all of them together and writes them to SHEET, a
JSON line each, without a word of which store they are from; that goes to SHEET with the ending ``.key``. A person fills
in ``useful``: 1 where somebody who searches these documents could ask it, its passage answers it and it is well formed;
0.5 where one of these holds in part; 0 else. ``count`` prints the share with at least 0.5, and with 1, of each store,
with 95 % intervals by Wilson's score, and adds them to ``benchmarks/results/useful_pairs.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path
from typing import Any

import polars as pl

RESULTS = Path(__file__).parent / "results" / "useful_pairs.json"
PASSAGE_CHARACTERS = 900
NORMAL_95 = 1.959964


def main() -> None:
    """Draw a sheet, or count one that was filled in."""
    options = _options()
    key = options.sheet.with_suffix(".key")
    if options.action == "draw":
        rows = [row for store in options.stores for row in draw(*store, options.pairs, options.seed)]
        random.Random(options.seed).shuffle(rows)  # noqa: S311 - an order, no secret
        with options.sheet.open("w", encoding="utf-8") as sheet, key.open("w", encoding="utf-8") as origins:
            for number, row in enumerate(rows):
                origins.write(json.dumps({"number": number, "from": row.pop("from")}) + "\n")
                sheet.write(json.dumps({"number": number, **row, "useful": None}, ensure_ascii=False) + "\n")
        return
    judged, origins_of = (
        {row["number"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}
        for path in (options.sheet, key)
    )
    figures = count({number: row["useful"] for number, row in judged.items()}, origins_of)
    print(json.dumps(figures, indent=1))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[options.sheet.stem] = figures
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def draw(name: str, store: Path, pairs: int, seed: int) -> list[dict[str, Any]]:
    """So many generated pairs of a store's accepted set, with their passages."""
    accepted = pl.read_parquet(store / "tables" / "qa_dataset.parquet").filter(origin="generated").sort("qa_id")
    corpus = pl.read_parquet(store / "tables" / "corpus.parquet")
    told = {key: f"({heading}) {text}" for key, heading, text in corpus["segment_id", "heading_path", "text"].rows()}
    rows = accepted.to_dicts()
    chosen = random.Random(seed).sample(rows, min(pairs, len(rows)))  # noqa: S311 - a draw, no secret
    return [
        {
            "from": name,
            "question": row["question"],
            "answer": row["answer"],
            "passages": [" ".join(told[key].split())[:PASSAGE_CHARACTERS] for key in row["segment_ids"]],
        }
        for row in chosen
    ]


def count(useful: dict[int, float | None], origins: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Shares of each store with their intervals.

    Raises:
        SystemExit: pairs are not judged yet.
    """
    if missing := [number for number, value in useful.items() if value is None]:
        raise SystemExit(f"{len(missing)} of {len(useful)} pairs are not judged yet, the first is number {missing[0]}")
    figures: dict[str, Any] = {}
    for name in sorted({row["from"] for row in origins.values()}):
        values = [value or 0.0 for number, value in useful.items() if origins[number]["from"] == name]
        figures[name] = {
            "pairs": len(values),
            **{
                label: _share(sum(value >= least for value in values), len(values))
                for label, least in (("useful", 0.5), ("useful_without_reserve", 1.0))
            },
        }
    return figures


def _share(found: int, count: int) -> dict[str, float]:
    """A share with its 95 % interval by Wilson's score (Wilson, 1927)."""
    share, square = found / count, NORMAL_95**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return {"share": round(share, 3), "low": round(middle - half, 3), "high": round(middle + half, 3)}


def _store(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    return name, Path(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    drawing = actions.add_parser("draw", help="write a sheet of shuffled pairs")
    counting = actions.add_parser("count", help="count a sheet that was filled in")
    for action in (drawing, counting):
        action.add_argument("sheet", type=Path)
    drawing.add_argument("stores", nargs="+", type=_store, metavar="NAME=STORE")
    drawing.add_argument("--pairs", type=int, default=100, help="of each store")
    drawing.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
