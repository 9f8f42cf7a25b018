"""Question generation with the embedded model: how fast, how much survives, and what it reads like.

    python benchmarks/generation.py                     the Python reference sample
    python benchmarks/generation.py --beir DIR          a BEIR folder's corpus, such as Cranfield
    python benchmarks/generation.py --documents DIR     a folder of documents

Documents -> segments -> artifacts -> pairs -> scores -> selection in one process, in a store of its own (``--store``
keeps it, so that a second run shows that nothing is asked again). Printed: pairs a minute while questions are written,
by the clock and by processor time (which other programs on the machine change less), the share of questions that is
accepted, the share whose sources are all among the ten best (round trip, base model or BM25, over the whole corpus),
the share of segments with an accepted question, reasons for turning down, and twenty accepted pairs drawn at random for
a person to read. Figures go to ``benchmarks/results/generation.json``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.corpus.batches import cut_batches, load_batches
from embed_pipeline.corpus.current import current_corpus
from embed_pipeline.corpus.documents import clean_documents, read_documents
from embed_pipeline.corpus.sample import write_sample
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import score_pairs
from embed_pipeline.synthesis.select import Selection, select_pairs

RESULTS = Path(__file__).parent / "results" / "generation.json"
SHOWN = 20
TEN = 10


def main() -> None:
    """Run once, print, add the figures to the results."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        documents = options.documents or Path(temporary) / "documents"
        if options.beir:
            write_beir(options.beir, documents, options.limit)
        elif not options.documents:
            write_sample("python", documents)
        store = options.store or Path(temporary) / "store"
        paths = {"documents": documents, "store": store}
        settings = load_settings().model_copy(update={"paths": load_settings().paths.model_copy(update=paths)})
        figures, selection = run(settings, options.asked)
    name = options.beir.name if options.beir else (options.documents.name if options.documents else "python-reference")
    _print(name, figures, selection)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[name] = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", **figures}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def run(settings: Settings, only: int = 0) -> tuple[dict[str, Any], Selection]:
    """All stages over the documents folder; figures and the selection. ``only``: ask of so many documents."""
    cut_batches(settings)
    encoder = Encoder.load(settings.embedding.model, settings.embedding)
    tables: dict[str, dict[str, pl.DataFrame]] = {name: {} for name in ("documents", "segments", "pairs", "scores")}
    seconds = processor_seconds = calls = cached = rejected = 0.0
    for batch in load_batches(settings.paths.store):
        documents, _ = clean_documents(read_documents(batch, settings)[0], batch, settings)
        segments = split_segments(documents, settings.corpus, encoder.count_tokens, max_tokens=encoder.passage_tokens)
        artifacts = extract_artifacts(batch.name, segments, settings).artifacts
        titles = dict(documents.select("document_id", "title").iter_rows())
        begun, computed = time.monotonic(), time.process_time()
        asked = _some_documents(segments, only)
        made = generate_pairs(batch.name, asked, artifacts, titles, settings, lambda: encoder)
        seconds += time.monotonic() - begun
        processor_seconds += time.process_time() - computed
        calls += made.usage.calls
        cached += made.usage.cached
        rejected += made.rejects.height
        scores = score_pairs(batch.name, made.pairs, segments, settings, encoder).scores
        for name, frame in (
            ("documents", documents),
            ("segments", segments),
            ("pairs", made.pairs),
            ("scores", scores),
        ):
            tables[name][batch.name] = frame
    corpus, _ = current_corpus(tables["documents"], tables["segments"], settings.corpus)
    selection = select_pairs(tables["pairs"], tables["scores"], corpus, settings, encoder)
    written = selection.decisions.height
    asked_of = sum(_some_documents(segments, only).height for segments in tables["segments"].values())
    covered = selection.dataset["segment_ids"].explode().n_unique()
    figures = {
        "documents": corpus["document_id"].n_unique(),
        "segments": corpus.height,
        "segments_asked_of": asked_of,
        "calls": int(calls),
        "answers_from_the_store": int(cached),
        "seconds_writing": round(seconds, 1),
        "processor_seconds_writing": round(processor_seconds, 1),
        "pairs_written": written,
        "candidates_rejected": int(rejected),
        "pairs_per_minute": round(60 * written / seconds, 1),
        "pairs_per_processor_minute": round(60 * written / processor_seconds, 1),
        "accepted": selection.dataset.height,
        "accepted_per_minute": round(60 * selection.dataset.height / seconds, 1),
        "acceptance_rate": round(selection.dataset.height / max(1, written), 4),
        "accepted_share_of_questions_asked": round(selection.dataset.height / max(1, written + rejected), 4),
        "round_trip_at_10": round((selection.decisions["round_trip_rank"] <= TEN).mean(), 4),
        "segment_coverage": round(covered / asked_of, 4),
        "reasons": dict(selection.decisions["reason"].value_counts(sort=True).iter_rows()),
        "accepted_by_reasoning": dict(selection.dataset["reasoning_type"].value_counts(sort=True).iter_rows()),
        "accepted_by_hops": {str(k): v for k, v in selection.dataset["hop_count"].value_counts(sort=True).iter_rows()},
    }
    return figures, selection


def _some_documents(segments: pl.DataFrame, count: int) -> pl.DataFrame:
    """The segments of so many documents drawn at random; 0: all."""
    documents = sorted(segments["document_id"].unique())
    drawn = random.Random(0).sample(documents, min(count, len(documents))) if count else documents  # noqa: S311
    return segments.filter(pl.col("document_id").is_in(drawn))


def _print(name: str, figures: Mapping[str, Any], selection: Selection) -> None:
    print(f"\n## {name}\n")
    for key, value in figures.items():
        print(f"| {key.replace('_', ' ')} | {value} |")
    rows = selection.dataset.to_dicts()
    print(f"\n{SHOWN} accepted pairs at random:\n")
    for row in random.Random(0).sample(rows, min(SHOWN, len(rows))):  # noqa: S311 - a draw, no secret
        print(f"- {row['question']}\n    {' '.join(row['answer'].split())[:160]}  (rank {row['round_trip_rank']})")


def write_beir(beir: Path, documents: Path, limit: int = 0) -> None:
    """The corpus of a BEIR folder as Markdown files."""
    documents.mkdir(parents=True)
    with (beir / "corpus.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if limit and number == limit:
                break
            row = json.loads(line)
            title = " ".join(row.get("title", "").split())
            (documents / f"{row['_id'].replace('/', '-')}.md").write_text(f"# {title}\n\n{row['text']}\n", "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, help="a BEIR folder")
    parser.add_argument("--documents", type=Path, help="a folder of documents")
    parser.add_argument("--store", type=Path, help="keep the store here")
    parser.add_argument("--limit", type=int, default=0, help="only so many documents of the BEIR folder")
    parser.add_argument("--asked", type=int, default=0, help="ask of so many documents, search among all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
