"""Training, encoding and searching on a GPU, side by side with sentence-transformers in one process.

    python benchmarks/gpu.py train --scifact DIR [--shape base] [--compiled]     examples a second, rounds interleaved
    python benchmarks/gpu.py encode --scifact DIR [--shape base] [--onnx]        texts a second, and cosines
    python benchmarks/gpu.py search                                              a million random vectors

``DIR`` is a BEIR folder. The model is the packaged MiniLM, or one of random weights in the shape of BERT base or large
(``--shape``) with MiniLM's tokenizer: speed does not depend on what weights are. The peer has its best settings: bf16,
its loader's workers and pinned memory in training, weights in half precision and large batches in encoding. Attention
is what each takes by itself on this machine. Shares of peak are the arithmetic that the texts' own tokens need, three
times the forward pass in training, over what the GPU's data sheet says of dense bf16 products (``--peak``).
Results go to ``benchmarks/results/gpu.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from finetuning import Labelled, machine, read, stock_trainer
from transformers import TrainerCallback, TrainerState

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model, resolve_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import export_onnx
from embed_pipeline.embedding.search import search
from embed_pipeline.release.precision import write_precision
from embed_pipeline.settings import Release, Settings
from embed_pipeline.training.seed_run import build_trainer
from embed_pipeline.training.task import Schedule, TrainingTask

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

RESULTS = Path(__file__).parent / "results" / "gpu.json"
# Layers, width, heads; the inner width is four times the width, as in all of them.
SHAPES = {"base": (12, 768, 12), "large": (24, 1024, 16)}
H100_TERAFLOPS = 989.0
LOADERS, SEED = 4, 17
WARM_STEPS = 20
PEER_BATCH = 512


def model_of(shape: str, folder: Path, tokens: int) -> str:
    """The packaged model, or the folder of one of random weights that reads so many tokens."""
    packaged = resolve_model("packaged")
    if shape == "minilm":
        return packaged
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    layers, width, heads = SHAPES[shape]
    torch.manual_seed(17)
    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width
    )
    BertModel(config).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(packaged).save_pretrained(folder / "bert")
    modules = [
        Transformer(str(folder / "bert"), max_seq_length=tokens),
        Pooling(width, pooling_mode="mean"),
        Normalize(),
    ]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / shape))
    return str(folder / shape)


def forward_flops(model: SentenceTransformer, lengths: Sequence[int]) -> float:
    """Floating-point operations of one forward pass over texts of so many tokens: products and attention."""
    config = model[0].auto_model.config
    layers = [module for module in model[0].auto_model.encoder.modules() if isinstance(module, torch.nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    attention = 4 * config.hidden_size * config.num_hidden_layers
    return float(sum(2 * weights * length + attention * length**2 for length in lengths))


def attention_of(model: SentenceTransformer) -> str:
    """The attention kernels that ``model`` uses."""
    return str(model[0].auto_model.config._attn_implementation)  # noqa: SLF001 - there is no public name


@dataclass(frozen=True)
class Pairs:
    """Questions with a positive and some negatives each, as texts."""

    questions: list[str]
    positives: list[str]
    negatives: list[list[str]]


def pairs_of(data: Labelled, count: int, negatives: int) -> Pairs:
    """So many train judgements, each with other passages drawn at random: what is learnt is not looked at."""
    draw = random.Random(17)  # noqa: S311 - a choice to be repeated
    rows = data.pairs
    chosen = [rows[place % len(rows)] for place in range(count)]
    texts = sorted(data.texts.values())
    return Pairs(
        [question for question, _ in chosen],
        [passage for _, passage in chosen],
        [draw.sample(texts, negatives) for _ in chosen],
    )


def time_ours(
    pairs: Pairs, arguments: argparse.Namespace, folder: Path, model: str, *, compiled: bool = False
) -> tuple[float, dict[str, Any]]:
    """Seconds of a step of ours, and what it took."""
    settings = Settings.model_validate(
        {
            "embedding": {"model": model},
            "training": {
                "max_text_tokens": arguments.tokens,
                "attention": arguments.attention,
                "compile": "always" if compiled else "never",
            },
            "forgetting": {"questions": 0},
        }
    )
    texts = sorted({*pairs.positives, *(text for row in pairs.negatives for text in row)})
    number = {text: f"s{place}" for place, text in enumerate(texts)}
    rows = [
        {
            "example_id": f"e{place:06}",
            "qa_id": f"q{place:06}",
            "origin": "labelled",
            "question": question,
            "positive_segment_id": number[positive],
            "negative_segment_ids": [number[text] for text in negatives],
            "positive_similarity": 1.0,
            "negative_similarities": [0.0] * len(negatives),
        }
        for place, (question, positive, negatives) in enumerate(
            zip(pairs.questions, pairs.positives, pairs.negatives, strict=True)
        )
    ]
    work = folder / "work"
    passages = {name: text for text, name in number.items()}
    task = TrainingTask.of(tables.TRAINING_EXAMPLES.frame(rows), passages, None, ([], []), settings, work=work)
    steps = len(rows) // arguments.batch
    trainer, supervisor = build_trainer(task, Schedule(arguments.batch, 1.0, steps, 1, small_data=True), SEED, work)
    trainer.remove_callback(supervisor)
    return time_steps(trainer)


def time_stock(pairs: Pairs, arguments: argparse.Namespace, folder: Path, name: str) -> tuple[float, dict[str, Any]]:
    """Seconds of a step of the peer's, and what it took."""
    model = load_model(name, Settings().embedding)
    model.max_seq_length = arguments.tokens
    columns = {"anchor": pairs.questions, "positive": pairs.positives}
    columns |= {f"negative_{place}": list(column) for place, column in enumerate(zip(*pairs.negatives, strict=True))}
    trainer = stock_trainer(
        model,
        columns,
        folder,
        SEED,
        per_device_train_batch_size=arguments.batch,
        bf16=True,
        dataloader_num_workers=LOADERS,
        dataloader_pin_memory=True,
    )
    # It encodes examples for the model's card.
    for callback in [each for each in trainer.callback_handler.callbacks if "ModelCard" in type(each).__name__]:
        trainer.remove_callback(callback)
    return time_steps(trainer)


class Clock(TrainerCallback):
    """Times a training from the step on by which loaders and kernels are ready."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_step_end(self, _args: object, state: TrainerState, _control: object, **_: object) -> None:
        """Start once warm."""
        if state.global_step == WARM_STEPS:
            torch.cuda.synchronize()
            self.started = time.perf_counter()


def time_steps(trainer: SentenceTransformerTrainer) -> tuple[float, dict[str, Any]]:
    """Seconds of a step, mean over those after the first ``WARM_STEPS``, and what was trained how."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - clock.started) / (trainer.state.global_step - WARM_STEPS)
    loss = float(trainer.state.log_history[-1]["train_loss"])
    return seconds, {"attention": attention_of(trainer.model), "loss": loss}


def timed(run: Callable[[], object]) -> float:
    """Seconds until ``run`` has ended, and what it left to the GPU too."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def train(arguments: argparse.Namespace, model: str) -> Iterator[dict[str, Any]]:
    """Examples a second of both, with the peak of the memory and the share of the GPU's peak, after each round."""
    data = read(arguments.scifact)
    pairs = pairs_of(data, arguments.batch * arguments.steps, arguments.negatives)
    runs: dict[str, Callable[..., tuple[float, dict[str, Any]]]] = {"stock": time_stock, "ours": time_ours}
    if arguments.compiled:
        runs["ours, compiled"] = partial(time_ours, compiled=True)
    encoder = Encoder.of(load_model(model, Settings().embedding), Settings().embedding)
    texts = [*pairs.questions, *pairs.positives, *(text for row in pairs.negatives for text in row)]
    lengths = [min(arguments.tokens, count + 2) for count in encoder.count_tokens(texts)]
    flops = 3 * forward_flops(encoder.backend.model, lengths) / len(pairs.questions)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, dict[str, Any]] = {name: {} for name in runs}
    for number in range(1, arguments.rounds + 1):
        for system in list(runs)[:: 2 * (number % 2) - 1]:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with tempfile.TemporaryDirectory() as folder:
                seconds, what = runs[system](pairs, arguments, Path(folder), model)
            found[system] = what | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}
            rates[system].append(arguments.batch / seconds)
            print(f"round {number} {system}: {rates[system][-1]:.1f} examples/s {what}", flush=True)
        for system, values in rates.items():
            rate = statistics.median(values)
            found[system] |= {
                "examples_per_second": round(rate, 1),
                "share_of_peak": round(flops * rate / (arguments.peak * 1e12), 4),
                "ratio_to_stock_by_round": [round(a / b, 3) for a, b in zip(values, rates["stock"], strict=True)],
            }
        yield {
            "tokens": arguments.tokens,
            "batch": arguments.batch,
            "negatives": arguments.negatives,
            "steps": arguments.steps,
            "rounds": number,
            "mean_tokens": round(float(np.mean(lengths)), 1),
            **found,
        }


def exports(model: str, folder: Path) -> dict[str, OnnxBackend]:
    """The model on onnxruntime in each precision that is for GPUs."""
    export_onnx(Path(model), folder / "fp32", Release(), Settings().embedding)
    write_precision(folder / "fp32", folder / "fp16", "fp16")
    found = {precision: OnnxBackend(folder / precision) for precision in ("fp32", "fp16")}
    if not all(backend.on_gpu for backend in found.values()):
        raise SystemExit("onnxruntime does not run on the GPU here")
    return found


def encode(arguments: argparse.Namespace, model: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Texts a second over the corpus, ours and the peer's, and cosines to the peer's in fp32."""
    from sentence_transformers import SentenceTransformer

    texts = sorted(read(arguments.scifact).texts.values())
    systems: dict[str, Callable[[], np.ndarray]] = {}
    for dtype in ("float32", "bfloat16"):
        peer = SentenceTransformer(model, device="cuda", model_kwargs={"dtype": dtype})
        peer.max_seq_length = arguments.tokens
        for batch in (32, PEER_BATCH):
            systems[f"SentenceTransformer, {dtype}, batches of {batch}"] = lambda peer=peer, batch=batch: peer.encode(
                texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False
            )
    for precision in ("fp32", "bf16"):
        settings = Settings.model_validate({"embedding": {"model": model, "precision": precision}})
        encoder = Encoder.load(model, settings.embedding)
        encoder.backend.config = replace(encoder.backend.config, max_tokens=arguments.tokens)
        systems[f"ours, {precision}, {attention_of(encoder.backend.model)}"] = lambda encoder=encoder: encoder.encode(
            texts, "passage"
        )
    for name, backend in (exports(model, folder) if arguments.onnx else {}).items():
        systems[f"ours, onnxruntime {name}"] = partial(Encoder(backend).encode, texts, "passage")
    rates: dict[str, list[float]] = {name: [] for name in systems}
    vectors: dict[str, np.ndarray] = {}
    names = list(systems)
    for number in range(arguments.rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            vectors[name] = systems[name]().astype(np.float32)
            if number:
                rates[name].append(len(texts) / (time.perf_counter() - started))
    lengths = [min(arguments.tokens, count + 2) for count in encoder.count_tokens(texts)]
    flops = forward_flops(encoder.backend.model, lengths) / len(texts)
    rows = []
    for name in names:
        rate = statistics.median(rates[name])
        cosines = (vectors[name] * vectors[names[0]]).sum(axis=1)
        rows.append(
            {
                "system": name,
                "texts_per_second": round(rate, 1),
                "tokens_per_second": round(rate * float(np.mean(lengths))),
                "share_of_peak": round(rate * flops / (arguments.peak * 1e12), 4),
                "least_cosine": round(float(cosines.min()), 6),
            }
        )
        print(rows[-1], flush=True)
    yield {"texts": len(texts), "tokens": arguments.tokens, "rounds": arguments.rounds, "systems": rows}


def find(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Exact search over random unit vectors: seconds, and that the results are those of a processor."""
    draw = np.random.default_rng(17)
    corpus, queries = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (draw.standard_normal((count, 384), dtype=np.float32) for count in (arguments.passages, 10_000))
    )
    search(queries[:100], corpus, 100)
    seconds = timed(lambda: search(queries, corpus, 100))
    few = queries[:20]
    best = search(few, corpus, 100)
    exact = (few.astype(np.float64) @ corpus.astype(np.float64).T).astype(np.float32)
    same = all(
        set(np.argsort(-row, kind="stable")[:100]) == set(hits) for row, hits in zip(exact, best.indices, strict=True)
    )
    yield {"passages": len(corpus), "queries": len(queries), "k": 100, "seconds": round(seconds, 3), "exact": same}


def main() -> None:
    """Measure one thing, print it and add it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "encode", "search"))
    parser.add_argument("--scifact", type=Path, help="BEIR folder")
    parser.add_argument("--shape", choices=("minilm", *SHAPES), default="minilm")
    parser.add_argument("--tokens", type=int, default=256, help="longest text")
    parser.add_argument("--batch", type=int, default=64, help="examples in a batch")
    parser.add_argument("--negatives", type=int, default=4, help="of each example")
    parser.add_argument("--steps", type=int, default=200, help=f"steps of a round, the first {WARM_STEPS} not timed")
    parser.add_argument("--attention", default="auto", help="training.attention of ours")
    parser.add_argument("--compiled", action="store_true", help="ours with compiled layers too")
    parser.add_argument("--onnx", action="store_true", help="the exports on onnxruntime too, which must have CUDA")
    parser.add_argument("--rounds", type=int, default=3, help="encoding has one more to warm up")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--peak", type=float, default=H100_TERAFLOPS, help="TFLOP/s of dense bf16 products")
    arguments = parser.parse_args()
    name = arguments.action if arguments.action == "search" else f"{arguments.action}, {arguments.shape}"
    if arguments.action == "train":
        name += f", batch {arguments.batch}"
    with tempfile.TemporaryDirectory() as folder:
        if arguments.action == "search":
            results = find(arguments)
        else:
            model = model_of(arguments.shape, Path(folder), arguments.tokens)
            results = train(arguments, model) if arguments.action == "train" else encode(arguments, model, Path(folder))
        for result in results:
            kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
            kept[name] = {"machine": machine(), "torch": torch.__version__, **result}
            RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(kept[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
