"""Accepted pairs to train, dev and test, with nothing of the test in train.

Documents of near-duplicate text are one group always. Multi-hop questions join their documents' groups too, but on a
small corpus they would join everything into one: so they do only while the group stays small. A question whose
documents are then in several groups is used where these are all on one side, and is held out where they are not.

A document keeps its side from one split to the next, by its path or its text. Only a group can move it: one with a
test document in it is on the test side, whatever it was before.

Labels that bring their own split keep it, question by question: they put no document on a side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl

from embed_pipeline import tables
from embed_pipeline.enumerations import SIDES, SPLITS
from embed_pipeline.settings import Settings, TrainingData
from embed_pipeline.training_data.document_groups import (
    Documents,
    PlacedPair,
    draw,
    group_documents,
    group_names,
    read_documents,
    read_pairs,
)
from embed_pipeline.training_data.near_duplicates import near_duplicate_questions

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

TRAIN, DEV, TEST, HELD_OUT = SPLITS
GIVEN = "given"
# What a group that holds documents of several earlier sides becomes: the first of these.
_PRECEDENCE = (TEST, TRAIN, DEV)
_LARGEST_TEST_SHARE = 0.5
_SHOWN = 3


def split_dataset(
    qa: pl.DataFrame, corpus: pl.DataFrame, settings: Settings, previous: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Put every pair on a side, whole document groups at a time.

    New groups come in an order that the seed decides, each to the side that lags most behind its share of the pairs
    (by far the commonest case gives the shares within one group's pairs). Row order changes nothing.

    Args:
        qa: frame of :data:`tables.QA_DATASET`.
        corpus: frame of :data:`tables.CORPUS`.
        settings: shares, thresholds and the seed.
        previous: the earlier frame of :data:`tables.DATASET_SPLIT`; None: there is none.

    Returns:
        Frame of :data:`tables.DATASET_SPLIT`, a row for each pair, sorted by qa_id.

    Raises:
        SplitError: a pair names a document that is not in the corpus.
    """
    documents = read_documents(corpus)
    pairs = read_pairs(qa, documents)
    earlier = _earlier_sides(previous, documents)
    sets = group_documents(documents, pairs, earlier, settings)
    sides = _assign([pair for pair in pairs if pair.given is None], documents, sets, earlier, settings)
    names = group_names(documents, sets)
    decisions = [_decide(pair, sets, sides) for pair in pairs]
    decisions = _hold_out_repeats(
        [pair.question for pair in pairs], decisions, settings.training_data.near_duplicate_questions
    )
    return tables.DATASET_SPLIT.frame(
        [
            {
                "qa_id": pair.qa_id,
                "question": pair.question,
                "document_ids": pair.document_ids,
                "paths": [documents.paths[place] for place in pair.documents],
                "group_id": names[roots.pop()] if len(roots := {sets[d] for d in pair.documents}) == 1 else "",
                "split": side,
                "reason": reason,
            }
            for pair, (side, reason) in zip(pairs, decisions, strict=True)
        ]
    )


def split_failures(split: pl.DataFrame, qa: pl.DataFrame, settings: Settings) -> list[str]:
    """Everything that forbids training on ``split``, a sentence each; empty: nothing does.

    Args:
        split: frame of :data:`tables.DATASET_SPLIT`.
        qa: frame of :data:`tables.QA_DATASET` that was split.
        settings: thresholds and the least number of test questions.
    """
    return [
        *_wrong_rows(split, qa),
        *_on_two_sides(split),
        *_leaked_questions(split, settings.training_data.near_duplicate_questions),
        *_too_few(split, settings),
    ]


def interval_half_width(questions: int) -> float:
    """Greatest half-width of the 95 % interval of a mean of ``questions`` values between 0 and 1 (as nDCG is).

    The values' standard deviation is at most 0.5; the normal approximation gives 1.96 * 0.5 / sqrt(n). Paired
    differences vary less.
    """
    return 1.96 * 0.5 / math.sqrt(questions) if questions else 1.0


def _earlier_sides(previous: pl.DataFrame | None, documents: Documents) -> dict[int, str]:
    """Position of each document that was on a side, by its path or else by its text, and that side."""
    by_path: dict[str, str] = {}
    by_id: dict[str, str] = {}
    if previous is not None:
        placed = pl.col("split").is_in(SIDES) & (pl.col("reason") != GIVEN)
        for row in previous.filter(placed).sort("qa_id").iter_rows(named=True):
            by_path.update(dict.fromkeys(row["paths"], row["split"]))
            by_id.update(dict.fromkeys(row["document_ids"], row["split"]))
    sides = {
        place: by_path.get(path) or by_id.get(key)
        for place, (path, key) in enumerate(zip(documents.paths, documents.ids, strict=True))
    }
    return {place: side for place, side in sides.items() if side is not None}


def _assign(
    pairs: Sequence[PlacedPair],
    documents: Documents,
    sets: DisjointSet,
    earlier: Mapping[int, str],
    settings: Settings,
) -> dict[int, str]:
    """Side of every group (by its root) that has a pair or an earlier side."""
    counts: dict[int, int] = {}
    for pair in pairs:
        roots = {sets[place] for place in pair.documents}
        if len(roots) == 1:
            root = roots.pop()
            counts[root] = counts.get(root, 0) + 1
    sides: dict[int, str] = {}
    for place, side in earlier.items():
        root = sets[place]
        sides[root] = min(side, sides.get(root, side), key=_PRECEDENCE.index)
    taken: dict[str, int] = dict.fromkeys(SIDES, 0)
    for root, side in sides.items():
        taken[side] += counts.get(root, 0)
    shares = _shares(sum(counts.values()), settings.training_data)
    names = group_names(documents, sets)
    fresh = sorted(counts.keys() - sides.keys(), key=lambda root: (draw(settings.seed, names[root]), names[root]))
    for root in fresh:
        sides[root] = _lagging(shares, taken, counts[root])
        taken[sides[root]] += counts[root]
    _assign_leftovers(pairs, sets, sides, shares, taken)
    return sides


def _assign_leftovers(
    pairs: Sequence[PlacedPair],
    sets: DisjointSet,
    sides: dict[int, str],
    shares: Mapping[str, float],
    taken: dict[str, int],
) -> None:
    """Groups that only questions over several groups ask about follow the side of the others in the question."""
    for pair in pairs:
        roots = {sets[place] for place in pair.documents}
        if roots <= sides.keys():
            continue
        known = {sides[root] for root in roots if root in sides}
        if len(known) < 2:  # noqa: PLR2004 - on two sides it is lost already
            side = known.pop() if known else _lagging(shares, taken, 1)
            sides.update(dict.fromkeys(roots - sides.keys(), side))
            taken[side] += 1


def _lagging(shares: Mapping[str, float], taken: Mapping[str, int], pairs: int) -> str:
    """The side most behind its share once ``pairs`` more are placed."""
    after = sum(taken.values()) + pairs
    return max(SIDES, key=lambda side: shares[side] * after - taken[side])


def _shares(pairs: int, options: TrainingData) -> dict[str, float]:
    """The share of the pairs that each side is to have; a small set gives the test its minimum, up to half."""
    least = min(_LARGEST_TEST_SHARE, (options.min_test_questions + 1) / max(pairs, 1))
    test = max(options.test_share, least)
    dev = min(options.dev_share, (1 - test) / 2)
    return {TRAIN: 1 - test - dev, DEV: dev, TEST: test}


def _decide(pair: PlacedPair, sets: DisjointSet, sides: Mapping[int, str]) -> tuple[str, str]:
    """Side of a pair, and why it is on none, or on one whatever its documents."""
    if pair.given is not None:
        return pair.given, GIVEN
    found = {sides[root] for root in {sets[place] for place in pair.documents} if root in sides}
    return (found.pop(), "") if len(found) == 1 else (HELD_OUT, "spans_sides")


def _hold_out_repeats(
    questions: Sequence[str], decisions: Sequence[tuple[str, str]], threshold: float
) -> list[tuple[str, str]]:
    """Hold out what repeats a question of the test (from train and dev), then of dev (from train)."""
    decided = list(decisions)
    for kept, removed in ((TEST, (TRAIN, DEV)), (DEV, (TRAIN,))):
        of_kept = [index for index, (side, _) in enumerate(decided) if side == kept]
        of_removed = [index for index, (side, _) in enumerate(decided) if side in removed]
        twins = near_duplicate_questions(
            [questions[index] for index in of_removed], [questions[index] for index in of_kept], threshold
        )
        for place in twins:
            decided[of_removed[place]] = (HELD_OUT, f"repeats_{kept}")
    return decided


def _wrong_rows(split: pl.DataFrame, qa: pl.DataFrame) -> list[str]:
    failures = []
    missing = sorted(set(qa["qa_id"]) ^ set(split["qa_id"]))
    if missing:
        failures.append(
            f"{len(missing)} pairs are in one of qa_dataset and dataset_split alone, first {missing[:_SHOWN]}"
        )
    return failures


def _on_two_sides(split: pl.DataFrame) -> list[str]:
    failures = []
    used = split.filter(pl.col("split").is_in(SIDES) & (pl.col("reason") != GIVEN))
    for what, column in (("document group", "group_id"), ("document", "document_ids"), ("file", "paths")):
        keyed = used.explode(column) if used[column].dtype == pl.List else used.filter(pl.col(column) != "")
        torn = keyed.group_by(column).agg(pl.col("split").unique().sort()).filter(pl.col("split").list.len() > 1)
        if torn.height:
            key, sides = torn.sort(column).row(0)
            failures.append(f"{torn.height} of {what}s are on two sides, first {key!r} on {' and '.join(sides)}")
    return failures


def _leaked_questions(split: pl.DataFrame, threshold: float) -> list[str]:
    train, test = (split.filter(pl.col("split") == side)["question"].to_list() for side in (TRAIN, TEST))
    twins = near_duplicate_questions(train, test, threshold)
    if not twins:
        return []
    first = min(twins)
    example = f"first {train[first]!r} of {test[twins[first]]!r}"
    return [f"{len(twins)} train questions are test questions or near-duplicates of one, {example}"]


def _too_few(split: pl.DataFrame, settings: Settings) -> list[str]:
    options = settings.training_data
    counts = Counter(split["split"].to_list())
    failures = []
    if not counts[TRAIN]:
        failures.append("no question is on the train side")
    least = options.min_test_questions
    if counts[TEST] < least:
        largest = split.filter(pl.col("group_id") != "").group_by("group_id").len().sort("len", "group_id")[
            "len"
        ].to_list()[-1:] or [0]
        failures.append(
            f"{counts[TEST]} test questions, below training_data.min_test_questions = {least} (which gives mean nDCG "
            f"an interval of at most ±{interval_half_width(least):.2f}); of {split.height} pairs the largest document "
            f"group holds {largest[0]}: more or smaller documents, or more accepted pairs, give more"
        )
    return failures
