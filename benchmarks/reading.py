"""How long reading documents takes, and how much memory: the sample, many files of every text format, one large file.

    python benchmarks/reading.py [--files 2000] [--large-megabytes 20]

Files are read as the step ``documents`` reads them, in the reading process with its limits. Writes
``benchmarks/results/reading.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
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
    options = parser.parse_args()
    found = {
        "sample": measured(lambda folder: write_sample("python", folder)),
        "many": measured(lambda folder: write_many(folder, options.files)),
    }
    for ending in _FORMS:
        size = options.large_megabytes * 1_000_000
        found[f"large {ending}"] = measured(lambda folder, end=ending, most=size: write_large(folder, end, most))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


def measured(write: Callable[[Path], object]) -> dict[str, object]:
    """Seconds, files and characters a second, and the largest process's memory, of what ``write`` puts in a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "documents"
        folder.mkdir()
        write(folder)
        corpus = Corpus(documents_per_batch=1_000_000, max_file_bytes=100_000_000)
        settings = Settings(paths=Paths(documents=folder, store=Path(scratch) / "store"), corpus=corpus)
        (batch,), _ = cut_batches(settings)
        started = time.perf_counter()
        documents, rejected = read_documents(batch, settings)
        seconds = time.perf_counter() - started
        characters = int(documents["text"].str.len_chars().sum())
    return {
        "files": documents.height,
        "set_aside": rejected.select("reason", "detail").rows(),
        "seconds": round(seconds, 2),
        "characters_a_second": round(characters / seconds),
        "largest_reading_process_megabytes": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000),
    }


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
