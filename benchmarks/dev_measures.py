"""Which measure without people's judgements ranks variants of a tuned model as people's queries do.

    python benchmarks/dev_measures.py --store STORE --queries DIR [--store STORE --queries DIR ...]

``STORE`` holds a finished run with the default training, ``DIR`` the BEIR folder of its people's queries. The variants
are shares of what training on questions changed in the weights, each with shares of the linear map fitted to it. Each
is scored by people's queries and by measures that the corpus and the generated questions give; kept are the rank
correlation of each measure with people's nDCG@10 over the variants, and what is lost where the measure chooses. Results
go to ``benchmarks/results/dev_measures.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from linear_adapter import mapped
from scipy.stats import rankdata, spearmanr
from upath import UPath

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.search import BM25, top_indices
from embed_pipeline.evaluation.query_sets import QuerySet, generated_set, labelled_set
from embed_pipeline.evaluation.ranking import rank_by_model, score_rankings
from embed_pipeline.evaluation.retrieval import searched_by
from embed_pipeline.settings import Settings
from embed_pipeline.storage import read_table, table_path
from embed_pipeline.tables import TABLES
from embed_pipeline.training.linear_adapter import (
    Floats,
    Integers,
    Teaching,
    fit_adapter,
    number_documents,
    remove_adapter,
    sentence_queries,
    teacher_scores,
)
from embed_pipeline.training.weights import load_weights, mix_weights

RESULTS = Path(__file__).parent / "results" / "dev_measures.json"
CUTOFF = 10
WEIGHT_SHARES = (0.0, 0.5, 1.0)
MAP_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
DEFAULT = "weights 1.0, map 0.5"
MOST_SENTENCES = 1500
PEOPLE = "people's queries"
MIXTURES = {
    "mean rank of questions and cohesion": ("generated questions", "sentences find their document"),
    "mean rank of questions and teacher": ("generated questions", "teacher on the questions"),
    "mean rank of hard questions and teacher": ("questions that BM25 misses", "teacher on the questions"),
}


@dataclass(frozen=True)
class Asked:
    """Texts with what each should find: gains, float32 (queries, passages); NaN where a passage is not ranked."""

    texts: list[str]
    gains: Floats


def main() -> None:
    """Score every set's variants, and add what was found to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, action="append", required=True, help="store of a finished run")
    parser.add_argument("--queries", type=Path, action="append", required=True, help="people's queries for that store")
    options = parser.parse_args()
    kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for store, folder in zip(options.store, options.queries, strict=True):
        found = variants(store, folder.resolve(), Settings())
        kept[folder.name] = {"variants": found, "measures": judged(found)}
        print(folder.name, json.dumps(kept[folder.name]["measures"], indent=1))
        kept["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")


def variants(store: Path, folder: Path, settings: Settings) -> dict[str, dict[str, float]]:
    """Every variant's value by every measure."""
    tables = {name: stored(store, name) for name in ("corpus", "qa_dataset", "dataset_split")}
    corpus = tables["corpus"].sort("segment_id")
    people = labelled_set(folder, corpus)
    if people is None:
        message = f"{folder} has no judgements on the corpus of {store}"
        raise SystemExit(message)
    (searched,) = searched_by([people], corpus, settings.embedding.context)
    texts, groups = corpus["text"].to_list(), number_documents(corpus["document_id"].to_list())
    model, tuned = load_model(settings.embedding.model, settings.embedding, "cpu"), tuned_weights(store, settings)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    asked = questions(tables, corpus, texts, groups, Encoder.of(model, settings.embedding), settings)
    found: dict[str, dict[str, float]] = {}
    for weight in WEIGHT_SHARES:
        load_weights(model, mix_weights(base, tuned, weight))
        encoder = Encoder.of(model.eval(), settings.embedding)
        generator = np.random.default_rng(settings.seed)
        dense = settings.training.teacher_dense_weight
        teaching = Teaching.of(encoder, texts, corpus["document_id"].to_list(), dense_weight=dense, generator=generator)
        matrix = fit_adapter(teaching, generator=generator)
        passages, own = encoder.encode(texts, "passage"), encoder.encode(searched[0].texts, "passage")
        encoded = {name: encoder.encode(each.texts, "query") for name, each in asked.items()}
        typed = encoder.encode([people.queries[query] for query in people.ids], "query")
        for share in MAP_SHARES:
            values = {
                name: ndcg(mapped(encoded[name], share * matrix) @ mapped(passages, share * matrix).T, each.gains)
                for name, each in asked.items()
            }
            sides = mapped(own, share * matrix), mapped(typed, share * matrix)
            rankings = rank_by_model(people, searched[0].ids, searched[1], *sides, depth=CUTOFF)
            scores = score_rankings(rankings, people.qrels, (CUTOFF,)).column("nDCG", CUTOFF)
            values[PEOPLE] = float(scores.mean())
            found[f"weights {weight}, map {share}"] = values
            print(f"weights {weight}, map {share}", values, flush=True)
    return found


def stored(store: Path, name: str) -> pl.DataFrame:
    """A table of the store."""
    return read_table(table_path(UPath(store), name), TABLES[name])


def tuned_weights(store: Path, settings: Settings) -> Mapping[str, Any]:
    """What training on questions made of the base, without the linear adapter."""
    shelf = store / "models" / "finetuned_model"
    model = load_model(str(shelf / (shelf / "latest").read_text("utf-8").strip()), settings.embedding, "cpu")
    remove_adapter(model)
    return {name: value.clone() for name, value in model.state_dict().items()}


def questions(  # noqa: PLR0917 - what a store holds
    tables: Mapping[str, pl.DataFrame],
    corpus: pl.DataFrame,
    texts: list[str],
    groups: Integers,
    encoder: Encoder,
    settings: Settings,
) -> dict[str, Asked]:
    """What is asked of the corpus without people."""
    held = [generated_set(tables["qa_dataset"], tables["dataset_split"], side) for side in ("dev", "test")]
    ids = corpus["segment_id"].to_list()
    generated = merged(held, ids)
    bm25 = BM25(texts)
    lexical = np.stack([bm25.scores(text) for text in generated.texts])
    missed = [place for place, row in enumerate(lexical) if generated.gains[place, int(row.argmax())] <= 0]
    sentences, own = sentence_queries(texts, groups, np.random.default_rng(settings.seed))
    picked = np.random.default_rng(settings.seed + 1).permutation(len(sentences))[:MOST_SENTENCES]
    vectors = (encoder.encode(generated.texts, "query"), encoder.encode(texts, "passage"))
    nothing = [np.empty(0, np.int64)] * len(generated.texts)
    dense = settings.training.teacher_dense_weight
    taught = teacher_scores(generated.texts, texts, vectors, nothing, groups, dense_weight=dense)
    return {
        "generated questions": generated,
        "questions that BM25 misses": Asked([generated.texts[at] for at in missed], generated.gains[missed]),
        "sentences find their document": cohesion(sentences, own, picked, texts),
        "teacher on the questions": Asked(generated.texts, first_gains(taught)),
    }


def merged(sets: Sequence[QuerySet], ids: Sequence[str]) -> Asked:
    """Questions with their source segments as gains."""
    place = {segment: at for at, segment in enumerate(ids)}
    texts, rows = [], []
    for each in sets:
        for query in each.ids:
            row = np.zeros(len(ids), np.float32)
            row[[place[item] for item in each.qrels[query]]] = 1
            texts.append(each.queries[query])
            rows.append(row)
    return Asked(texts, np.stack(rows))


def cohesion(sentences: Sequence[str], own: Sequence[Integers], picked: Integers, texts: Sequence[str]) -> Asked:
    """Sentences, each to find the other segments of its document; those that hold it are not ranked."""
    asked, rows = [], []
    for at in picked:
        row = np.zeros(len(texts), np.float32)
        row[own[at]] = 1
        row[[place for place in own[at] if sentences[at] in texts[place]]] = np.nan
        if np.nansum(row):
            asked.append(sentences[at])
            rows.append(row)
    return Asked(asked, np.stack(rows) if rows else np.zeros((0, len(texts)), np.float32))


def first_gains(scores: Floats) -> Floats:
    """The first ten of each ranking as gains that fall with the rank."""
    gains = np.zeros_like(scores)
    for row, values in enumerate(scores):
        best = top_indices(values, CUTOFF)
        gains[row, best] = np.arange(len(best), 0, -1) / len(best)
    return gains


def ndcg(similarity: Floats, gains: Floats) -> float:
    """Mean nDCG@10 of rankings by ``similarity``; NaN where nothing is asked."""
    if not len(gains):
        return float("nan")
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    values = []
    for row, gain in zip(np.where(np.isnan(gains), -np.inf, similarity), np.nan_to_num(gains), strict=True):
        best, ideal = gain[top_indices(row, CUTOFF)], np.sort(gain)[::-1][:CUTOFF]
        values.append(float((best * discounts).sum() / (ideal * discounts).sum()))
    return float(np.mean(values))


def judged(found: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | str]]:
    """Each measure's rank correlation with people's queries, its choice, and people's nDCG@10 lost by that choice."""
    names = list(found)
    people = np.array([found[name][PEOPLE] for name in names])
    columns = {
        measure: rankdata([found[name][measure] for name in names])
        for measure in found[DEFAULT]
        if measure != PEOPLE and not np.isnan(found[DEFAULT][measure])
    }
    for mixture, parts in MIXTURES.items():
        if all(part in columns for part in parts):
            columns[mixture] = np.mean([columns[part] for part in parts], axis=0)
    result: dict[str, dict[str, float | str]] = {
        "default": {"choice": DEFAULT, "lost": round(float(people.max() - found[DEFAULT][PEOPLE]), 4)}
    }
    for measure, ranks in columns.items():
        choice = int(ranks.argmax())
        result[measure] = {
            "correlation": round(float(spearmanr(ranks, people).statistic), 3),
            "choice": names[choice],
            "lost": round(float(people.max() - people[choice]), 4),
        }
    return result


if __name__ == "__main__":
    main()
