"""What 10 thousand, 1 million and 100 million documents take, from unit costs measured on this machine.

    python benchmarks/scaling.py                 measure, simulate, print, write benchmarks/results/scaling.json
    python benchmarks/scaling.py --measured F    simulate from the unit costs in F, other assumptions

Measured: a sensor's look for each known file, reading and cutting the sample's documents, the calls and tokens that the
product's own estimate predicts for them, encoding and training with the packaged model on the CPU, exact search, bytes
on disk; bytes in memory come from the last run of ``benchmarks/memory.py``. Assumed, and printed as such: prices, the
endpoint's rate, and a GPU's rate, which is computed from the arithmetic of the model at a stated share of a card's
peak.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import polars as pl
import psutil

from embed_pipeline.corpus.batches import batch_folder, cut_batches, load_batches
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.sample import write_sample
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.estimate import estimate_folder

RESULTS = Path(__file__).parent / "results" / "scaling.json"
MEMORY = RESULTS.with_name("memory.json")
SCALES = (10_000, 1_000_000, 100_000_000)
KNOWN_FILES = 20_000
ENCODED_SEGMENTS = 256
SEARCHED = (256, 100_000)
TRAINED_EXAMPLES = 64
DIMENSIONS = 384
LAYER_PARAMETERS = 10_600_000
"""Of MiniLM-L6 without its embeddings: what a token is multiplied with."""


@dataclass(frozen=True)
class UnitCosts:
    """Seconds, bytes and counts, each for one unit; a document is one of the sample's."""

    look_seconds_per_known_file: float
    manifest_bytes_per_file: float
    read_and_cut_seconds_per_document: float
    segments_per_document: float
    tokens_per_segment: float
    table_bytes_per_document: float
    memory_bytes_fixed: float
    memory_bytes_per_document: float
    calls_per_document: float
    prompt_tokens_per_document: float
    completion_tokens_per_document: float
    questions_per_document: float
    encode_seconds_per_segment: float
    search_seconds_per_comparison: float
    train_seconds_per_example: float
    run_start_seconds: float


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here."""

    max_questions: float = 50_000
    accepted_share: float = 0.6
    prompt_price: float = 0.15
    completion_price: float = 0.60
    endpoint_completion_tokens_per_second: float = 5000
    gpu_peak_flops: float = 989e12
    gpu_utilisation: float = 0.3
    gpu_price_per_hour: float = 3.0
    cpu_price_per_hour: float = 0.05
    workers: int = 4
    documents_per_batch: int = 200
    machine_memory_bytes: float = 64e9


def measure() -> UnitCosts:
    """Take every measurement; about two minutes on two cores."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        look, manifest = _look(folder)
        settings = Settings.model_validate(
            {
                "paths": {"documents": folder / "sample", "store": folder / "store"},
                "llm": {"base_url": "http://127.0.0.1:9/v1", "model": "none"},
            }
        )
        write_sample("python", settings.paths.documents)
        encoder = Encoder.load(settings.embedding.model, settings.embedding)
        started = time.perf_counter()
        cut_batches(settings)
        frames = [read_documents(batch, settings)[0] for batch in load_batches(settings.paths.store)]
        pieces = [
            split_segments(frame, settings.corpus, encoder.count_tokens, max_tokens=encoder.passage_tokens)
            for frame in frames
        ]
        reading = time.perf_counter() - started
        documents, segments = pl.concat(frames), pl.concat(pieces)
        count = documents.height
        for name, frame in (("documents", documents), ("segments", segments)):
            frame.write_parquet(folder / f"{name}.parquet", compression="zstd")
        total = estimate_folder(settings, encoder)
        texts = segments["text"].to_list()
        return UnitCosts(
            look_seconds_per_known_file=look,
            manifest_bytes_per_file=manifest,
            read_and_cut_seconds_per_document=reading / count,
            segments_per_document=segments.height / count,
            tokens_per_segment=float(segments["token_count"].mean() or 0),  # type: ignore[arg-type]  # an integer column
            table_bytes_per_document=sum((folder / f"{n}.parquet").stat().st_size for n in ("documents", "segments"))
            / count,
            **_memory(),
            calls_per_document=total.total.calls / count,
            prompt_tokens_per_document=total.total.prompt_tokens / count,
            completion_tokens_per_document=total.total.completion_tokens / count,
            questions_per_document=total.questions / count,
            encode_seconds_per_segment=_encode(encoder, texts),
            search_seconds_per_comparison=_search(),
            train_seconds_per_example=_train(texts),
            run_start_seconds=_run_start(),
        )


def _memory() -> dict[str, float]:
    """Bytes that a command takes at its peak, in all and for each document: of the command that grows the most."""
    first, *_, last = json.loads(MEMORY.read_text(encoding="utf-8"))["runs"]
    more = last["documents"] - first["documents"]
    grown = {name: (last[name]["peak_mb"] - first[name]["peak_mb"]) * 1024**2 / more for name in ("sdg", "prep")}
    most = max(grown, key=lambda name: grown[name])
    fixed = first[most]["peak_mb"] * 1024**2 - first["documents"] * grown[most]
    return {"memory_bytes_fixed": fixed, "memory_bytes_per_document": grown[most]}


def _look(folder: Path) -> tuple[float, float]:
    """Seconds of a look for each file that is known already, and bytes of its manifest."""
    many = folder / "many"
    for shelf in range(KNOWN_FILES // 500):
        (many / str(shelf)).mkdir(parents=True)
        for number in range(500):
            (many / str(shelf) / f"{number}.md").write_text(f"{shelf} {number}")
    settings = Settings.model_validate({"paths": {"documents": many, "store": folder / "many-store"}})
    cut_batches(settings)
    started = time.perf_counter()
    cut_batches(settings)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in batch_folder(settings.paths.store).glob("*.json"))
    return seconds / KNOWN_FILES, size / KNOWN_FILES


def _encode(encoder: Encoder, texts: list[str]) -> float:
    chosen = texts[:ENCODED_SEGMENTS]
    encoder.encode(chosen[:16], "passage")
    started = time.perf_counter()
    encoder.encode(chosen, "passage")
    return (time.perf_counter() - started) / len(chosen)


def _search() -> float:
    """Seconds of one inner product in an exact search."""
    chance = np.random.default_rng(1)
    questions = chance.standard_normal((SEARCHED[0], DIMENSIONS), dtype=np.float32)
    passages = chance.standard_normal((SEARCHED[1], DIMENSIONS), dtype=np.float32)
    started = time.perf_counter()
    np.argpartition(questions @ passages.T, -100, axis=1)
    return (time.perf_counter() - started) / (SEARCHED[0] * SEARCHED[1])


def _train(texts: list[str]) -> float:
    """Seconds of a training step's arithmetic for one example: question, positive and one negative, InfoNCE."""
    import torch

    from embed_pipeline.embedding.models import load_model

    model = load_model("packaged", Settings().embedding, "cpu")
    started = time.perf_counter()
    for start in range(0, TRAINED_EXAMPLES, 16):
        passages = texts[start : start + 32]
        questions = [text[:80] for text in passages[:16]]
        vectors = [model(model.preprocess(part))["sentence_embedding"] for part in (questions, passages)]
        unit = [torch.nn.functional.normalize(part, dim=1) for part in vectors]
        loss = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / 0.02, torch.arange(len(questions)))
        loss.backward()
    return (time.perf_counter() - started) / TRAINED_EXAMPLES


def _run_start() -> float:
    """Processor seconds until a batch's run, a process, has loaded the definitions and the base model."""
    load = (
        "import embed_pipeline.definitions; from embed_pipeline.embedding.encoder import Encoder; "
        "from embed_pipeline.settings import Settings; settings = Settings(); "
        "Encoder.load(settings.embedding.model, settings.embedding).encode(['a'], 'passage')"
    )
    before = psutil.Process().cpu_times()
    subprocess.run([sys.executable, "-c", load], check=True, capture_output=True)  # noqa: S603 - our own code
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def simulate(documents: int, unit: UnitCosts, assumed: Assumptions) -> dict[str, float | str]:
    """What a first run over so many documents takes, stage by stage."""
    segments = documents * unit.segments_per_document
    # Questions are asked about so many documents, or about parts that amount to them; likewise artifacts and verdicts.
    asked_about = min(documents, assumed.max_questions / unit.questions_per_document)
    accepted = asked_about * unit.questions_per_document * assumed.accepted_share
    batches = documents / assumed.documents_per_batch
    completion = asked_about * unit.completion_tokens_per_document
    prompt = asked_about * unit.prompt_tokens_per_document
    gpu_flops = assumed.gpu_peak_flops * assumed.gpu_utilisation
    tokens = segments * unit.tokens_per_segment
    hours = {
        "read and cut (CPU, all workers)": documents * unit.read_and_cut_seconds_per_document / assumed.workers / 3600,
        "processes of the runs (all workers)": batches * unit.run_start_seconds / assumed.workers / 3600,
        "language model": completion / assumed.endpoint_completion_tokens_per_second / 3600,
        "encode (GPU)": 2 * LAYER_PARAMETERS * tokens / gpu_flops / 3600,
        "mine, exact (GPU)": 2 * DIMENSIONS * accepted * segments / gpu_flops / 3600,
        "train, one pass (GPU)": 6 * LAYER_PARAMETERS * 3 * accepted * unit.tokens_per_segment / gpu_flops / 3600,
    }
    gpu_hours = sum(value for name, value in hours.items() if "GPU" in name)
    cpu_hours = assumed.workers * sum(value for name, value in hours.items() if "workers" in name)
    memory = unit.memory_bytes_fixed + documents * unit.memory_bytes_per_document
    longest = max(hours, key=lambda name: hours[name])
    return {
        "documents": documents,
        "batches": batches,
        "questions": asked_about * unit.questions_per_document,
        "calls": asked_about * unit.calls_per_document,
        "prompt tokens": prompt,
        "completion tokens": completion,
        "accepted pairs": accepted,
        "bytes of tables": documents * unit.table_bytes_per_document,
        "bytes in memory, whole corpus": memory,
        "seconds of a sensor's look": documents * unit.look_seconds_per_known_file,
        "CPU hours": cpu_hours,
        "GPU hours": gpu_hours,
        "cost of calls": (prompt * assumed.prompt_price + completion * assumed.completion_price) / 1e6,
        "cost of machines": gpu_hours * assumed.gpu_price_per_hour + cpu_hours * assumed.cpu_price_per_hour,
        "longest stage": f"{longest}, {hours[longest]:.3g} h",
        "first limit": _first_limit(documents, memory, unit, assumed),
        **{f"hours, {name}": value for name, value in hours.items()},
    }


def _first_limit(documents: int, memory: float, unit: UnitCosts, assumed: Assumptions) -> str:
    """What breaks first, where anything does."""
    limits = {
        "corpus.max_files stops the scan (raise it)": Settings().corpus.max_files,
        "the corpus no longer fits in memory": (assumed.machine_memory_bytes - unit.memory_bytes_fixed)
        / unit.memory_bytes_per_document,
        "a look at the folder takes over 60 s": 60 / unit.look_seconds_per_known_file,
    }
    broken = {name: at for name, at in limits.items() if documents > at}
    if not broken:
        return f"none ({memory / assumed.machine_memory_bytes:.0%} of memory)"
    first = min(broken, key=lambda name: broken[name])
    return f"{first}, from {broken[first]:.3g} documents on"


def main() -> None:
    """Measure or load, simulate, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, help="JSON of an earlier run, instead of measuring")
    for field in fields(Assumptions):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default, help="assumption")
    options = parser.parse_args()
    assumed = Assumptions(**{field.name: getattr(options, field.name) for field in fields(Assumptions)})
    known = json.loads(options.measured.read_text(encoding="utf-8"))["unit_costs"] if options.measured else None
    unit = UnitCosts(**known) if known else measure()
    rows = [simulate(scale, unit, assumed) for scale in SCALES]
    for title, values in (("measured", asdict(unit)), ("assumed", asdict(assumed))):
        print(f"\n{title}")
        for name, value in values.items():
            print(f"  {name.replace('_', ' '):45} {value:.4g}")
    for row in rows:
        print(f"\n{row['documents']:,} documents")
        for name, value in row.items():
            print(f"  {name:45} {value if isinstance(value, str) else f'{value:.4g}'}")
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"machine": machine, "unit_costs": asdict(unit), "assumptions": asdict(assumed), "simulation": rows}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
