"""Peak memory and time of each command over so many documents: what a corpus costs one machine as it grows.

    python benchmarks/memory.py WORK 2000 8000 32000

Documents are made: ten sections each, of words whose frequencies fall as in real text, some paragraphs shared, some
documents copies of others. The words are those that the packaged model's tokenizer knows. Questions come from a stub
endpoint, vectors of 384 dimensions from a static embedding with that tokenizer, so that little time goes into either;
all else is the product, run by its commands. Each command is a process of its own, whose greatest resident memory is
read from the system when it has ended. Figures go to ``benchmarks/results/memory.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from embed_pipeline.embedding.models import resolve_model
from embed_pipeline_tests.stub_endpoint import stub_endpoint
from embed_pipeline_tests.synthesis import material

RESULTS = Path(__file__).parent / "results" / "memory.json"
COMMANDS = ("sdg", "prep")
DIMENSIONS = 384
SECTIONS, WORDS_OF_A_SECTION = 10, 110
COPIED, SHARED = 0.01, 0.02
MAX_QUESTIONS = 1000
DOCUMENTS_PER_BATCH = 500


def main() -> None:
    """Run the commands over each number of documents, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for documents and stores")
    parser.add_argument("documents", type=int, nargs="+", help="how many documents, for each run")
    options = parser.parse_args()
    rows = []
    for count in options.documents:
        folder = options.work / str(count)
        shutil.rmtree(folder, ignore_errors=True)
        write_documents(folder / "data" / "documents", count)
        write_static_model(folder / "model")
        rows.append({"documents": count, **run(folder)})
        print(json.dumps(rows[-1]), flush=True)
    print("| documents | " + " | ".join(COMMANDS) + " |\n|---|" + "---|" * len(COMMANDS))
    for row in rows:
        cells = (f"{row[name]['peak_mb']:,.0f} MB, {row[name]['seconds']:,.0f} s" for name in COMMANDS)
        print(f"| {row['documents']:,} | " + " | ".join(cells) + " |")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "runs": rows}, indent=1) + "\n", encoding="utf-8")


def write_documents(folder: Path, count: int) -> None:
    """Write so many Markdown files, about 7 kB each."""
    chance = np.random.default_rng(5)
    words = np.array([word for word in sorted(_tokenizer().get_vocab()) if word.isalpha() and len(word) > 1])
    frequency = 1 / (np.arange(len(words)) + 2.7)
    frequency /= frequency.sum()
    shared = [_paragraph(chance.choice(words, WORDS_OF_A_SECTION, p=frequency)) for _ in range(20)]
    text = ""
    for number in range(count):
        if not number or chance.random() > COPIED:
            said = chance.choice(words, (SECTIONS, WORDS_OF_A_SECTION), p=frequency)
            parts = (
                f"## {' '.join(section[:3])}\n\n"
                + (shared[int(chance.integers(20))] if chance.random() < SHARED else _paragraph(section))
                for section in said
            )
            text = f"# {' '.join(said[0][5:9])} {number}\n\n" + "\n\n".join(parts) + "\n"
        shelf = folder / f"{number // 1000:04}"
        shelf.mkdir(parents=True, exist_ok=True)
        (shelf / f"{number:07}.md").write_text(text, encoding="utf-8")


def _paragraph(said: np.ndarray) -> str:
    sentences = (" ".join(said[start : start + 15]).capitalize() for start in range(0, len(said), 15))
    return ". ".join(sentences) + "."


def write_static_model(folder: Path) -> None:
    """Write a static embedding with the packaged model's tokenizer and random vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding

    tokenizer = _tokenizer()
    vectors = np.random.default_rng(2).standard_normal((tokenizer.get_vocab_size(), DIMENSIONS), dtype=np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, vectors), Normalize()], device="cpu").save(str(folder))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(Path(resolve_model("packaged")) / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


def run(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds and peak resident megabytes of each command."""
    found = {}
    with stub_endpoint(material.respond) as stub:
        environment = os.environ | {
            "EMBED_PIPELINE_LLM__BASE_URL": stub.base_url,
            "EMBED_PIPELINE_LLM__MODEL": "stub",
            "EMBED_PIPELINE_SYNTHESIS__MAX_QUESTIONS": str(MAX_QUESTIONS),
            "EMBED_PIPELINE_CORPUS__DOCUMENTS_PER_BATCH": str(DOCUMENTS_PER_BATCH),
            "EMBED_PIPELINE_EMBEDDING__MODEL": str(folder / "model"),
        }
        for command in COMMANDS:
            started = time.perf_counter()
            with (folder / f"{command}.log").open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 - our own code
                    [sys.executable, "-m", "embed_pipeline.cli", command],
                    cwd=folder,
                    env=environment,
                    stdout=log,
                    stderr=log,
                )
                _, status, usage = os.wait4(process.pid, 0)
            if status:
                message = f"{command} failed: {(folder / f'{command}.log').read_text()[-2000:]}"
                raise RuntimeError(message)
            found[command] = {"seconds": time.perf_counter() - started, "peak_mb": usage.ru_maxrss / 1024}
    return found


if __name__ == "__main__":
    main()
