"""Encoding a corpus side by side with ``SentenceTransformer.encode``, at every precision that can be served.

    python benchmarks/encoding.py --scifact DIR                 the clock on 300 passages, the scores over the corpus
    python benchmarks/encoding.py --scifact DIR --clock-only    without the scores, kept apart from those with them
    python benchmarks/encoding.py --scifact DIR --clock-only --timed 100 --threads 1    by processor time
    python benchmarks/encoding.py --scifact DIR --before SOURCES --store STORE    against an earlier version

``DIR`` is a BEIR folder; the model is the packaged MiniLM for all. The peer runs with its defaults, batches of 32
texts, in fp32 and with all weights in bf16. Ours are what the endpoint and the pipeline run: the export on onnxruntime
in fp32 and int8 (dynamic), on OpenVINO in fp32 and int8 (by groups of some size), and torch in fp32 and bf16, each over
length-sorted batches cut by tokens. All encode the same seeded part of the passages round by round in one process, in
another order each round; medians are compared. Then each encodes all passages once: cosines are those of a passage's
vector to the peer's in fp32, and nDCG@10 on the test judgements is compared with the peer's in fp32 as well.

With ``--before`` the version in the folder ``SOURCES`` and this one encode the timed passages in turns, this one with
each ``embedding.backend``, each in a process of its own; with ``--store`` they also evaluate the models of a finished
run, whose first turn here includes an export and its proof (:mod:`encoding_versions`).

Results go to ``benchmarks/results/encoding.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import resolve_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.embedding.openvino_backend import GROUP_SIZES, OpenVinoBackend
from embed_pipeline.embedding.proven import cosines_of
from embed_pipeline.embedding.search import search
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.evaluation.ranking import score_rankings
from embed_pipeline.release.precision import write_precision
from embed_pipeline.settings import Embedding, Release

RESULTS = Path(__file__).parent / "results" / "encoding.json"
REFERENCE = "SentenceTransformer, fp32"
CUTOFF, WARMING = 10, 16
# Of this version; None: as the version before encoded, which had no choice.
BACKENDS = {"before": None, "torch": "torch", "onnx": "onnx", "openvino": "openvino"}
# Speed-up over the peer in fp32 wanted of the fastest of ours with so much of a least cosine, or so little change.
COSINES, NDCG_DELTA = {0.99999: 1.4, 0.999: 2.5}, {0.005: 3.0}

Floats = NDArray[np.float32]
Encode = Callable[[list[str], Literal["query", "passage"]], Floats]


@dataclass(frozen=True)
class Labelled:
    """Passages by id, and the queries with test judgements."""

    texts: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


@dataclass
class System:
    """One way to encode, and what was measured of it."""

    name: str
    encode: Encode
    seconds: list[float] = field(default_factory=list)
    passages: Floats | None = None


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scifact", type=Path, required=True, help="BEIR folder with test judgements")
    parser.add_argument("--timed", type=int, default=300, help="passages that are timed, a seeded part of the corpus")
    parser.add_argument("--clock-only", action="store_true", help="leave the scores over the whole corpus out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", default="", help="leave out the forms with this in their names, such as bf16")
    parser.add_argument("--threads", type=int, default=0, help="1: by processor time, fit for a machine that is shared")
    parser.add_argument("--before", type=Path, help="sources of an earlier version, to be timed in turns with this one")
    parser.add_argument("--store", type=Path, help="with --before: store of a finished run, to be evaluated by both")
    arguments = parser.parse_args()
    if arguments.before:
        keep({"versions": versions(arguments)})
        return
    import torch

    threads = arguments.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    data = read(arguments.scifact)
    ids = sorted(data.texts)
    timed = random.Random(17).sample(ids, min(arguments.timed, len(ids)))  # noqa: S311 - a choice to be repeated
    scored = timed if arguments.clock_only else ids
    with tempfile.TemporaryDirectory() as folder:
        every = [*peers(), *ours(Path(folder), threads)]
        systems = [each for each in every if not arguments.without or arguments.without not in each.name]
        clock = time.process_time if threads == 1 else time.perf_counter
        encode_in_turns(systems, [data.texts[item] for item in timed], arguments.rounds, clock)
        for system in systems:
            system.passages = system.encode([data.texts[item] for item in scored], "passage")
        rankings = {} if arguments.clock_only else {each.name: rank(each, ids, data) for each in systems}
    rows = compare(systems, rankings, data, len(timed))
    result = {
        "passages_timed": len(timed),
        "passages_compared": len(scored),
        "rounds": arguments.rounds,
        "threads": threads,
        "clock": "processor time" if threads == 1 else "wall",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "systems": rows,
        "best": best(rows),
    }
    show(result)
    keep({"clock_only": result} if arguments.clock_only else result)


def keep(found: dict[str, Any]) -> None:
    """Add ``found`` to what was measured before."""
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept | found, indent=2) + "\n", encoding="utf-8")


def versions(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the version before and of this one, in turns, and the ratio of each turn."""
    data = read(arguments.scifact)
    ids = random.Random(17).sample(sorted(data.texts), min(arguments.timed, len(data.texts)))  # noqa: S311 - as above
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        texts.write_text(json.dumps([data.texts[item] for item in ids]), encoding="utf-8")
        found: dict[str, Any] = {"passages": len(ids), "encoding": in_turns(arguments, "encode", texts)}
    if arguments.store:
        found["evaluation"] = in_turns(arguments, "evaluate", arguments.store)
    print(json.dumps(found, indent=1))
    return found


def in_turns(arguments: argparse.Namespace, what: str, place: Path) -> dict[str, Any]:
    """What each version and backend took for the same work, round by round."""
    script = Path(__file__).parent / "encoding_versions.py"
    workers = {}
    for name, backend in BACKENDS.items():
        sources = Path(__file__).parent.parent if backend else arguments.before
        command = [sys.executable, str(script), what, str(place.resolve()), *([backend] if backend else [])]
        environment = {**os.environ, "PYTHONPATH": str(sources.resolve())}
        workers[name] = subprocess.Popen(  # noqa: S603 - this file's own script
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    opened = {name: answer(worker, ask=False)["seconds"] for name, worker in workers.items()}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    names = list(workers)
    for number in range(arguments.rounds):
        turn = number % len(names) if number else 0
        for name in names[turn:] + names[:turn]:
            turns[name].append(answer(workers[name], ask=True))
            print(f"{what}, round {number + 1}, {name}: {turns[name][-1]}", flush=True)
    for worker in workers.values():
        worker.communicate()
    rows = {}
    for name, answers in turns.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(turns["before"], answers, strict=True)]
        figures = {key: value for key, value in answers[-1].items() if key != "seconds"}
        rows[name] = {
            "seconds_to_open": round(opened[name], 2),
            "seconds": [round(each["seconds"], 3) for each in answers],
            "speedup": round(statistics.median(ratios[what == "evaluate" :]), 3),
            **figures,
        }
    return rows


def answer(worker: subprocess.Popen[str], *, ask: bool) -> dict[str, Any]:
    """A worker's next line, asked for or said by itself.

    Raises:
        SystemExit: it ended without one.
    """
    if ask and worker.stdin:
        worker.stdin.write("\n")
        worker.stdin.flush()
    line = worker.stdout.readline() if worker.stdout else ""
    if not line:
        raise SystemExit(f"{worker.args} ended with {worker.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


def read(folder: Path) -> Labelled:
    """Read the folder; judgements of grade 0 are left out."""
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, item, grade = line.split("\t")
        if int(grade) > 0:
            qrels.setdefault(query, {})[item] = int(grade)
    return Labelled(
        texts={row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows},
        queries={row["_id"]: row["text"] for row in asked if row["_id"] in qrels},
        qrels=qrels,
    )


def peers() -> list[System]:
    """``SentenceTransformer.encode`` with its defaults."""
    from sentence_transformers import SentenceTransformer

    def system(name: str, dtype: str) -> System:
        model = SentenceTransformer(resolve_model("packaged"), device="cpu", model_kwargs={"dtype": dtype})

        def encode(texts: list[str], _: Literal["query", "passage"]) -> Floats:
            found: Floats = model.encode(texts, normalize_embeddings=True, show_progress_bar=False).astype(np.float32)
            return found

        return System(name, encode)

    return [system(REFERENCE, "float32"), system("SentenceTransformer, bf16", "bfloat16")]


def ours(folder: Path, threads: int) -> list[System]:
    """The packaged model on both of our runtimes."""
    model = Path(resolve_model("packaged"))
    export_onnx(model, folder / "onnx", Release(), Embedding(device="cpu"))
    write_precision(folder / "onnx", folder / "int8", "int8")
    return [
        System("onnxruntime, fp32", Encoder(OnnxBackend(folder / "onnx", threads=threads)).encode),
        System("onnxruntime, int8", Encoder(OnnxBackend(folder / "int8", threads=threads)).encode),
        System("openvino, fp32", Encoder(OpenVinoBackend(folder / "onnx", "fp32", threads=threads)).encode),
        *(
            System(
                f"openvino, int8 by {size}",
                Encoder(OpenVinoBackend(folder / "onnx", "int8", group_size=size, threads=threads)).encode,
            )
            for size in GROUP_SIZES
        ),
        *(
            System(f"torch, {name}", Encoder(TorchBackend.load(model, Embedding(device="cpu"), name)).encode)
            for name in ("fp32", "bf16")
        ),
    ]


def encode_in_turns(systems: list[System], texts: list[str], rounds: int, clock: Callable[[], float]) -> None:
    """Every system once a round, each round beginning with another."""
    for system in systems:
        system.encode(texts[:WARMING], "passage")
    for number in range(rounds):
        turn = number % len(systems)
        for system in systems[turn:] + systems[:turn]:
            started = clock()
            system.encode(texts, "passage")
            system.seconds.append(clock() - started)
            print(f"round {number + 1} {system.name}: {len(texts) / system.seconds[-1]:.1f} passages/s", flush=True)


def rank(system: System, ids: list[str], data: Labelled) -> dict[str, list[str]]:
    """The best passages of every judged query."""
    asked = sorted(data.queries)
    found = system.encode([data.queries[query] for query in asked], "query")
    hits = search(found, vectors_of(system), CUTOFF).indices
    return {query: [ids[place] for place in row] for query, row in zip(asked, hits, strict=True)}


def compare(
    systems: list[System], rankings: dict[str, dict[str, list[str]]], data: Labelled, passages: int
) -> list[dict[str, Any]]:
    """Every system's figures next to those of the reference."""
    reference = next(system for system in systems if system.name == REFERENCE)
    slowest = statistics.median(reference.seconds)
    scores = {
        name: float(score_rankings(ranking, data.qrels, (CUTOFF,)).column("nDCG", CUTOFF).mean())
        for name, ranking in rankings.items()
    }
    rows = []
    for system in systems:
        seconds = statistics.median(system.seconds)
        cosines = cosines_of(vectors_of(system), vectors_of(reference))
        row = {
            "system": system.name,
            "passages_per_second": round(passages / seconds, 2),
            "speedup": round(slowest / seconds, 3),
            "speedup_by_round": [round(a / b, 3) for a, b in zip(reference.seconds, system.seconds, strict=True)],
            "least_cosine": round(float(cosines.min()), 7),
            "mean_cosine": round(float(cosines.mean()), 7),
        }
        if scores:
            shared = [
                len(set(rankings[system.name][query]) & set(best)) / CUTOFF
                for query, best in rankings[REFERENCE].items()
            ]
            row["ndcg_at_10"] = round(scores[system.name], 5)
            row["ndcg_at_10_delta"] = round(scores[system.name] - scores[REFERENCE], 5)
            row["top10_overlap"] = round(float(np.mean(shared)), 4)
        rows.append(row)
    return rows


def best(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The fastest of ours that keeps to each bound, and the speed-up wanted of it."""
    mine = [row for row in rows if not row["system"].startswith("SentenceTransformer")]
    kept = {
        **{f"least cosine {least}": (wanted, _with_cosine(mine, least)) for least, wanted in COSINES.items()},
        **{f"nDCG@10 within {most}": (wanted, _with_delta(mine, most)) for most, wanted in NDCG_DELTA.items()},
    }
    fastest = {name: (wanted, max(rows, key=_speedup)) for name, (wanted, rows) in kept.items() if rows}
    return {
        name: {"system": row["system"], "speedup": row["speedup"], "target": wanted}
        for name, (wanted, row) in fastest.items()
    }


def _with_cosine(rows: list[dict[str, Any]], least: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["least_cosine"] >= least]


def _with_delta(rows: list[dict[str, Any]], most: float) -> list[dict[str, Any]]:
    return [row for row in rows if abs(row.get("ndcg_at_10_delta", np.inf)) <= most]


def _speedup(row: dict[str, Any]) -> float:
    return float(row["speedup"])


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    names = f"{'passages/s':>10} {'speed-up':>8} {'least cos':>10} {'mean cos':>10} {'nDCG@10':>8} {'top 10':>7}"
    print(f"{'system':26} {names}")
    for row in result["systems"]:
        delta, overlap = row.get("ndcg_at_10_delta"), row.get("top10_overlap")
        print(
            f"{row['system']:26} {row['passages_per_second']:10.1f} {row['speedup']:8.2f} {row['least_cosine']:10.6f} "
            f"{row['mean_cosine']:10.6f} {'' if delta is None else f'{delta:+.4f}':>8} "
            f"{'' if overlap is None else f'{overlap:.4f}':>7}"
        )
    for name, found in result["best"].items():
        print(f"{name}: {found['speedup']:.2f} x with {found['system']} (target {found['target']} x)")


def vectors_of(system: System) -> Floats:
    """The passages' vectors.

    Raises:
        ValueError: none were encoded.
    """
    if system.passages is None:
        message = f"{system.name} has encoded nothing; --rounds must be at least 1"
        raise ValueError(message)
    return system.passages


if __name__ == "__main__":
    main()
