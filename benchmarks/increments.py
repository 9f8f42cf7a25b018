"""Calls that a second run, an added document and an edited one cost, with every stage that asks a model.

    python benchmarks/increments.py                  200 documents made for the purpose
    python benchmarks/increments.py --beir DIR       the first 200 documents of a BEIR folder, such as Cranfield

A stub endpoint answers artifacts, questions, verdicts and hop checks. Counted are the requests that reach it: of the
first run, of the same run again, after adding 1 % documents, and after changing one word of one document. Figures go
to ``benchmarks/results/increments.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from embed_pipeline.corpus.batches import cut_batches, load_batches
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.artifacts import extract_artifacts
from embed_pipeline.synthesis.estimate import estimate_folder
from embed_pipeline.synthesis.generate import generate_pairs
from embed_pipeline.synthesis.score import score_pairs

sys.path.insert(0, str(Path(__file__).parents[1]))
from embed_pipeline_tests.stub_endpoint import Stub, stub_endpoint
from embed_pipeline_tests.synthesis import material
from embed_pipeline_tests.tiny import write_tiny_model

RESULTS = Path(__file__).parent / "results" / "increments.json"
DOCUMENTS, ADDED = 200, 2


def main() -> None:
    """Run the four cases, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beir", type=Path, help="a BEIR folder")
    options = parser.parse_args()
    texts = _beir(options.beir) if options.beir else [_made(number) for number in range(DOCUMENTS + ADDED)]
    with tempfile.TemporaryDirectory() as temporary, stub_endpoint(material.respond) as stub:
        folder = Path(temporary) / "documents"
        folder.mkdir()
        for number, text in enumerate(texts[:DOCUMENTS]):
            (folder / f"{number:04}.md").write_text(text, "utf-8")
        settings = _settings(folder, Path(temporary) / "store", stub)
        encoder = Encoder.load(write_tiny_model(Path(temporary) / "tiny"), settings.embedding)
        predicted = estimate_folder(settings, encoder).total.calls
        first = _run(settings, encoder, stub)
        again = _run(settings, encoder, stub)
        for number, text in enumerate(texts[DOCUMENTS : DOCUMENTS + ADDED]):
            (folder / f"added-{number}.md").write_text(text, "utf-8")
        added = _run(settings, encoder, stub)
        edited_file = folder / "0007.md"
        edited_file.write_text(edited_file.read_text("utf-8").replace(" the ", " this ", 1), "utf-8")
        edited = _run(settings, encoder, stub)
    figures = {"predicted": predicted, "first run": first, "the same again": again, "1 % more": added, "a word": edited}
    print("| run | calls | share of the first |\n|---|---|---|")
    for name, calls in figures.items():
        print(f"| {name} | {calls} | {calls / first:.2%} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def _run(settings: Settings, encoder: Encoder, stub: Stub) -> int:
    """All stages that ask, over all batches; the requests that reached the stub."""
    before = len(stub.requests)
    cut_batches(settings)
    for batch in load_batches(settings.paths.store):
        documents, _ = read_documents(batch, settings)
        segments = split_segments(documents, settings.corpus, encoder.count_tokens, max_tokens=encoder.passage_tokens)
        artifacts = extract_artifacts(batch.name, segments, settings).artifacts
        titles = dict(documents.select("document_id", "title").iter_rows())
        made = generate_pairs(batch.name, segments, artifacts, titles, settings, lambda: encoder)
        score_pairs(batch.name, made.pairs, segments, settings, encoder)
    return len(stub.requests) - before


def _settings(documents: Path, store: Path, stub: Stub) -> Settings:
    return Settings.model_validate(
        {
            "paths": {"documents": documents, "store": store},
            "corpus": {"segment_tokens": 60},
            "llm": {"base_url": stub.base_url, "model": "stub", "structured_outputs": "json_schema"},
        }
    )


def _made(number: int) -> str:
    parts = "\n\n".join(
        f"## Part {part}\n\nValve {number}-{part} is opened by hand, the tank below it holds {number + part} litres, "
        f"and the lamp above the valve is lit while it is open."
        for part in range(4)
    )
    return f"# Machine {number}\n\n{parts}\n"


def _beir(folder: Path) -> list[str]:
    with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(next(lines)) for _ in range(DOCUMENTS + ADDED)]
    return [f"# {' '.join(row.get('title', '').split())}\n\n{row['text']}\n" for row in rows]


if __name__ == "__main__":
    main()
