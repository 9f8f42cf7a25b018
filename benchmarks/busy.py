"""A training step and an encoding next to busy processes: OpenMP's threads spinning at barriers against sleeping there.

    python benchmarks/busy.py
    python benchmarks/busy.py --busy 0 2 --rounds 5

Each measurement is a process of its own: so many processes count upwards without end, and meanwhile the packaged base
model takes training steps (16 texts of 128 tokens) and encodes. ``spinning`` is OpenMP's default, ``sleeping`` is how
the product starts (:func:`embed_pipeline.machine.sleep_at_barriers`). Modes take turns; kept are medians in seconds.
Figures go to ``benchmarks/results/busy.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from embed_pipeline.embedding.models import resolve_model
from embed_pipeline.machine import sleep_at_barriers

RESULTS = Path(__file__).parent / "results" / "busy.json"
MODES = ("spinning", "sleeping")
TEXTS, TOKENS, STEPS = 16, 128, 5


def main() -> None:
    """Measure in turns, print and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4], help="processes next to the work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        if options.mode == "sleeping":
            sleep_at_barriers()
        print(json.dumps(work()))
        return
    figures: dict[str, object] = {"machine": f"{os.cpu_count()} cores, {platform.machine()}"}
    for busy in options.busy:
        taken: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
        for _ in range(options.rounds):
            for mode in MODES:
                taken[mode].append(measured(busy, mode))
        for mode, runs in taken.items():
            medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
            figures[f"{busy} busy, {mode}"] = medians
            print(f"{busy} busy processes, {mode}: {medians}", flush=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


def measured(busy: int, mode: str) -> dict[str, float]:
    """One measurement next to so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--mode", mode]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this script
    finally:
        for other in others:
            other.kill()
            other.wait()
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def work() -> dict[str, float]:
    """Median seconds of a training step, and of encoding the same texts."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(resolve_model("packaged")), device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    tokens = torch.arange(TEXTS * TOKENS).reshape(TEXTS, TOKENS) + 1000
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": torch.zeros_like(tokens)}
    taken: dict[str, list[float]] = {"step": [], "encoding": []}
    for _ in range(STEPS):
        began = time.monotonic()
        model.train()
        vectors = model(dict(batch))["sentence_embedding"]
        torch.autograd.backward((vectors @ vectors.T).logsumexp(1).sum())
        optimizer.step()
        optimizer.zero_grad()
        between = time.monotonic()
        taken["step"].append(between - began)
        model.eval()
        with torch.inference_mode():
            model(dict(batch))
        taken["encoding"].append(time.monotonic() - between)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


if __name__ == "__main__":
    main()
