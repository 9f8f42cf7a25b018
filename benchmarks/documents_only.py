"""What a set gains from its documents alone: no labels, the embedded 135M model, scored on questions people asked.

    python benchmarks/documents_only.py --beir DIR --work FOLDER                       the defaults
    python benchmarks/documents_only.py --beir DIR --work FOLDER --variant "rate 5e-5" one variant
    python benchmarks/documents_only.py --list                                         all variants

The corpus of a BEIR folder, such as Cranfield, is written as Markdown files into ``FOLDER/data/documents``, and the
product's own commands run there: sdg, prep, finetune, eval. Its queries and judgements are given to the evaluation
alone. ``FOLDER`` is kept: the questions are written once, and what a variant does not change is not made again. Figures
with their paired bootstrap intervals are added to ``benchmarks/results/documents_only.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
from generation import write_beir
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.settings import Paths
from embed_pipeline.storage import read_table, table_path

RESULTS = Path(__file__).parent / "results" / "documents_only.json"
CUTOFF = 10
STAGES = ("sdg", "prep", "finetune", "eval")
_NO_ADAPTER = "adapter.share=0"
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "half the linear adapter alone": ("adapter.share=0.5", "training.contrastive=false"),
    "the linear adapter alone": ("adapter.share=1", "training.contrastive=false"),
    "query side, half the adapter and the query encoder, no questions": (
        "adapter.share=0.5",
        "adapter.query_encoder_share=0.75",
        "training.contrastive=false",
        "training.sides=query",
    ),
    "no linear adapter": (_NO_ADAPTER,),
    "one question a segment": (_NO_ADAPTER, "synthesis.questions_per_segment=1"),
    "no mined negatives": (_NO_ADAPTER, "training_data.num_negatives=0"),
    "rate 5e-5": (_NO_ADAPTER, "training.learning_rate=5e-5"),
    "one pass": (_NO_ADAPTER, "training.epochs=1"),
    "four passes": (_NO_ADAPTER, "training.epochs=4"),
    "hybrid teacher": (_NO_ADAPTER, "training.teacher=hybrid"),
    "hybrid teacher, weight 5": (_NO_ADAPTER, "training.teacher=hybrid", "training.teacher_weight=5"),
    "hybrid teacher, weight 5, rate 1e-4": (
        _NO_ADAPTER,
        "training.teacher=hybrid",
        "training.teacher_weight=5",
        "training.learning_rate=1e-4",
    ),
    "hybrid teacher, weight 5, with the adapter": ("training.teacher=hybrid", "training.teacher_weight=5"),
    "structure too": (_NO_ADAPTER, "training_data.sources=generated,structure"),
    "structure too, with the adapter": ("training_data.sources=generated,structure",),
    "structure alone": (_NO_ADAPTER, "training_data.sources=structure"),
}


def main() -> None:
    """Run one variant and add what it found to the results."""
    options = _options()
    if options.list:
        for name, changes in VARIANTS.items():
            print(f"{name}: {' '.join(changes) or 'nothing changed'}")
        return
    if not (options.work / Paths().documents).exists():
        write_beir(options.beir, options.work / Paths().documents)
    changes = (*VARIANTS[options.variant], *options.set)
    seconds = {stage: run_stage(stage, options.work, options.beir.resolve(), changes) for stage in STAGES}
    entry = {"settings": changes, "seconds": seconds, **figures(options.work / Paths().store, options.beir.name)}
    kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    kept["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
    kept.setdefault(options.beir.name, {})[options.label or options.variant] = entry
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")
    print(json.dumps(entry, indent=1))


def run_stage(stage: str, work: Path, beir: Path, changes: tuple[str, ...]) -> float:
    """Run one of the product's commands in ``work``; the seconds it took."""
    command = [str(Path(sys.executable).with_name("embed-pipeline")), "--set", f"evaluation.query_sets={beir}"]
    for change in changes:
        command += ["--set", change]
    started = time.time()
    print(f"$ embed-pipeline {' '.join(changes)} {stage}", flush=True)
    code = subprocess.run([*command, stage], cwd=work, check=False).returncode  # noqa: S603 - our own command
    evaluated = Path(table_path(UPath(work / Paths().store), tables.RETRIEVAL_EVALUATION.name))
    # The gates may refuse the model that was evaluated: that is a finding, not a fault of the run.
    if code and not (stage == "eval" and evaluated.exists() and evaluated.stat().st_mtime > started):
        raise SystemExit(f"embed-pipeline {stage} ended with {code}")
    return round(time.time() - started, 1)


def figures(store: Path, name: str) -> dict[str, Any]:
    """Questions and examples in the store, and nDCG@10 and Recall@10 of every system on people's queries."""
    root = UPath(store)
    frames = {
        table.name: read_table(table_path(root, table.name), table)
        for table in (tables.RETRIEVAL_EVALUATION, tables.TRAINING_EXAMPLES, tables.DATASET_SPLIT)
    }
    scored = frames["retrieval_evaluation"].filter(
        pl.col("query_set").is_in([name, "generated"]) & (pl.col("slice") == "all") & (pl.col("k") == CUTOFF)
    )
    systems: dict[str, Any] = {}
    for row in scored.filter(pl.col("metric").is_in(["nDCG", "Recall"])).to_dicts():
        interval = {key: round(row[key], 4) for key in ("value", "difference", "difference_low", "difference_high")}
        systems.setdefault(row["query_set"], {}).setdefault(row["system"], {})[f"{row['metric']}@{CUTOFF}"] = interval
    return {
        "examples": frames["training_examples"].height,
        "questions_by_side": dict(frames["dataset_split"]["split"].value_counts(sort=True).iter_rows()),
        "scores": systems,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, help="a BEIR folder with corpus, queries and test judgements")
    parser.add_argument("--work", type=Path, help="the project folder that is made, and kept")
    parser.add_argument("--variant", choices=VARIANTS, default="defaults")
    parser.add_argument("--set", action="append", default=[], metavar="stage.name=value", help="one setting more")
    parser.add_argument("--label", help="name in the results, where --set is used")
    parser.add_argument("--list", action="store_true", help="print the variants")
    options = parser.parse_args()
    if not options.list and not (options.beir and options.work):
        parser.error("--beir and --work are needed")
    return options


if __name__ == "__main__":
    main()
