"""Print what becomes of every family of models as a table, about a minute a family: ``make families``."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import TASKS
from embed_pipeline.embedding.model_folder import read_back, write_model_folder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import OnnxExportError, export_onnx
from embed_pipeline.release.precision import write_precision
from embed_pipeline.settings import Embedding, Release, Settings
from embed_pipeline_tests import families

OLDEST = "EMBED_OLDEST_VERSIONS"
CPU = Embedding(device="cpu")
HEAD = """\
# Families of models

Written by `make families`. Every row is a model of random weights and tiny width in the
configuration and folder layout of its family (`embed_pipeline_tests/families.py`); the figures are least cosines over
texts of 1 to 700 words. `saved`: read back by plain sentence-transformers in a process of its own, against the model
in memory; `oldest`: the same by sentence-transformers 5.1.0 with transformers 4.56.0. `fp32`, `fp16`, `int8`: the
export on onnxruntime against torch. Random weights are the hard case for int8: what a trained model loses there is
measured on its own corpus when it is released.

transformers 4.56.0 does not know nomic's architecture, and reads EmbeddingGemma in one direction alone. A server of
the folder `model` needs the rows `saved` and, for older libraries, `oldest`; routers are served by
`embed-pipeline serve` alone, which sends each kind of text its own way.
"""


def main() -> None:
    """Print the table, a row a family."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    print(HEAD)
    columns = ["family", "tokens", "trains", "saved", "oldest", "fp32", "fp16", "int8"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    for name, make in families.FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {' | '.join(cells(make, Path(folder)))} |", flush=True)


def cells(make: Callable[[Path], Path], folder: Path) -> list[str]:
    """What becomes of one family."""
    base = make(folder / "base")
    model = load_model(base, CPU)
    encoder, texts = Encoder.of(model, CPU), list(families.sample_texts())
    write_model_folder(model, folder / "saved")
    try:
        export_onnx(base, folder / "fp32", Release(), CPU)
        for precision in ("fp16", "int8"):
            write_precision(folder / "fp32", folder / precision, precision)
    except OnnxExportError as error:
        # Their figures then say that there is no such export.
        print(error, file=sys.stderr)
    expected = {kind: encoder.encode(texts, kind) for kind in TASKS}

    def least(precision: str) -> float:
        exported = Encoder(OnnxBackend(folder / precision, threads=1))
        return min(float(np.sum(exported.encode(texts, kind) * expected[kind], axis=1).min()) for kind in TASKS)

    oldest = os.environ.get(OLDEST)
    works: list[Callable[[], float] | None] = [
        lambda: min(read_back(encoder, folder / "saved").values()),
        (lambda: min(read_back(encoder, folder / "saved", path=oldest).values())) if oldest else None,
        *(lambda precision=precision: least(precision) for precision in ("fp32", "fp16", "int8")),
    ]
    return [str(encoder.max_tokens), trains(base), *(figure(work) for work in works)]


def trains(base: Path) -> str:
    """Whether a step of training changes the model."""
    import torch

    from embed_pipeline.embedding.families import is_routed, padding_side_of
    from embed_pipeline.training.loss import MaskedInfoNCE, MicroBatches
    from embed_pipeline.training.prepared_model import prepare_model
    from embed_pipeline.training.task import number_examples
    from embed_pipeline.training.training_batches import Collator
    from embed_pipeline_tests.training import small

    settings = Settings(embedding=CPU.model_copy(update={"model": str(base)}))
    model = prepare_model(settings).train()
    batch = Collator(number_examples(small.examples(), small.passages()), model)([{"index": i} for i in range(4)])
    sides = [
        {name.removeprefix(f"{side}_"): value for name, value in batch.items() if name.startswith(f"{side}_")}
        for side in ("question", "passage")
    ]
    micro = MicroBatches(rows=100, tokens=4096, padded_left=padding_side_of(model) == "left")
    loss = MaskedInfoNCE(model, temperature=0.05, micro=micro, routed=is_routed(model))(sides, batch["label"])
    torch.autograd.backward(loss)
    moved = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return "yes" if moved and all(bool(torch.isfinite(gradient).all()) for gradient in moved) else "no"


def figure(work: Callable[[], float] | None) -> str:
    """What ``work`` finds, or that it cannot be."""
    if work is None:
        return "not tried"
    try:
        return f"{work():.6f}"
    except ValueError:
        return "no"


if __name__ == "__main__":
    main()
