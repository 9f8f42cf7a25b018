"""Mining side by side with ``sentence_transformers.util.mine_hard_negatives`` on the same vectors.

    python benchmarks/mining.py --scifact DIR   real MiniLM vectors of a BEIR folder's train judgements, random vectors
    python benchmarks/mining.py                 random vectors alone

Both get the same texts and vectors, so only mining is timed: search, rules, result. The rounds of both are
interleaved in one process and the ratio of the medians is what counts. The peer runs in both of its forms, torch and
faiss; ours is compared with the faster. Negatives are compared where the rules coincide: 95 % ceiling, candidates
down to rank 100, the most similar ones, no near-duplicate rule. Peak extra memory is that of a fresh process over its
level before the call, libraries loaded. Exact search alone is compared with faiss's flat index. Results go to
``benchmarks/results/mining.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.search import search
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.negatives import mine_hard_negatives

RESULTS = Path(__file__).parent / "results" / "mining.json"
NEGATIVES, RANGE_MAX, MARGIN = 2, 100, 0.05
SYSTEMS = ("ours", "peer, torch", "peer, faiss")
GROWTH = (25_000, 50_000, 100_000, 200_000)
# Scores closer than this are a tie: fp32 sums in another order differ by as much.
TIE = 1e-6


@dataclass(frozen=True)
class Task:
    """Questions with their positives (numbers of passages), passages, and all their unit vectors."""

    questions: list[str]
    positives: list[list[int]]
    passages: list[str]
    question_vectors: np.ndarray
    passage_vectors: np.ndarray


class GivenVectors:
    """A model that has encoded already: the interface that either side asks of its model."""

    device = "cpu"

    def __init__(self, task: Task) -> None:
        self._query = {text: number for number, text in enumerate(task.questions)}
        self._passage = {text: number for number, text in enumerate(task.passages)}
        self._task = task

    def encode(self, texts: Sequence[str], kind: str, label: str | None = None) -> np.ndarray:  # noqa: ARG002 - the interface
        """Ours asks for this."""
        return self.encode_query(texts) if kind == "query" else self.encode_document(texts)

    def encode_query(self, texts: Sequence[str], **_: Any) -> np.ndarray:  # noqa: ANN401 - the peer's options
        """The peer asks for this and what follows."""
        return self._task.question_vectors[[self._query[text] for text in texts]]

    def encode_document(self, texts: Sequence[str], **_: Any) -> np.ndarray:  # noqa: ANN401 - the peer's options
        """Vectors of passages; those of all, in order, are not copied."""
        places = [self._passage[text] for text in texts]
        if places == list(range(len(self._task.passages))):
            return self._task.passage_vectors
        return self._task.passage_vectors[places]

    def get_embedding_dimension(self) -> int:
        """Length of a vector."""
        return self._task.passage_vectors.shape[1]

    def similarity(self, queries: Any, passages: Any) -> Any:  # noqa: ANN401 - arrays or tensors
        """Cosine of every query and passage."""
        import torch

        return torch.as_tensor(queries) @ torch.as_tensor(passages).T

    def similarity_pairwise(self, queries: Any, passages: Any) -> Any:  # noqa: ANN401 - arrays or tensors
        """Cosine of each query and its passage."""
        import torch

        return (torch.as_tensor(queries) * torch.as_tensor(passages)).sum(dim=1)


def random_task(questions: int, passages: int, dimensions: int = 384, seed: int = 17) -> Task:
    """Random unit vectors; each question lies at a cosine of about 0.5 to its one positive."""
    rng = np.random.default_rng(seed)
    passage_vectors = _unit(rng.standard_normal((passages, dimensions), dtype=np.float32))
    answers = rng.choice(passages, questions, replace=False)
    noise = _unit(rng.standard_normal((questions, dimensions), dtype=np.float32))
    question_vectors = _unit(passage_vectors[answers] + 1.7 * noise)
    # Zero-padded, so that the order of ids is the order of the vectors.
    texts = [f"passage number {number:07}" for number in range(passages)]
    asked = [f"question number {number}" for number in range(questions)]
    return Task(asked, [[int(a)] for a in answers], texts, question_vectors, passage_vectors)


def labelled_task(folder: Path, vectors: Path) -> Task:
    """The train judgements of a BEIR folder under the packaged MiniLM; vectors are kept in ``vectors``."""
    rows = {row["_id"]: row for row in map(json.loads, (folder / "corpus.jsonl").read_text().splitlines())}
    texts = {key: f"{row.get('title') or ''} {row['text']}".strip() for key, row in rows.items()}
    asked = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines())}
    passages = list(dict.fromkeys(texts[key] for key in sorted(texts)))
    place = {text: number for number, text in enumerate(passages)}
    positives: dict[str, list[int]] = {}
    for line in (folder / "qrels" / "train.tsv").read_text().splitlines()[1:]:
        query, item, grade = line.split("\t")
        if int(grade) > 0 and place[texts[item]] not in positives.setdefault(asked[query], []):
            positives[asked[query]].append(place[texts[item]])
    questions = sorted(positives)
    if not vectors.exists():
        from embed_pipeline.embedding.encoder import Encoder

        embedding = Settings().embedding
        encoder = Encoder.load(embedding.model, embedding)
        np.savez(vectors, query=encoder.encode(questions, "query"), passage=encoder.encode(passages, "passage"))
    kept = np.load(vectors)
    return Task(questions, [positives[question] for question in questions], passages, kept["query"], kept["passage"])


def mine_ours(task: Task) -> Callable[[], dict[str, list[tuple[str, float]]]]:
    """Prepare a run of this project's miner; its result is negatives and similarities by question."""
    filled = dict.fromkeys(("document_id", "path", "title", "heading_path", "batch"), pl.lit(""))
    corpus = pl.DataFrame({"segment_id": task.passages, "text": task.passages}).with_columns(
        **filled, position=pl.lit(0, pl.Int64), token_count=pl.lit(0, pl.Int64), label_set=pl.lit(None, pl.String)
    )
    questions = pl.DataFrame(
        {
            "qa_id": task.questions,
            "origin": ["labelled"] * len(task.questions),
            "question": task.questions,
            "positive_segment_ids": [[task.passages[p] for p in own] for own in task.positives],
        }
    )
    options = {
        "num_negatives": NEGATIVES,
        "range_max": RANGE_MAX,
        "relative_margin": MARGIN,
        "near_duplicate_passages": 1,
    }
    settings = Settings.model_validate({"training_data": options})
    corpus = tables.validate(corpus.select(tables.CORPUS.schema.names()), tables.CORPUS)
    encoder = GivenVectors(task)

    def run() -> dict[str, list[tuple[str, float]]]:
        mined = mine_hard_negatives(questions, corpus, settings, encoder)
        columns = mined.select("question", "negative_segment_ids", "negative_similarities").iter_rows()
        return {question: list(zip(ids, scores, strict=True)) for question, ids, scores in columns}

    return run


def mine_peer(task: Task, *, use_faiss: bool) -> Callable[[], dict[str, list[tuple[str, float]]]]:
    """Prepare a run of the peer's miner; its result is negatives and similarities by question."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives as mine

    rows = [(q, task.passages[p]) for q, own in zip(task.questions, task.positives, strict=True) for p in own]
    dataset = Dataset.from_dict({"question": [q for q, _ in rows], "positive": [p for _, p in rows]})
    model = GivenVectors(task)

    def run() -> dict[str, list[tuple[str, float]]]:
        with contextlib.redirect_stderr(io.StringIO()):
            mined = mine(
                dataset,
                model,
                corpus=task.passages,
                range_max=RANGE_MAX,
                relative_margin=MARGIN,
                num_negatives=NEGATIVES,
                output_format="labeled-list",
                output_scores=True,
                use_faiss=use_faiss,
                verbose=False,
            )
        found: dict[str, list[tuple[str, float]]] = {question: [] for question in task.questions}
        for row in mined:
            found[row["question"]] = list(zip(row["positive"][1:], row["scores"][1:], strict=True))
        return found

    return run


def prepare(system: str, task: Task) -> Callable[[], dict[str, list[tuple[str, float]]]]:
    """A run of one of :data:`SYSTEMS`."""
    return mine_ours(task) if system == "ours" else mine_peer(task, use_faiss=system == "peer, faiss")


def compare(task: Task, rounds: int) -> dict[str, Any]:
    """Median seconds of every system, and how many questions get other negatives than by ties."""
    runs = {system: prepare(system, task) for system in SYSTEMS}
    found = {system: run() for system, run in runs.items()}
    seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    # A full collection takes a quarter of a second for what the libraries imported, and falls to whom it may.
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        for system in SYSTEMS if number % 2 else reversed(SYSTEMS):
            started = time.perf_counter()
            runs[system]()
            seconds[system].append(time.perf_counter() - started)
    medians = {system: statistics.median(values) for system, values in seconds.items()}
    fastest = min(SYSTEMS[1:], key=medians.__getitem__)
    return {
        "questions": len(task.questions),
        "passages": len(task.passages),
        "seconds": {system: round(value, 4) for system, value in medians.items()},
        "times_faster_than_the_faster_peer": round(medians[fastest] / medians["ours"], 3),
        "negatives": sum(map(len, found["ours"].values())),
        "questions_that_differ": _differences(found["ours"], found[fastest]),
    }


def _differences(ours: dict[str, list[tuple[str, float]]], peers: dict[str, list[tuple[str, float]]]) -> int:
    """Questions whose negatives differ otherwise than among scores that tie."""
    count = 0
    for question, mine in ours.items():
        theirs = peers[question]
        same_scores = len(mine) == len(theirs) and all(
            abs(a - b) <= TIE for (_, a), (_, b) in zip(mine, theirs, strict=True)
        )
        untied = all(a == b for (a, s), (b, t) in zip(mine, theirs, strict=False) if abs(s - t) > TIE)
        count += not (same_scores and untied)
    return count


def growth(rounds: int) -> list[dict[str, Any]]:
    """Median seconds of ours and the faster peer over corpus sizes, 2,000 questions each."""
    rows = []
    for passages in GROWTH:
        outcome = compare(random_task(2_000, passages), rounds)
        rows.append(outcome)
        print_row(f"random {passages}", outcome)
    return rows


def compare_search(rounds: int) -> dict[str, Any]:
    """Median seconds of exact search and of faiss's flat index for 2,000 queries, and the share of equal places."""
    import faiss

    task = random_task(2_000, 100_000)
    queries, corpus = task.question_vectors, task.passage_vectors

    def flat() -> np.ndarray:
        index = faiss.IndexFlatIP(corpus.shape[1])
        index.add(corpus)
        return index.search(queries, RANGE_MAX)[1]

    runs = {"ours": lambda: search(queries, corpus, RANGE_MAX).indices, "faiss": flat}
    found = {system: run() for system, run in runs.items()}
    seconds: dict[str, list[float]] = {system: [] for system in runs}
    for _ in range(rounds):
        for system, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[system].append(time.perf_counter() - started)
    return {
        "seconds": {system: round(statistics.median(values), 3) for system, values in seconds.items()},
        "same_places": round(float((found["ours"] == found["faiss"]).mean()), 6),
    }


def measure_memory(system: str, source: Sequence[str]) -> float:
    """Peak extra memory of one call in a fresh process, MB (Linux)."""
    command = [sys.executable, __file__, "--memory-of", system, *source]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this very file
    return float(shown.stdout.strip().splitlines()[-1])


def peak_megabytes(system: str, task: Task) -> float:
    """Highest resident memory of the call over the level before it; a small call loads the libraries first."""
    prepare(system, random_task(50, 2_000, task.passage_vectors.shape[1]))()
    run = prepare(system, task)
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present level
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def print_row(label: str, outcome: dict[str, Any]) -> None:
    """One line of the table."""
    times = "  ".join(f"{system} {value:8.3f} s" for system, value in outcome["seconds"].items())
    ratio = outcome["times_faster_than_the_faster_peer"]
    print(f"{label:<16} {times}  {ratio:.2f} x  {outcome['questions_that_differ']} differ", flush=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _task(arguments: argparse.Namespace, vectors: Path) -> Task:
    return labelled_task(arguments.scifact, vectors) if arguments.scifact else random_task(2_000, arguments.passages)


def main() -> None:
    """Run everything, or in a child process one system's memory measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scifact", type=Path, help="BEIR folder with train judgements")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--vectors", type=Path, help="file that keeps the encoded vectors of the BEIR folder")
    parser.add_argument("--memory-of", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vectors = arguments.vectors or Path(folder) / "vectors.npz"
        if arguments.memory_of:
            print(peak_megabytes(arguments.memory_of, _task(arguments, vectors)))
            return
        outcome: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
        if arguments.scifact:
            outcome["scifact"] = compare(_task(arguments, vectors), arguments.rounds)
            print_row("scifact", outcome["scifact"])
            source = ["--scifact", str(arguments.scifact), "--vectors", str(vectors)]
            outcome["scifact"]["peak_extra_mb"] = {s: round(measure_memory(s, source)) for s in SYSTEMS}
        outcome["random"] = growth(arguments.rounds)
        for row in outcome["random"]:
            source = ["--passages", str(row["passages"])]
            row["peak_extra_mb"] = {system: round(measure_memory(system, source)) for system in SYSTEMS}
            print(f"{row['passages']} passages, peak extra MB: {row['peak_extra_mb']}", flush=True)
        outcome["search"] = compare_search(arguments.rounds)
        print(f"search: {outcome['search']}", flush=True)
    RESULTS.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
