"""Base against tuned, BM25, and its hybrids with both: every metric on every query set, with intervals and verdicts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.proven import choose_backend
from embed_pipeline.embedding.search import BM25
from embed_pipeline.enumerations import ALL_RECALL, SYSTEMS, Context
from embed_pipeline.evaluation.adoption import advise
from embed_pipeline.evaluation.cautions import cautions_of
from embed_pipeline.evaluation.fusion import Scores, choose_weights, fusion_rows, measure_fusions
from embed_pipeline.evaluation.query_sets import EvaluationError, Passages, QuerySet
from embed_pipeline.evaluation.ranking import Collection, QueryScores, SetResult, all_recall, rank_set, score_rankings
from embed_pipeline.evaluation.significance import Verdict, bootstrap_intervals, judge
from embed_pipeline.settings import Settings
from embed_pipeline.tables import FUSION_WEIGHTS, QUESTION_RESULTS, RETRIEVAL_EVALUATION
from embed_pipeline.text.passages import batch_of_passages, passage_texts

logger = logging.getLogger(__name__)
Floats = NDArray[np.float32]
HEADLINE = ("nDCG", 10)
_QUESTION_SYSTEMS = ("base", "tuned", "bm25")
"""The systems that are shown query by query."""


@dataclass(frozen=True)
class Comparison:
    """What the evaluation found.

    Attributes:
        metrics: table ``retrieval_evaluation``.
        questions: table ``question_results``.
        fusions: table ``fusion_weights``.
        verdicts: tuned against base on nDCG@10, for each query set.
        advice: what to deploy, a sentence for each set of people's questions.
        warnings: what a reader should know before trusting or using the figures, a sentence each.
        passages: text of every passage that a model ranked first, by id.
        answers: (query set, query id) to the text of one passage that answers it, where the unit is the segment.
    """

    metrics: pl.DataFrame
    questions: pl.DataFrame
    fusions: pl.DataFrame
    verdicts: dict[str, Verdict]
    advice: list[str]
    warnings: list[str]
    passages: dict[str, str]
    answers: dict[tuple[str, str], str]


def compare(
    base: str | Path,
    tuned: str | Path,
    corpus: pl.DataFrame,
    sets: Sequence[QuerySet],
    settings: Settings,
    *,
    dev: QuerySet | None = None,
    vectors: Path | None = None,
    base_context: Context | None = None,
) -> Comparison:
    """Evaluate the tuned model against its base, BM25, and BM25 with each of them, on the same passages.

    Args:
        base: the base model, as ``embedding.model`` names it.
        tuned: folder of the tuned model; the base itself where only the other systems are wanted.
        corpus: table ``corpus``: all of its segments are searched, but for sets that bring a corpus of their own.
        sets: query sets with different names, none of them empty.
        settings: groups ``embedding`` and ``evaluation``, and the seed.
        dev: questions about ``corpus`` on which the hybrids' weights are chosen; None or empty: they are not.
        vectors: folder with the vectors of earlier stages; None: everything is encoded.
        base_context: what is put before a segment's text under the base; None: what ``embedding.context`` says.

    Raises:
        EvaluationError: there is no query set, one is empty or named twice, there is nothing to search, or a
            judged passage is not in what is searched.
        ModelError: a model cannot be loaded.
    """
    asked = [*sets, dev] if dev else list(sets)
    context = settings.embedding.context
    sources = searched_by(asked, corpus, context)
    before = sources if base_context in {None, context} else searched_by(asked, corpus, base_context or context)
    texts = (text for passages, _ in sources for text in passages.texts)
    batches = batch_of_passages(passage_texts(corpus, context), corpus["batch"])
    chosen = choose_backend([base, tuned], texts, settings, batches)
    by_base = encode_sets("base", chosen.open(base, vectors), before, asked)
    is_base = tuned == base and before is sources
    by_tuned = by_base if is_base else encode_sets("tuned", chosen.open(tuned, vectors), sources, asked)
    lexical: dict[tuple[str, ...], BM25] = {}
    for query_set, (passages, _) in zip(asked, sources, strict=True):
        language = "auto" if query_set.corpus else settings.corpus.language
        lexical[passages.ids] = lexical.get(passages.ids) or BM25(passages.texts, language)
    searches = [
        _SearchedSet(
            with_identical_texts(query_set, passages),
            Collection(passages.ids, passages.texts, documents, of_base[0], of_tuned[0], lexical[passages.ids]),
            base=of_base[1],
            tuned=of_tuned[1],
        )
        for query_set, (passages, documents), of_base, of_tuned in zip(asked, sources, by_base, by_tuned, strict=True)
    ]
    fusions = {search.query_set.name: search.fusions(settings) for search in searches} if dev else {}
    weights = choose_weights(fusions[dev.name] if dev else None, settings)
    results = [_evaluate(search, weights, settings) for search in searches[: len(sets)]]
    rows = [row for name, scores in fusions.items() for row in fusion_rows(name, scores, weights)]
    same = all(np.array_equal(search.collection.base, search.collection.tuned) for search in searches)
    found = _comparison(results, sources[: len(sets)], FUSION_WEIGHTS.frame(rows), settings, same_passages=same)
    for name, verdict in found.verdicts.items() if tuned != base else ():
        logger.info("%s: %s", name, verdict.sentence)
    return found


@dataclass(frozen=True)
class _SearchedSet:
    """A query set, what is searched for it, and its queries under both models, float32 (queries, d)."""

    query_set: QuerySet
    collection: Collection
    base: Floats
    tuned: Floats

    def fusions(self, settings: Settings) -> Scores:
        return measure_fusions(self.query_set, self.collection, self.base, self.tuned, settings)


def searched_by(
    sets: Sequence[QuerySet], corpus: pl.DataFrame, context: Context
) -> list[tuple[Passages, tuple[str, ...]]]:
    """What is searched for each set, and the document that each passage belongs to.

    Raises:
        EvaluationError: there is no query set, one is empty or named twice, there is nothing to search, or a judged
            passage is not in what is searched.
    """
    _check_sets(sets)
    main = corpus.sort("segment_id")
    ours = Passages(tuple(main["segment_id"]), tuple(passage_texts(main, context)), tuple(main["text"]))
    sources: list[tuple[Passages, tuple[str, ...]]] = []
    for query_set in sets:
        own = query_set.corpus
        passages = own or ours
        if not passages.ids:
            message = f"query set {query_set.name!r} has no passages to search"
            raise EvaluationError(message)
        documents = passages.ids if own else tuple(main["path"])
        known = set(documents if query_set.unit == "document" else passages.ids)
        for query in query_set.ids:
            missing = set(query_set.qrels[query]) - known
            if missing:
                message = (
                    f"query set {query_set.name!r}: query {query!r} is answered by {min(missing)!r}, not in the corpus"
                )
                raise EvaluationError(message)
        sources.append((passages, documents))
    return sources


def _check_sets(sets: Sequence[QuerySet]) -> None:
    if not sets:
        message = "there is no query set to evaluate on"
        raise EvaluationError(message)
    names = [query_set.name for query_set in sets]
    for query_set in sets:
        if not len(query_set):
            message = f"query set {query_set.name!r} has no queries"
            raise EvaluationError(message)
        if names.count(query_set.name) > 1:
            message = f"two query sets are named {query_set.name!r}"
            raise EvaluationError(message)


def encode_sets(
    system: str, encoder: Encoder, sources: Sequence[tuple[Passages, tuple[str, ...]]], sets: Sequence[QuerySet]
) -> list[tuple[Floats, Floats]]:
    """Passage and query vectors of every set; a corpus that sets share is encoded once."""
    corpora: dict[tuple[str, ...], Floats] = {}
    encoded = []
    for query_set, (passages, _) in zip(sets, sources, strict=True):
        if passages.ids not in corpora:
            corpora[passages.ids] = encoder.encode(passages.texts, "passage", label=f"Encoding passages ({system})")
        texts = [query_set.queries[query] for query in query_set.ids]
        queries = encoder.encode(texts, "query", label=f"Encoding {query_set.name} queries ({system})")
        encoded.append((corpora[passages.ids], queries))
    return encoded


def _evaluate(search: _SearchedSet, dense_weights: tuple[float, float], settings: Settings) -> SetResult:
    query_set, collection = search.query_set, search.collection
    evaluation = settings.evaluation
    ranked = rank_set(
        query_set,
        collection,
        search.base,
        search.tuned,
        depth=max(evaluation.cutoffs),
        dense_weights=dense_weights,
    )
    rankings, cutoffs = {system: ranked[system].rankings for system in SYSTEMS}, evaluation.cutoffs
    return SetResult(
        query_set,
        ranked,
        scores={system: score_rankings(found, query_set.qrels, cutoffs) for system, found in rankings.items()},
        all_recall={system: all_recall(found, query_set, cutoffs) for system, found in rankings.items()},
    )


def with_identical_texts(query_set: QuerySet, passages: Passages) -> QuerySet:
    """The set with every copy of an answering passage judged like it: the same text is the same answer."""
    if query_set.unit == "document":
        return query_set
    copies: dict[str, list[str]] = {}
    for passage, text in zip(passages.ids, passages.said or passages.texts, strict=True):
        copies.setdefault(text, []).append(passage)
    same = {passage: group for group in copies.values() if len(group) > 1 for passage in group}
    if not same:
        return query_set
    qrels = {
        query: {copy: grade for item, grade in rel.items() for copy in same.get(item, [item])}
        for query, rel in query_set.qrels.items()
    }
    return replace(query_set, qrels=qrels, copies={copy: group[0] for group in same.values() for copy in group})


def _comparison(
    results: Sequence[SetResult],
    sources: Sequence[tuple[Passages, tuple[str, ...]]],
    fusions: pl.DataFrame,
    settings: Settings,
    *,
    same_passages: bool,
) -> Comparison:
    metrics: list[dict[str, object]] = []
    questions: list[dict[str, object]] = []
    verdicts: dict[str, Verdict] = {}
    passages: dict[str, str] = {}
    answers: dict[tuple[str, str], str] = {}
    for result, (source, _) in zip(results, sources, strict=True):
        name = result.query_set.name
        base, tuned = (result.scores[system].column(*HEADLINE) for system in ("base", "tuned"))
        samples = settings.evaluation.bootstrap_samples
        verdicts[name] = judge(base, tuned, samples=samples, seed=settings.seed)
        metrics.extend(_metric_rows(result, settings))
        questions.extend(_question_rows(result))
        texts = dict(zip(source.ids, source.texts, strict=True))
        for system in ("base", "tuned"):
            passages.update({first: texts[first] for first in result.ranked[system].first.values()})
        if result.query_set.unit == "segment":
            answers.update({(name, query): texts[min(rel)] for query, rel in result.query_set.qrels.items()})
    frame = RETRIEVAL_EVALUATION.frame(metrics)
    return Comparison(
        metrics=frame,
        questions=QUESTION_RESULTS.frame(questions),
        fusions=fusions,
        verdicts=verdicts,
        advice=advise(results, settings),
        warnings=cautions_of(results, verdicts, answers, same_passages=same_passages),
        passages=passages,
        answers=answers,
    )


def _metric_rows(result: SetResult, settings: Settings) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for label, chosen in _slices(result.query_set):
        several = np.intersect1d(chosen, result.several)
        for scores, measured in ((result.scores, chosen), (result.all_recall, several)):
            if len(measured):
                found = {"query_set": result.query_set.name, "slice": label, "queries": len(measured)}
                rows.extend({**found, **figures} for figures in _figures(scores, measured, settings))
    return rows


def _figures(
    scores: Mapping[str, QueryScores], chosen: NDArray[np.int64], settings: Settings
) -> Iterator[dict[str, object]]:
    """Mean of each metric of each system over the chosen queries, and its difference to the base with the interval."""
    part = np.stack([scores[system].values[chosen] for system in SYSTEMS])
    differences = part - part[0]
    flat = differences.transpose(1, 0, 2).reshape(len(chosen), -1)
    lows, highs = bootstrap_intervals(flat, settings.evaluation.bootstrap_samples, settings.seed)
    ends = (each.reshape(len(SYSTEMS), -1) for each in (lows, highs))
    figures = (part.mean(axis=1), differences.mean(axis=1), *ends)
    for s, system in enumerate(SYSTEMS):
        for c, (metric, k) in enumerate(scores["base"].columns):
            value, difference, low, high = (float(figure[s, c]) for figure in figures)
            yield {
                "system": system,
                "metric": metric,
                "k": k,
                "value": value,
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
            }


def _slices(query_set: QuerySet) -> list[tuple[str, NDArray[np.int64]]]:
    """Name and row numbers of every slice, ``all`` first."""
    ids = query_set.ids
    slices = [("all", np.arange(len(ids)))]
    for dimension, values in sorted(query_set.slices.items()):
        for value in sorted(set(values.values())):
            chosen = [row for row, query in enumerate(ids) if values.get(query) == value]
            slices.append((f"{dimension}={value}", np.asarray(chosen, dtype=np.int64)))
    return slices


def _question_rows(result: SetResult) -> list[dict[str, object]]:
    columns = {f"{system}_ndcg_10": result.scores[system].column("nDCG", 10) for system in _QUESTION_SYSTEMS}
    columns |= {f"{system}_recall_10": result.scores[system].column("Recall", 10) for system in ("base", "tuned")}
    changes = columns["tuned_ndcg_10"] - columns["base_ndcg_10"]
    complete = {f"{s}_all_recall_10": result.all_recall[s].column(ALL_RECALL, 10) for s in ("base", "tuned")}
    several = set(result.several)
    return [
        {
            "query_set": result.query_set.name,
            "query_id": query,
            "question": result.query_set.queries[query],
            **{name: float(values[row]) for name, values in columns.items()},
            **{name: float(values[row]) if row in several else None for name, values in complete.items()},
            **{f"{system}_rank": _first_answer(result, system, query) for system in _QUESTION_SYSTEMS},
            "change": float(changes[row]),
            "outcome": "won" if changes[row] > 0 else "lost" if changes[row] < 0 else "same",
            **{f"{system}_first": result.ranked[system].first[query] for system in _QUESTION_SYSTEMS},
        }
        for row, query in enumerate(result.query_set.ids)
    ]


def _first_answer(result: SetResult, system: str, query: str) -> int | None:
    """Rank of the first item that answers ``query``; None: it is not in the ranking."""
    answers = result.query_set.qrels[query]
    ranking = result.ranked[system].rankings[query]
    return next((rank for rank, item in enumerate(ranking, start=1) if item in answers), None)
