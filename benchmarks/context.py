"""What the title, or the headings, before each segment gain on questions people asked, under the untuned base model.

    python benchmarks/context.py [--set DIR ...] [--queries 75] [--most 600] [--only NAME ...]

``DIR`` is a BEIR folder. One with a folder ``documents``, whose files its judgements name, is read as it is; of any
other each passage becomes a Markdown file, once with its title as the first heading and once with the title in its
metadata alone, so that no segment holds it. The sample of the product is always measured. Documents are read, cut and
scored as the product does it, a document by its best segment. Writes ``benchmarks/results/context.json``; sets named by
``--only`` are measured, the others keep their figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline.beir import read_beir
from embed_pipeline.corpus.batches import cut_batches
from embed_pipeline.corpus.current import current_corpus
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.sample import write_sample
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.enumerations import Context
from embed_pipeline.evaluation.gates import headline
from embed_pipeline.evaluation.query_sets import QuerySet, labelled_set
from embed_pipeline.evaluation.retrieval import compare
from embed_pipeline.row_files import read_json_lines
from embed_pipeline.settings import Corpus, Embedding, Evaluation, Paths, Settings
from embed_pipeline.text.passages import passage_texts

RESULTS = Path(__file__).parent / "results" / "context.json"
SAMPLE = Path(__file__).parent.parent / "data" / "sample" / "python-reference"
CONTEXTS: tuple[Context, ...] = ("none", "title", "path")


def main() -> None:
    """Measure and write the results, a set at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, nargs="*", default=[], help="BEIR folders")
    parser.add_argument("--queries", type=int, default=75, help="questions of a BEIR folder: its first")
    parser.add_argument("--most", type=int, default=600, help="documents of a set, the judged ones first")
    parser.add_argument("--only", nargs="*", default=[], help="names of the results to measure")
    options = parser.parse_args()
    for name, write, questions in _sets(options.set, options.most, options.queries):
        if not options.only or name in options.only:
            entry = measured(write, questions)
            kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
            kept["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
            kept[name] = entry
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
            print(name, json.dumps(entry, indent=1), flush=True)


def _sets(
    folders: list[Path], most: int, queries: int
) -> Iterator[tuple[str, Callable[[Path], object], Callable[[pl.DataFrame], QuerySet | None]]]:
    """Name, what writes the documents of a set, and what gives its questions over their corpus."""
    yield "sample", partial(write_sample, "python"), partial(labelled_set, SAMPLE)
    for folder in folders:
        if (folder / "documents").is_dir():
            yield folder.name, partial(copy_documents, folder, most), partial(labelled_set, folder / "labels")
            continue
        found = read_beir(folder, ("test",))
        chosen = {query: found.judged["test"][query].grades for query in sorted(found.judged["test"])[:queries]}
        for form in ("title in the text", "title apart"):
            write = partial(write_passages, folder, _judged(chosen), most, apart=form == "title apart")
            yield f"{folder.name}, {form}", write, partial(_questions, folder.name, found.queries, chosen)


def measured(write: Callable[[Path], object], questions: Callable[[pl.DataFrame], QuerySet | None]) -> dict[str, Any]:
    """nDCG@10 under each context, with the 95 % interval of its difference to none."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder, store = Path(scratch) / "documents", Path(scratch) / "store"
        folder.mkdir()
        write(folder)
        options = Corpus(documents_per_batch=1_000_000, near_duplicates="off")
        settings = Settings(
            paths=Paths(documents=folder, store=store), corpus=options, evaluation=Evaluation(cutoffs=(10,))
        )
        encoder = Encoder.load(settings.embedding.model, settings.embedding)
        (batch,), _ = cut_batches(settings)
        documents, _ = read_documents(batch, settings)
        found: dict[str, Any] = {}
        passages: list[list[str]] = []
        for context in CONTEXTS:
            segments = split_segments(
                documents, options, encoder.count_tokens, max_tokens=encoder.passage_tokens, context=context
            )
            corpus, _ = current_corpus({batch.name: documents}, {batch.name: segments}, options)
            texts = passage_texts(corpus, context)
            asked = questions(corpus)
            if texts in passages or asked is None:
                continue
            passages.append(texts)
            tried = settings.model_copy(update={"embedding": Embedding(context=context)})
            rows = headline(
                compare("packaged", "packaged", corpus, [asked], tried, vectors=store, base_context="none").metrics
            )
            row, lexical = rows[asked.name, "tuned"], rows[asked.name, "bm25"]
            found[context] = {
                "nDCG@10": round(row["value"], 4),
                **({} if context == "none" else {key: round(row[key], 4) for key in _DIFFERENCE}),
                "BM25": round(lexical["value"], 4),
                "segments": corpus.height,
            }
    seconds = round(time.perf_counter() - started)
    return {"documents": documents.height, "queries": row["queries"], "seconds": seconds, **found}


_DIFFERENCE = ("difference", "difference_low", "difference_high")


def _judged(chosen: Mapping[str, Mapping[str, int]]) -> set[str]:
    return {key for grades in chosen.values() for key, grade in grades.items() if grade > 0}


def write_passages(beir: Path, judged: set[str], most: int, folder: Path, *, apart: bool) -> None:
    """Passages as Markdown files: the judged ones, then the first of the others."""
    rows = {row["_id"]: row for _, row in read_json_lines(beir / "corpus.jsonl")}
    for key in sorted(rows, key=lambda key: key not in judged)[:most]:
        title, text = " ".join((rows[key].get("title") or "").split()), rows[key]["text"]
        head = f"---\ntitle: {json.dumps(title)}\n---\n\n" if apart else f"# {title}\n\n" if title else ""
        (folder / f"{key}.md").write_text(f"{head}{text}\n", "utf-8")


def _questions(
    name: str, queries: Mapping[str, str], chosen: Mapping[str, Mapping[str, int]], corpus: pl.DataFrame
) -> QuerySet:
    known = set(corpus["path"])
    qrels = {
        query: found
        for query, grades in chosen.items()
        if (found := {f"{key}.md": grade for key, grade in grades.items() if grade > 0 and f"{key}.md" in known})
    }
    return QuerySet(name, {query: queries[query] for query in qrels}, qrels, unit="document")


def copy_documents(beir: Path, most: int, folder: Path) -> None:
    """The documents that are judged, then the first of the others."""
    judged = _judged(
        {query: found.grades for query, found in read_beir(beir / "labels", ("test",)).judged["test"].items()}
    )
    paths = {path.relative_to(beir / "documents").as_posix(): path for path in (beir / "documents").rglob("*.md")}
    for name in sorted(paths, key=lambda name: (name not in judged, name))[:most]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(paths[name].read_bytes())


if __name__ == "__main__":
    main()
