"""Documents that belong together: near-duplicates always, those of a multi-hop question while the group stays small."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from embed_pipeline.enumerations import Side
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.near_duplicates import join_near_duplicates

if TYPE_CHECKING:
    from scipy.cluster.hierarchy import DisjointSet

LARGEST_GROUP = 0.1
"""Multi-hop questions join documents only while the group stays under this share of all documents (or is two)."""


class SplitError(ValueError):
    """The pairs, the corpus or an earlier split do not fit each other."""


@dataclass(frozen=True)
class Documents:
    """The corpus, document by document, sorted by path."""

    ids: list[str]
    paths: list[str]
    texts: list[str]


@dataclass(frozen=True)
class PlacedPair:
    """A pair, the positions of its documents (distinct, ascending), and the side that its label set gives it."""

    qa_id: str
    question: str
    document_ids: list[str]
    documents: list[int]
    given: Side | None


def group_documents(
    documents: Documents, pairs: Sequence[PlacedPair], earlier: Mapping[int, str], settings: Settings
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


def read_documents(corpus: pl.DataFrame) -> Documents:
    """Put the segments of :data:`tables.CORPUS` together again."""
    frame = (
        corpus.sort("path", "document_id", "position")
        .group_by("path", "document_id", maintain_order=True)
        .agg(pl.col("text").str.join(""))
    )
    return Documents(frame["document_id"].to_list(), frame["path"].to_list(), frame["text"].to_list())


def read_pairs(qa: pl.DataFrame, documents: Documents) -> list[PlacedPair]:
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
        pairs.append(PlacedPair(row["qa_id"], row["question"], ids, own, row["side"]))
    return pairs


def group_names(documents: Documents, sets: DisjointSet) -> dict[int, str]:
    """Root of each group to its id: the hash of its first path, so that edits and new documents rarely rename it."""
    names: dict[int, str] = {}
    for place, path in enumerate(documents.paths):
        names.setdefault(sets[place], hashlib.sha256(path.encode()).hexdigest()[:16])
    return names


def draw(seed: int, key: str) -> int:
    """A number that only the seed and the key decide."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big")


def _join_multi_hop(
    pairs: Sequence[PlacedPair], sets: DisjointSet, earlier: Mapping[int, str], settings: Settings
) -> None:
    """Join the groups of multi-hop questions, those of fewest documents first, while groups stay small.

    Groups that were on different sides never join: a question is worth less than a stable split.
    """
    largest = _largest_group(len(sets))
    held: dict[int, set[str]] = {}
    for place, side in earlier.items():
        held.setdefault(sets[place], set()).add(side)
    multi = [pair for pair in pairs if len(pair.documents) > 1 and pair.given is None]
    for pair in sorted(multi, key=lambda pair: (len(pair.documents), draw(settings.seed, pair.qa_id), pair.qa_id)):
        roots = sorted({sets[place] for place in pair.documents})
        sides = set().union(*(held.get(root, set()) for root in roots))
        if len(roots) < 2 or sum(sets.subset_size(root) for root in roots) > largest or len(sides) > 1:  # noqa: PLR2004 - joined already
            continue
        for root in roots[1:]:
            sets.merge(roots[0], root)
        held[sets[roots[0]]] = sides


def _largest_group(documents: int) -> int:
    """Documents that multi-hop questions may join: the share, at least two, and never over half of a tiny corpus."""
    return min(max(2, int(LARGEST_GROUP * documents)), max(1, documents // 2))
