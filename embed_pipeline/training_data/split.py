"""Accepted pairs to train, dev and test by document group, with nothing of the test in train."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from embed_pipeline import tables
from embed_pipeline.enumerations import SIDES, SPLITS, Side
from embed_pipeline.settings import Settings, TrainingData
from embed_pipeline.training_data.near_duplicates import join_near_duplicates, near_duplicate_questions

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

LARGEST_GROUP_SHARE = 0.1
"""Multi-hop questions join documents only while the group stays under this share of all documents (or is two)."""
TRAIN, DEV, TEST, HELD_OUT = SPLITS
GIVEN = "given"
# The side of a group that holds documents of several earlier sides: the first of these.
_PRECEDENCE = (TEST, TRAIN, DEV)
_LARGEST_TEST_SHARE = 0.5
_IDS_SHOWN = 3


class SplitError(ValueError):
    """The pairs, the corpus or an earlier split do not fit each other."""


@dataclass(frozen=True)
class _Documents:
    """The corpus, document by document, sorted by path."""

    ids: list[str]
    paths: list[str]
    texts: pl.Series


@dataclass(frozen=True)
class _PlacedPair:
    """A pair, the positions of its documents (distinct, ascending), and the side that its label set gives it."""

    qa_id: str
    question: str
    document_ids: list[str]
    documents: list[int]
    given: Side | None


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
    documents = _read_documents(corpus)
    pairs = _read_pairs(qa, documents)
    earlier = _earlier_sides(previous, documents)
    sets = _group_documents(documents, pairs, earlier, settings)
    sides = _assign([pair for pair in pairs if pair.given is None], documents, sets, earlier, settings)
    names = _group_names(documents, sets)
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
    """The reasons not to train on ``split``, a sentence each; empty: there is none.

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


def _group_documents(
    documents: _Documents, pairs: Sequence[_PlacedPair], earlier: Mapping[int, str], settings: Settings
) -> DisjointSet:
    """Document groups, over the positions of ``documents``.

    Args:
        documents: the corpus.
        pairs: all pairs.
        earlier: position of each document that was on a side in an earlier split, and that side.
        settings: thresholds and the seed.
    """
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet(range(len(documents.ids)))
    join_near_duplicates(documents.texts, settings.training_data.near_duplicate_documents, sets)
    _join_multi_hop(pairs, sets, earlier, settings)
    return sets


def _read_documents(corpus: pl.DataFrame) -> _Documents:
    """The documents whose segments :data:`tables.CORPUS` holds."""
    frame = (
        corpus.sort("path", "document_id", "position")
        .group_by("path", "document_id", maintain_order=True)
        .agg(pl.col("text").str.join(""))
    )
    return _Documents(frame["document_id"].to_list(), frame["path"].to_list(), frame["text"])


def _read_pairs(qa: pl.DataFrame, documents: _Documents) -> list[_PlacedPair]:
    """The pairs of :data:`tables.QA_DATASET`, sorted by id.

    Raises:
        SplitError: a pair names no document, or one that is not in the corpus.
    """
    places = {key: place for place, key in enumerate(documents.ids)}
    pairs = []
    for row in qa.sort("qa_id").iter_rows(named=True):
        missing = [key for key in row["document_ids"] if key not in places]
        if missing or not row["document_ids"]:
            message = f"pair {row['qa_id']!r}: documents {missing or '[]'} are not in the corpus"
            raise SplitError(message)
        own = sorted({places[key] for key in row["document_ids"]})
        ids = [documents.ids[place] for place in own]
        pairs.append(_PlacedPair(row["qa_id"], row["question"], ids, own, row["side"]))
    return pairs


def _group_names(documents: _Documents, sets: DisjointSet) -> dict[int, str]:
    """Root of each group to its id: the hash of its first path, so that edits and new documents rarely rename it."""
    names: dict[int, str] = {}
    for place, path in enumerate(documents.paths):
        names.setdefault(sets[place], hashlib.sha256(path.encode()).hexdigest()[:16])
    return names


def _seeded_number(seed: int, key: str) -> int:
    """A number that depends on the seed and the key alone, to sort by."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big")


def _join_multi_hop(
    pairs: Sequence[_PlacedPair], sets: DisjointSet, earlier: Mapping[int, str], settings: Settings
) -> None:
    """Join the groups of multi-hop questions, those of fewest documents first, while groups stay small.

    Groups that were on different sides never join: a question is worth less than a stable split.
    """
    largest = _largest_group(len(sets))
    held: dict[int, set[str]] = {}
    for place, side in earlier.items():
        held.setdefault(sets[place], set()).add(side)
    multi = [pair for pair in pairs if len(pair.documents) > 1 and pair.given is None]
    for pair in sorted(
        multi, key=lambda pair: (len(pair.documents), _seeded_number(settings.seed, pair.qa_id), pair.qa_id)
    ):
        roots = sorted({sets[place] for place in pair.documents})
        sides = set().union(*(held.get(root, set()) for root in roots))
        if len(roots) < 2 or sum(sets.subset_size(root) for root in roots) > largest or len(sides) > 1:  # noqa: PLR2004 - already joined
            continue
        for root in roots[1:]:
            sets.merge(roots[0], root)
        held[sets[roots[0]]] = sides


def _largest_group(documents: int) -> int:
    """Documents that multi-hop questions may join: the share, at least two, and never over half of a tiny corpus."""
    return min(max(2, int(LARGEST_GROUP_SHARE * documents)), max(1, documents // 2))


def _earlier_sides(previous: pl.DataFrame | None, documents: _Documents) -> dict[int, str]:
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
    pairs: Sequence[_PlacedPair],
    documents: _Documents,
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
    names = _group_names(documents, sets)
    fresh = sorted(
        counts.keys() - sides.keys(), key=lambda root: (_seeded_number(settings.seed, names[root]), names[root])
    )
    for root in fresh:
        sides[root] = _lagging(shares, taken, counts[root])
        taken[sides[root]] += counts[root]
    _assign_leftovers(pairs, sets, sides, shares, taken)
    return sides


def _assign_leftovers(
    pairs: Sequence[_PlacedPair],
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
        if len(known) < 2:  # noqa: PLR2004 - a pair on two sides is held out anyway
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


def _decide(pair: _PlacedPair, sets: DisjointSet, sides: Mapping[int, str]) -> tuple[str, str]:
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
        repeats = near_duplicate_questions(
            [questions[index] for index in of_removed], [questions[index] for index in of_kept], threshold
        )
        for place in repeats:
            decided[of_removed[place]] = (HELD_OUT, f"repeats_{kept}")
    return decided


def _wrong_rows(split: pl.DataFrame, qa: pl.DataFrame) -> list[str]:
    failures = []
    missing = sorted(set(qa["qa_id"]) ^ set(split["qa_id"]))
    if missing:
        failures.append(
            f"pairs in only one of qa_dataset and dataset_split: {len(missing)}, first {missing[:_IDS_SHOWN]}"
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
            counted = f"1 {what} is" if torn.height == 1 else f"{torn.height} {what}s are"
            failures.append(f"{counted} on two sides, first {key!r} on {' and '.join(sides)}")
    return failures


def _leaked_questions(split: pl.DataFrame, threshold: float) -> list[str]:
    train, test = (split.filter(pl.col("split") == side)["question"].to_list() for side in (TRAIN, TEST))
    repeats = near_duplicate_questions(train, test, threshold)
    if not repeats:
        return []
    first = min(repeats)
    example = f"first {train[first]!r} of {test[repeats[first]]!r}"
    counted = "1 train question repeats" if len(repeats) == 1 else f"{len(repeats)} train questions repeat"
    return [f"{counted} a test question or a near-duplicate of one, {example}"]


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
