"""An audit of the training data for a person to read: figures and the hardest examples."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from embed_pipeline.embedding.search import BM25
from embed_pipeline.settings import Settings
from embed_pipeline.text.languages import AUTO
from embed_pipeline.training_data.candidates import similarity_ceiling
from embed_pipeline.training_data.near_duplicates import NearDuplicatePassages, normalise_question

_SAMPLED = 200
_SUSPECT_RANK = 3
_SUSPECT_RATIO = 0.9
_HARDEST = 10
HARDEST_COLUMNS = ("question", "origin", "positive", "negative", "similarities")
# Two ways of summing a cosine of float32 vectors differ by less.
_EPSILON = 1e-6


@dataclass(frozen=True)
class FalseNegatives:
    """How many sampled negatives look like answers.

    Attributes:
        sampled: negatives looked at, one of each sampled question.
        suspected: those that look like answers.
        low: lower end of the 95 % interval of the rate (Wilson 1927).
        high: upper end.
    """

    sampled: int
    suspected: int
    low: float
    high: float

    @property
    def rate(self) -> float | None:
        """Suspected share of the sample; None where it is empty."""
        return self.suspected / self.sampled if self.sampled else None


@dataclass(frozen=True)
class Audit:
    """The figures of a mined set.

    Attributes:
        origins: questions of each origin.
        examples: question and positive pairs.
        negatives: mined negatives, over all questions.
        full_share: share of the questions with all the negatives wanted.
        ratios: for each negative, its similarity over that of the question's least similar positive; questions
            whose positive is not above 0 have none.
        false_negatives: the estimate of :func:`estimate_false_negatives`.
        hardest: the examples whose negative comes closest, a row of :data:`HARDEST_COLUMNS` each.
    """

    origins: dict[str, int]
    examples: int
    negatives: int
    full_share: float
    ratios: list[float]
    false_negatives: FalseNegatives
    hardest: list[tuple[str, ...]]

    @property
    def mean_ratio(self) -> float | None:
        """Mean of ``ratios``; None where there are none."""
        return sum(self.ratios) / len(self.ratios) if self.ratios else None


def audit_negatives(hard_negatives: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> Audit:
    """Measure a mined set.

    Args:
        hard_negatives: frame of :data:`tables.HARD_NEGATIVES`.
        corpus: frame of :data:`tables.CORPUS`.
        settings: the number of negatives wanted, and the seed of the sample.
    """
    rows = hard_negatives.sort("qa_id").to_dicts()
    texts = dict(corpus.select("segment_id", "text").iter_rows())
    return Audit(
        origins=dict(sorted(Counter(row["origin"] for row in rows).items())),
        examples=sum(len(row["positive_segment_ids"]) for row in rows),
        negatives=sum(len(row["negative_segment_ids"]) for row in rows),
        full_share=full_share(hard_negatives, settings.training_data.num_negatives),
        ratios=[ratio for row in rows for ratio in _ratios(row)],
        false_negatives=estimate_false_negatives(rows, texts, settings.seed, language=settings.corpus.language),
        hardest=_hardest(rows, texts),
    )


def estimate_false_negatives(
    rows: Sequence[Mapping[str, Any]],
    texts: Mapping[str, str],
    seed: int,
    sampled: int = _SAMPLED,
    *,
    language: str = AUTO,
) -> FalseNegatives:
    """Share of the negatives that may be answers, from a seeded sample of questions, by two measures that agree.

    A sampled question's most similar negative is suspected when BM25 over the whole corpus ranks it third or better
    for the question, and its similarity is at least 0.9 of the least similar positive's: words and meaning both
    point to it. This is a proxy. It misses answers in other words, and a passage can share a question's words and
    topic without answering it; the trend over settings says more than the value.

    Args:
        rows: rows of :data:`tables.HARD_NEGATIVES`.
        texts: segment id to text, of the whole corpus.
        seed: seed of the sample.
        sampled: questions in it, at most.
        language: ``corpus.language``.
    """
    from scipy.stats import binomtest

    eligible = [row for row in rows if row["negative_segment_ids"]]
    chosen = random.Random(f"{seed} audit").sample(eligible, min(sampled, len(eligible)))  # noqa: S311 - sampling
    if not chosen:
        return FalseNegatives(0, 0, 0.0, 1.0)
    distinct = list(dict.fromkeys(texts[key] for key in sorted(texts)))
    asked = [row["question"] for row in chosen]
    hits = BM25(distinct, language, asked).search(asked, _SUSPECT_RANK)
    suspected = 0
    for index, row in enumerate(chosen):
        found = texts[row["negative_segment_ids"][0]] in {
            distinct[place] for place in hits.indices[index] if place >= 0
        }
        close = row["negative_similarities"][0] >= _SUSPECT_RATIO * min(row["positive_similarities"])
        suspected += found and close
    interval = binomtest(suspected, len(chosen)).proportion_ci(method="wilson")
    return FalseNegatives(len(chosen), suspected, float(interval.low), float(interval.high))


def negatives_failures(hard_negatives: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> list[str]:
    """The reasons not to train on ``hard_negatives``, a sentence for each kind; empty: there is none.

    The rules are checked from the stored similarities and texts, independently of the miner: the ceiling is
    computed again, and every negative is compared with every known positive of its question.

    Args:
        hard_negatives: frame of :data:`tables.HARD_NEGATIVES`.
        corpus: frame of :data:`tables.CORPUS`.
        settings: margins, number and thresholds.
    """
    rows = hard_negatives.sort("qa_id").to_dicts()
    named = {key for row in rows for key in (*row["positive_segment_ids"], *row["negative_segment_ids"])}
    texts = dict(corpus.filter(pl.col("segment_id").is_in(named)).select("segment_id", "text").iter_rows())
    known: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        known[normalise_question(row["question"])].update(row["positive_segment_ids"])
    found: defaultdict[str, list[str]] = defaultdict(list)
    passages = NearDuplicatePassages(settings.training_data.near_duplicate_passages)
    for row in rows:
        for problem in _problems(row, known[normalise_question(row["question"])], texts, passages, settings):
            found[problem].append(row["qa_id"])
    counted = {
        problem: "1 question has" if len(ids) == 1 else f"{len(ids)} questions have" for problem, ids in found.items()
    }
    return [f"{counted[problem]} {problem}, first {ids[0]!r}" for problem, ids in sorted(found.items())]


def full_share(hard_negatives: pl.DataFrame, num_negatives: int) -> float:
    """Share of the questions with all the negatives wanted; 1 where there are no questions."""
    if hard_negatives.is_empty():
        return 1.0
    counts: list[int] = hard_negatives["negative_segment_ids"].list.len().to_list()
    return sum(count >= num_negatives for count in counts) / len(counts)


def _ratios(row: Mapping[str, Any]) -> list[float]:
    least = min(row["positive_similarities"])
    return [similarity / least for similarity in row["negative_similarities"]] if least > 0 else []


def _hardest(rows: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[tuple[str, ...]]:
    ranked = sorted((row for row in rows if _ratios(row)), key=lambda row: (-_ratios(row)[0], row["qa_id"]))
    found: list[tuple[str, ...]] = []
    for row in ranked[:_HARDEST]:
        least = row["positive_similarities"].index(min(row["positive_similarities"]))
        similarities = f"{row['positive_similarities'][least]:.3f} / {row['negative_similarities'][0]:.3f}"
        positive, negative = texts[row["positive_segment_ids"][least]], texts[row["negative_segment_ids"][0]]
        found.append((row["question"], row["origin"], positive, negative, similarities))
    return found


def _problems(
    row: Mapping[str, Any],
    positives: set[str],
    texts: Mapping[str, str],
    passages: NearDuplicatePassages,
    settings: Settings,
) -> Iterator[str]:
    negatives, options = row["negative_segment_ids"], settings.training_data
    ceiling = similarity_ceiling(row["positive_similarities"], options)
    if {*negatives, *row["positive_segment_ids"]} - texts.keys():
        yield "a segment that is not in the corpus"
        return
    mined = row["negative_similarities"][row["labelled_negatives"] :]
    if any(similarity > ceiling + _EPSILON for similarity in mined):
        yield f"a negative above the ceiling (relative_margin {options.relative_margin})"
    if len(set(negatives)) < len(negatives) or len(negatives) > options.num_negatives:
        yield f"repeated negatives or more than num_negatives = {options.num_negatives}"
    if len(negatives) != len(row["negative_similarities"]):
        yield "negatives without a similarity"
    if positives & set(negatives):
        yield "a positive among the negatives"
    elif any(passages.alike(texts[n], texts[p]) for n in negatives[row["labelled_negatives"] :] for p in positives):
        yield "a positive's duplicate among the negatives"
