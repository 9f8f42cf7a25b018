"""How long reading documents takes, and how much memory: the sample, many files of every text format, one large file.

    python benchmarks/reading.py [--files 2000] [--large-megabytes 20] [--label now] [--only NAME ...]

Files are read as the step ``documents`` reads them, in the reading process with its limits; each measurement is a
process of its own. Adds to ``benchmarks/results/reading.json`` under the label: another version of the product is
measured by the same script, with ``PYTHONPATH`` naming that version's sources.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from embed_pipeline.corpus.batches import cut_batches
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.sample import write_sample
from embed_pipeline.settings import Corpus, Paths, Settings

RESULTS = Path(__file__).parent / "results" / "reading.json"
_FORMS = {
    ".md": ("# {}\n\n", "{}\n\n"),
    ".rst": ("{}\n" + "=" * 80 + "\n\n", "{}\n\n"),
    ".html": ("<title>{0}</title><h1>{0}</h1>\n", "<p>{}</p>\n"),
    ".txt": ("{}\n\n", "{}\n\n"),
}
_SENTENCE = "The regulator of unit {} keeps the outlet at {} bar while the inlet swings between five and nine."


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--large-megabytes", type=int, default=20)
    parser.add_argument("--label", default="now")
    parser.add_argument("--only", nargs="*", default=[], help="what to measure; by default everything")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.large_megabytes * 1_000_000
    works: dict[str, Callable[[Path], object]] = {
        "sample": partial(write_sample, "python"),
        f"{options.files} files": partial(write_many, files=options.files),
        **{f"large {ending}": partial(write_large, ending=ending, size=size) for ending in _FORMS},
    }
    if options.one:
        print(json.dumps(measured(works[options.one])))
        return
    for name in options.only or works:
        chosen = ["--files", str(options.files), "--large-megabytes", str(options.large_megabytes)]
        again = [sys.executable, __file__, *chosen, "--one", name]
        done = subprocess.run(again, check=True, capture_output=True, text=True)  # noqa: S603 - this very script
        kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        kept.setdefault(options.label, {})[name] = json.loads(done.stdout.splitlines()[-1])
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(name, done.stdout.splitlines()[-1], flush=True)


def measured(write: Callable[[Path], object]) -> dict[str, object]:
    """Seconds, speed by the processor's clock, and both processes' memory, of what ``write`` puts in a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "documents"
        folder.mkdir()
        write(folder)
        corpus = Corpus(documents_per_batch=1_000_000, max_file_bytes=100_000_000)
        settings = Settings(paths=Paths(documents=folder, store=Path(scratch) / "store"), corpus=corpus)
        (batch,), _ = cut_batches(settings)
        started, before = time.perf_counter(), _processor_seconds()
        documents, rejected = read_documents(batch, settings)
        seconds, worked = time.perf_counter() - started, _processor_seconds() - before
        characters = int(documents["text"].str.len_chars().sum())
    return {
        "files": documents.height,
        "set_aside": rejected.select("reason", "detail").rows(),
        "seconds": round(seconds, 2),
        "processor_seconds": round(worked, 2),
        "characters_a_processor_second": round(characters / worked),
        "reading_process_megabytes": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000),
        "own_process_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def _processor_seconds() -> float:
    """Of this process and of those that it has started and ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def write_many(folder: Path, files: int) -> None:
    """Files of about 4 kB, of every text format in turn."""
    for number in range(files):
        ending = list(_FORMS)[number % len(_FORMS)]
        (folder / f"{number:05}{ending}").write_text(page(ending, number, 40), encoding="utf-8")


def write_large(folder: Path, ending: str, size: int) -> None:
    """One file."""
    (folder / f"large{ending}").write_text(page(ending, 0, size // 110), encoding="utf-8")


def page(ending: str, number: int, sentences: int) -> str:
    """A title and paragraphs of one sentence."""
    head, paragraph = _FORMS[ending]
    body = (paragraph.format(_SENTENCE.format(number, place)) for place in range(sentences))
    return head.format(f"Unit {number}") + "".join(body)


if __name__ == "__main__":
    main()
