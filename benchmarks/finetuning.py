"""Fine-tuning side by side with ``SentenceTransformerTrainer`` and MultipleNegativesRankingLoss, on the same pairs.

    python benchmarks/finetuning.py throughput --scifact DIR      examples a second, interleaved in one process
    python benchmarks/finetuning.py train ours --scifact DIR --seed 17 18 19
                                                                  trainings, scored on the test judgements
    python benchmarks/finetuning.py train stock --scifact DIR     the same pairs under the peer
    python benchmarks/finetuning.py train ours --scifact DIR --held-out 220 --set training.learning_rate=1e-4 --label X
                                                                  one training, scored on held-out train judgements
    python benchmarks/finetuning.py summary                       gains and intervals over all trainings so far

``DIR`` is a BEIR folder with train and test judgements. The peer is sentence-transformers' trainer as it comes: its
loss, learning rate, warm-up and padding, three passes, and batches as large as ours instead of its eight. Pairs are
the train judgements; the negatives that ours adds are mined from the same corpus with no other judgement. Nothing of
the test judgements is seen in training, and both stop after a number of passes that is fixed before. Settings are
compared with ``--held-out``: on so many train queries that are left out of training, over the passages that compete for
them and some more. Everything is added to ``benchmarks/results/finetuning.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from embed_pipeline import tables
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.search import search
from embed_pipeline.evaluation.ranking import score_rankings
from embed_pipeline.evaluation.significance import bootstrap_intervals
from embed_pipeline.settings import Settings
from embed_pipeline.training.seed_run import build_trainer
from embed_pipeline.training.task import Schedule, TrainingTask, used_negatives
from embed_pipeline.training.train import finetune
from embed_pipeline.training_data.negatives import mine_hard_negatives, unroll

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

RESULTS = Path(__file__).parent / "results" / "finetuning.json"
BATCH, STOCK_EPOCHS, CUTOFF = 32, 3, 10
MEASURES = ("nDCG", "Recall")
_SEARCHED = 600
_COMPETING, _MORE_PASSAGES = 25, 300


@dataclass(frozen=True)
class Labelled:
    """A BEIR folder: texts by id, and judgements by side."""

    texts: dict[str, str]
    titles: dict[str, str]
    queries: dict[str, str]
    train: dict[str, dict[str, int]]
    test: dict[str, dict[str, int]]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Question and passage of every train judgement."""
        return [(self.queries[query], self.texts[item]) for query in sorted(self.train) for item in self.train[query]]


def read(folder: Path) -> Labelled:
    """Read the folder; judgements of grade 0 are left out."""
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = [json.loads(line) for line in (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    sides: list[dict[str, dict[str, int]]] = []
    for side in ("train", "test"):
        qrels: dict[str, dict[str, int]] = {}
        for line in (folder / "qrels" / f"{side}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            query, item, grade = line.split("\t")
            if int(grade) > 0:
                qrels.setdefault(query, {})[item] = int(grade)
        sides.append(qrels)
    return Labelled(
        texts={row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in rows},
        titles={row["_id"]: row.get("title") or "" for row in rows},
        queries={row["_id"]: row["text"] for row in asked},
        train=sides[0],
        test=sides[1],
    )


def settings_of(arguments: argparse.Namespace, seed: int) -> Settings:
    """The product's defaults but for what the command line says."""
    chosen = [assignment.partition("=") for assignment in arguments.set]
    values: dict[str, Any] = {
        "seed": seed,
        "training": {"max_text_tokens": arguments.tokens},
        "forgetting": {"questions": 0},
    }
    for name, _, value in chosen:
        group, _, key = name.partition(".")
        values.setdefault(group, {})[key] = value
    return Settings.model_validate(values)


def corpus_of(data: Labelled) -> pl.DataFrame:
    """The passages as the table ``corpus``."""
    ids = sorted(data.texts)
    filled = dict.fromkeys(("document_id", "path", "title", "heading_path", "batch"), pl.lit(""))
    frame = pl.DataFrame({"segment_id": ids, "text": [data.texts[item] for item in ids]}).with_columns(
        **filled, position=pl.lit(0, pl.Int64), token_count=pl.lit(0, pl.Int64), label_set=pl.lit(None, pl.String)
    )
    return tables.validate(frame.select(tables.CORPUS.schema.names()), tables.CORPUS)


def examples_of(data: Labelled, corpus: pl.DataFrame, settings: Settings, tokens: int, titles: int) -> pl.DataFrame:
    """The train judgements with mined negatives, and so many titles with their texts next to them."""
    rows = [(query, "labelled", data.queries[query], sorted(items)) for query, items in sorted(data.train.items())]
    held = {item for items in data.test.values() for item in items}
    free = [item for item in sorted(data.titles) if data.titles[item] and item not in held]
    order = np.random.default_rng(settings.seed).permutation(len(free))[:titles]
    rows += [(f"title-{free[place]}", "title", data.titles[free[place]], [free[place]]) for place in order]
    names = ("qa_id", "origin", "question", "positive_segment_ids")
    questions = pl.DataFrame(rows, schema={name: tables.HARD_NEGATIVES.schema[name] for name in names}, orient="row")
    model = load_model(settings.embedding.model, settings.embedding)
    model.max_seq_length = tokens
    encoder = Encoder.of(model, settings.embedding.model_copy(update={"precision": "bf16"}))
    return unroll(mine_hard_negatives(questions, corpus, settings, encoder))


def score(model: SentenceTransformer, data: Labelled, settings: Settings, tokens: int) -> dict[str, np.ndarray]:
    """nDCG@10 and Recall@10 of every test query, in the order of their ids; bf16, for every system alike."""
    model.max_seq_length = tokens
    encoder = Encoder.of(model, settings.embedding.model_copy(update={"precision": "bf16"}))
    ids, asked = sorted(data.texts), sorted(data.test)
    passages = encoder.encode([data.texts[item] for item in ids], "passage", label="encode passages")
    hits = search(encoder.encode([data.queries[query] for query in asked], "query"), passages, CUTOFF)
    rankings = {query: [ids[place] for place in row] for query, row in zip(asked, hits.indices, strict=True)}
    scores = score_rankings(rankings, data.test, (CUTOFF,))
    return {measure: scores.column(measure, CUTOFF) for measure in MEASURES}


def hold_out(data: Labelled, count: int, settings: Settings, tokens: int) -> tuple[Labelled, Labelled]:
    """What is trained on, and what is scored: so many seeded train queries, and passages for them alone.

    The passages are the answers, the best under the base for each query, and some drawn at random.
    """
    asked = sorted(data.train)
    order = np.random.default_rng(5).permutation(len(asked))
    held = [asked[place] for place in order[:count]]
    ids = sorted(data.texts)
    model = load_model(settings.embedding.model, settings.embedding)
    model.max_seq_length = tokens
    encoder = Encoder.of(model, settings.embedding.model_copy(update={"precision": "bf16"}))
    passages = encoder.encode([data.texts[item] for item in ids], "passage", label="encode passages")
    hits = search(encoder.encode([data.queries[query] for query in held], "query"), passages, _COMPETING)
    pool = {ids[place] for row in hits.indices for place in row} | {
        item for query in held for item in data.train[query]
    }
    rest = [item for item in ids if item not in pool]
    pool |= {rest[place] for place in np.random.default_rng(1).permutation(len(rest))[:_MORE_PASSAGES]}
    scored = replace(data, texts={item: data.texts[item] for item in pool}, test={q: data.train[q] for q in held})
    return replace(
        data, train={query: data.train[query] for query in asked if query not in scored.test}, test={}
    ), scored


def train_ours(
    corpus: pl.DataFrame, examples: pl.DataFrame, settings: Settings, folder: Path
) -> tuple[SentenceTransformer, float]:
    """The model that this project makes of the judgements, and the seconds that training took."""
    passages = dict(corpus.select("segment_id", "text").iter_rows())
    searched = (corpus["segment_id"].to_list(), corpus["text"].to_list())
    result = finetune(examples, passages, None, searched, settings, output=folder / "tuned", work=folder / "work")
    return load_model(folder / "tuned", settings.embedding), result.seconds


def train_stock(
    data: Labelled, arguments: argparse.Namespace, settings: Settings, folder: Path
) -> tuple[SentenceTransformer, float]:
    """The model that the peer makes of the judgements, and the seconds that training took."""
    model = load_model(settings.embedding.model, settings.embedding)
    model.max_seq_length = arguments.tokens
    columns = {"anchor": [q for q, _ in data.pairs], "positive": [p for _, p in data.pairs]}
    trainer = stock_trainer(model, columns, folder, settings.seed, num_train_epochs=STOCK_EPOCHS)
    started = time.perf_counter()
    trainer.train()
    return model.eval(), time.perf_counter() - started


def stock_trainer(
    model: SentenceTransformer,
    columns: dict[str, list[str]],
    folder: Path,
    seed: int,
    **options: Any,  # noqa: ANN401 - the peer's
) -> Any:  # noqa: ANN401 - the peer's
    """The peer's trainer and loss over texts in columns, one pass unless its ``options`` say more."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    defaults = {"num_train_epochs": 1, "per_device_train_batch_size": BATCH, "dataloader_pin_memory": False}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **(defaults | options),
    )
    return SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=MultipleNegativesRankingLoss(model)
    )


def train(data: Labelled, arguments: argparse.Namespace) -> None:
    """One training for each seed, scored on the test judgements and added to the results as soon as it ended.

    The base's scores come along where they are not known yet; negatives are mined once for all seeds.
    """
    settings = settings_of(arguments, arguments.seed[0])
    name, scored = f"{arguments.tokens} tokens", data
    if arguments.held_out:
        name = f"{name}, {arguments.held_out} train queries held out"
        data, scored = hold_out(data, arguments.held_out, settings, arguments.tokens)
    base = _read_results().get("quality", {}).get(name, {}).get("base")
    if base is None:
        found = score(load_model(settings.embedding.model, settings.embedding), scored, settings, arguments.tokens)
        base = {measure: values.round(5).tolist() for measure, values in found.items()}
    taught = {item for items in data.train.values() for item in items}
    known = {"base": base, "seen": [not taught.isdisjoint(scored.test[query]) for query in sorted(scored.test)]}
    if arguments.system == "ours":
        corpus = corpus_of(data)
        run = partial(train_ours, corpus, examples_of(data, corpus, settings, arguments.tokens, arguments.titles))
    else:
        run = partial(train_stock, data, arguments)
    for seed in arguments.seed:
        settings = settings_of(arguments, seed)
        with tempfile.TemporaryDirectory() as folder:
            model, seconds = run(settings, Path(folder))
            scores = score(model, scored, settings, arguments.tokens)
        entry = {
            "system": arguments.label or arguments.system,
            "seed": seed,
            "machine": machine(),
            "settings": arguments.set,
            "titles": arguments.titles,
            "seconds": round(seconds, 1),
            **{measure: values.round(5).tolist() for measure, values in scores.items()},
        }
        # Read again: another run may have added its own meanwhile.
        kept = _read_results()
        of_name = kept.setdefault("quality", {}).setdefault(name, {"runs": []})
        same = (entry["system"], seed)
        of_name["runs"] = [run for run in of_name["runs"] if (run["system"], run["seed"]) != same] + [entry]
        of_name.update(known)
        _write_results(kept)


def summarise(kept: dict[str, Any]) -> dict[str, Any]:
    """For each length and system: means over seeds, gain over the base, and intervals over questions."""
    summary: dict[str, Any] = {}
    for length, known in kept.get("quality", {}).items():
        groups: dict[str, list[dict[str, Any]]] = {}
        for run in known["runs"]:
            groups.setdefault(run["system"], []).append(run)
        summary[length] = {system: _gains(known, runs) for system, runs in groups.items()}
        # A label such as "ours, H100" has its peer in "stock, H100".
        for system in [name for name in groups if name.startswith("ours")]:
            peer = system.replace("ours", "stock", 1)
            if peer in groups:
                pair = [np.mean([run["nDCG"] for run in groups[name]], axis=0) for name in (system, peer)]
                summary[length][f"{system} less {peer}, nDCG@10"] = _interval(pair[0] - pair[1])
    return summary


def _gains(known: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Gains over all queries; and apart, over those with and without an answer that training saw as one."""
    found: dict[str, Any] = {"seeds": sorted(run["seed"] for run in runs)}
    base, seen = known["base"], np.asarray(known["seen"])
    for measure in MEASURES:
        own, before = np.mean([run[measure] for run in runs], axis=0), np.asarray(base[measure])
        found[f"{measure}@{CUTOFF}"] = {
            "base": round(float(before.mean()), 4),
            "tuned": round(float(own.mean()), 4),
            "by_seed": [round(float(np.mean(run[measure])), 4) for run in runs],
            "relative_gain": round(float(own.mean() / before.mean() - 1), 4),
            **_interval(own - before),
        }
        for name, part in (("answer seen in training", seen), ("answer new", ~seen)):
            found[f"{measure}@{CUTOFF}, {name}"] = {
                "queries": int(part.sum()),
                "base": round(float(before[part].mean()), 4),
                "tuned": round(float(own[part].mean()), 4),
                **_interval((own - before)[part]),
            }
    return found


def _interval(differences: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_intervals(differences[:, None], 5_000, seed=17)
    names = ("difference", "low", "high")
    values = (differences.mean(), low[0], high[0])
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def throughput(data: Labelled, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median examples a second of both over the same examples with the same negatives, rounds interleaved."""
    settings = settings_of(arguments, arguments.seed[0])
    corpus = corpus_of(data)
    # A part of the data is enough for the clock: so many questions, and passages to find their negatives among.
    asked = sorted(data.train)[: 2 * BATCH * arguments.steps]
    part = replace(data, train={query: data.train[query] for query in asked})
    answers = {item for items in part.train.values() for item in items}
    searched = corpus.filter(pl.col("segment_id").is_in(list({*answers, *sorted(data.texts)[:_SEARCHED]})))
    mined = examples_of(part, searched, settings, arguments.tokens, titles=0)
    negatives = used_negatives(settings) or settings.training_data.num_negatives
    full = mined.filter(pl.col("negative_segment_ids").list.len() >= negatives)
    examples = full.head(BATCH * arguments.steps)
    if examples.height < BATCH * arguments.steps:
        message = f"{examples.height} examples have {negatives} negatives, too few for --steps {arguments.steps}"
        raise SystemExit(message)
    texts = dict(corpus.select("segment_id", "text").iter_rows())
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    rates: dict[str, list[float]] = {"ours": [], "stock": []}
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: _time_ours(examples, texts, settings, clock),
        "stock": lambda: _time_stock(examples, texts, settings, (arguments.tokens, negatives), clock),
    }
    for number in range(arguments.rounds + 1):
        for system in ("ours", "stock") if number % 2 else ("stock", "ours"):
            rate = examples.height / runs[system]()
            if number:
                rates[system].append(rate)
            print(f"round {number} {system}: {rate:.2f} examples/s", flush=True)
    medians = {system: statistics.median(values) for system, values in rates.items()}
    return {
        "machine": machine(),
        "tokens": arguments.tokens,
        "batch": BATCH,
        "examples": examples.height,
        "negatives": negatives,
        "rounds": arguments.rounds,
        "threads": arguments.threads or os.cpu_count(),
        "clock": "processor time" if arguments.threads == 1 else "wall",
        "examples_per_second": {system: round(value, 2) for system, value in medians.items()},
        "ratio": round(medians["ours"] / medians["stock"], 3),
        "ratio_by_round": [round(a / b, 3) for a, b in zip(rates["ours"], rates["stock"], strict=True)],
    }


def _time_ours(examples: pl.DataFrame, texts: dict[str, str], settings: Settings, clock: Callable[[], float]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        task = TrainingTask.of(examples, texts, None, ([], []), settings, work=work)
        steps = examples.height // BATCH
        schedule = Schedule(BATCH, 1.0, steps, 1, small_data=True)
        trainer, supervisor = build_trainer(task, schedule, settings.seed, work)
        # Neither side writes checkpoints while it is timed.
        trainer.remove_callback(supervisor)
        started = clock()
        trainer.train()
        return clock() - started


def _time_stock(
    examples: pl.DataFrame,
    texts: dict[str, str],
    settings: Settings,
    limits: tuple[int, int],
    clock: Callable[[], float],
) -> float:
    tokens, negatives = limits
    model = load_model(settings.embedding.model, settings.embedding)
    model.max_seq_length = tokens
    rows = examples.select("question", "positive_segment_id", "negative_segment_ids").rows()
    columns = {
        "anchor": [question for question, _, _ in rows],
        "positive": [texts[item] for _, item, _ in rows],
        **{f"negative_{place}": [texts[items[place]] for _, _, items in rows] for place in range(negatives)},
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = stock_trainer(model, columns, Path(folder), settings.seed)
        started = clock()
        trainer.train()
        return clock() - started


def _read_results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    return found


def machine() -> str:
    """What computes: the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _write_results(kept: dict[str, Any]) -> None:
    kept["summary"] = summarise(kept)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("throughput", "train", "summary"))
    parser.add_argument("system", nargs="?", choices=("ours", "stock"), default="ours")
    parser.add_argument("--scifact", type=Path, help="BEIR folder with train and test judgements")
    parser.add_argument("--tokens", type=int, default=256, help="longest text")
    parser.add_argument("--seed", type=int, nargs="+", default=[17], help="one training each")
    parser.add_argument("--titles", type=int, default=0, help="titles with their texts added to ours")
    parser.add_argument("--set", action="append", default=[], metavar="stage.name=value", help="a setting of ours")
    parser.add_argument("--held-out", type=int, default=0, help="train queries to score on in place of the test's")
    parser.add_argument("--label", help="name of this variant in the results")
    parser.add_argument("--steps", type=int, default=6, help="steps of a throughput round")
    parser.add_argument("--threads", type=int, default=0, help="1: by processor time, fit for a machine that is shared")
    parser.add_argument("--rounds", type=int, default=5, help="throughput rounds, after one to warm up")
    return parser


def main() -> None:
    """Run one action and add what it found to the results."""
    arguments = _parser().parse_args()
    if arguments.action != "summary" and arguments.scifact is None:
        _parser().error("--scifact is needed")
    if arguments.action == "train":
        train(read(arguments.scifact), arguments)
    found = throughput(read(arguments.scifact), arguments) if arguments.action == "throughput" else None
    kept = _read_results()
    if found:
        kept.setdefault("throughput", {})[f"{arguments.tokens} tokens"] = found
    _write_results(kept)
    print(json.dumps({"summary": kept["summary"], "throughput": kept.get("throughput", {})}, indent=1))


if __name__ == "__main__":
    main()
