"""What to ask of which segments: single-hop tasks for each, multi-hop tasks along the graph of neighbours."""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline.settings import Settings, Synthesis
from embed_pipeline.synthesis.coverage import ASKED, askable_segments
from embed_pipeline.synthesis.example_queries import ExampleQueries
from embed_pipeline.text.injections import remove_instructions
from embed_pipeline.text.words import content_words

Item = TypeVar("Item")
STRUCTURAL_SHARE = 0.25
"""Share of the single-hop questions that ask how parts relate (steps, options, what belongs to what)."""
_CANDIDATES = 16
_CLOSEST = 0.90
_FARTHEST = 0.35
_FARTHEST_WITH_ENTITY = 0.20
_ENTITY_BONUS = 0.05
_MOST_SHARED_BY = 8
_MOST_HEADING_WORDS = 6


@dataclass(frozen=True)
class Source:
    """A segment as a generator sees it, with instructions to models removed from its text.

    Attributes:
        segment_id: the segment.
        document_id: its document.
        title: headings above it, or the document's title.
        text: what it says.
        artifacts: what the artifact pass found in it.
        asked: questions are asked about it; else it can only be joined to others.
    """

    segment_id: str
    document_id: str
    title: str
    text: str
    artifacts: tuple[str, ...] = ()
    asked: bool = True

    @property
    def heading(self) -> str:
        """The innermost heading of the title."""
        return self.title.rsplit(" > ", 1)[-1]


@dataclass(frozen=True)
class QuestionSpec:
    """What one question should be like."""

    query_type: str
    reasoning_type: str
    style: str
    complexity: int


@dataclass(frozen=True)
class QuestionTask:
    """Segments that questions join (one: a single hop), a spec for each question, and a seed for sampling.

    ``shared``: names that neighbours on the path of several segments have in common.
    """

    sources: tuple[Source, ...]
    specs: tuple[QuestionSpec, ...]
    seed: int
    shared: tuple[str, ...] = ()


def askable_sources(
    segments: pl.DataFrame, titles: Mapping[str, str], artifacts: pl.DataFrame, settings: Settings
) -> list[Source]:
    """The segments of :func:`askable_segments` as sources, without those that are all instructions to models.

    Args:
        segments: frame of :data:`tables.SEGMENTS`; all are asked about where it has no column :data:`ASKED`.
        titles: document id to title.
        artifacts: frame of :data:`tables.DOCUMENT_ARTIFACTS`.
        settings: ``corpus.min_segment_tokens`` is the least length.
    """
    found: dict[str, list[str]] = {}
    for text, places in artifacts.sort("kind", "text").select("text", "segment_ids").iter_rows():
        for segment in places:
            found.setdefault(segment, []).append(text)
    sources = (
        Source(
            row["segment_id"],
            row["document_id"],
            remove_instructions(row["heading_path"] or titles[row["document_id"]]),
            remove_instructions(row["text"]),
            tuple(dict.fromkeys(found.get(row["segment_id"], ()))),
            row.get(ASKED, True),
        )
        for row in askable_segments(segments, settings).iter_rows(named=True)
    )
    return [source for source in sources if source.text.strip()]


def plan_single_hop(sources: Sequence[Source], settings: Settings) -> list[QuestionTask]:
    """A task for each segment that gets questions, in the order of the segments.

    The shares of types and styles hold document by document, up to rounding. What is asked about a segment does not
    depend on which others are asked about.

    Raises:
        ExampleQueriesError: ``synthesis.example_queries`` cannot be read.
    """
    styles = _wanted_styles(settings)
    by_document: dict[str, list[Source]] = {}
    for source in sources:
        by_document.setdefault(source.document_id, []).append(source)
    tasks = []
    for document, members in by_document.items():
        counts = _spread(members, settings.synthesis)
        specs = iter(_specs(document, sum(counts), settings, styles))
        for source, count in zip(members, counts, strict=True):
            if count:
                mine = tuple(next(specs) for _ in range(count))
                if source.asked:
                    tasks.append(QuestionTask((source,), mine, _seed(settings.seed, (source,))))
    return tasks


def work_order(items: Sequence[Item], seed: int) -> list[Item]:
    """A seeded order to work in, so that progress and early stops are representative."""
    ordered = list(items)
    random.Random(f"{seed} work order").shuffle(ordered)  # noqa: S311 - an order, no secret
    return ordered


def multi_hop_count(single_hop: Sequence[QuestionTask], synthesis: Synthesis) -> int:
    """Multi-hop questions wanted: ``multi_hop_share`` of the number of single-hop ones; none where hops are off."""
    if synthesis.max_hops == 1:
        return 0
    return round(synthesis.multi_hop_share * sum(len(task.specs) for task in single_hop))


def plan_multi_hop(
    sources: Sequence[Source], vectors: NDArray[np.float32], wanted: int, settings: Settings
) -> list[QuestionTask]:
    """Choose paths of two to ``synthesis.max_hops`` segments in the neighbour graph.

    Args:
        sources: the segments.
        vectors: their unit vectors, shape (len(sources), d).
        wanted: how many, :func:`multi_hop_count`.
        settings: shares, hop limit and seed.

    Returns:
        A task each, fewer than wanted where few neighbours share a rare name; up to ``cross_document_share`` of them
        join different documents.
    """
    synthesis = settings.synthesis
    if wanted == 0 or len(sources) < 2:  # noqa: PLR2004 - two make a pair
        return []
    graph = find_neighbours(vectors, names_of(sources))
    chance = random.Random(f"{settings.seed} multi-hop")  # noqa: S311 - sampling, no secret
    order = list(range(len(sources)))
    chance.shuffle(order)
    specs = _specs("multi-hop", wanted, settings, _wanted_styles(settings), multi_hop=True)
    crossing = _sample({"across": synthesis.cross_document_share, "within": 1 - synthesis.cross_document_share}, wanted)
    tasks: dict[tuple[str, ...], QuestionTask] = {}
    for first in order:
        if len(tasks) == wanted:
            break
        across = crossing[len(tasks)] == "across"
        path, shared = _walk(first, chance.randint(2, synthesis.max_hops), graph, sources, vectors, across=across)
        if len(path) > 1:
            members = tuple(sources[index] for index in path)
            # Segments under the same headings would be joined by much the same question.
            key = tuple(sorted(member.title for member in members))
            task = QuestionTask(members, (specs[len(tasks)],), _seed(settings.seed, members), shared)
            tasks.setdefault(key, task)
    return list(tasks.values())


def _walk(
    first: int,
    hops: int,
    graph: list[list[Neighbour]],
    sources: Sequence[Source],
    vectors: NDArray[np.float32],
    *,
    across: bool,
) -> tuple[list[int], tuple[str, ...]]:
    """A path from ``first`` over closest neighbours that share a name, and the names that all of it shares.

    ``across``: into other documents where possible. Where there is a choice, each segment has another heading, so that
    a question can tell them apart.
    """
    path = [first]
    shared: set[str] = set()
    while len(path) < hops:
        common = {edge.index: shared & set(edge.shared) if shared else set(edge.shared) for edge in graph[path[-1]]}
        open_ends = [
            index
            for index, names in common.items()
            if names and index not in path and not any(near_duplicate(vectors, index, seen) for seen in path)
        ]
        documents = {sources[index].document_id for index in path}
        headings = {sources[index].heading for index in path}
        placed = [index for index in open_ends if (sources[index].document_id not in documents) == across] or open_ends
        apart = [index for index in placed if sources[index].heading not in headings]
        if not open_ends:
            break
        path.append((apart or placed)[0])
        shared = common[path[-1]]
    return path, tuple(sorted(shared))


def names_of(sources: Sequence[Source]) -> list[list[str]]:
    """What each segment names: its artifacts, its heading, and the headings of others that its text or links say."""
    headings = {tuple(content_words(source.heading)): source.heading for source in sources}
    headings.pop((), None)
    longest = min(_MOST_HEADING_WORDS, max(map(len, headings), default=0))
    found = []
    for source in sources:
        said = content_words(source.text)
        runs = (tuple(said[start : start + length]) for length in range(1, longest + 1) for start in range(len(said)))
        mentioned = {headings[run] for run in runs if run in headings}
        found.append([*source.artifacts, source.heading, *sorted(mentioned)])
    return found


def _spread(members: Sequence[Source], synthesis: Synthesis) -> list[int]:
    """How many questions each segment of a document gets: the first ones one more where it does not divide evenly."""
    if synthesis.questions_per_document is None:
        return [synthesis.questions_per_segment] * len(members)
    each, over = divmod(synthesis.questions_per_document, len(members))
    richest = sorted(range(len(members)), key=lambda index: (-len(members[index].artifacts), index))[:over]
    return [each + (index in richest) for index in range(len(members))]


def _wanted_styles(settings: Settings) -> dict[str, float]:
    """Weights of the styles: as set, or steered by people's queries."""
    styles, examples = dict(settings.synthesis.styles), ExampleQueries.of(settings)
    return styles if examples is None else examples.steer(styles)


def _specs(
    name: str, count: int, settings: Settings, styles: Mapping[str, float], *, multi_hop: bool = False
) -> list[QuestionSpec]:
    """As many specs, their types in the shares that the settings ask for, styles as given, in a seeded order."""
    synthesis = settings.synthesis
    low, high = synthesis.min_complexity, synthesis.max_complexity
    shares: dict[str, dict[str, float]] = {
        "query": {"structural": STRUCTURAL_SHARE, "contextual": 1 - STRUCTURAL_SHARE},
        "reasoning": dict(synthesis.reasoning_types),
        "style": dict(styles),
        "complexity": {str(level): 1.0 for level in range(max(low, 2) if multi_hop and high > 1 else low, high + 1)},
    }
    if multi_hop:
        shares["query"] = {"multi_hop": 1.0}
    columns = []
    for column, weights in shares.items():
        chance = random.Random(f"{settings.seed} {name} {column}")  # noqa: S311 - sampling, no secret
        values = _sample(weights, count, chance.random())
        chance.shuffle(values)
        columns.append(values)
    return [
        QuestionSpec(query, reasoning, style, int(level))
        for query, reasoning, style, level in zip(*columns, strict=True)
    ]


def _sample(weights: Mapping[str, float], count: int, offset: float = 0.5) -> list[str]:
    """Systematic sampling: each name as often as its share says, rounded down or up, by where the offset falls."""
    total = sum(weights.values())
    picked: list[str] = []
    reached = 0.0
    for name, weight in weights.items():
        reached += weight / total * count
        while len(picked) < count and len(picked) + offset < reached:
            picked.append(name)
    # Rounding may leave the last place open.
    return picked + [name for name, weight in weights.items() if weight][-1:] * (count - len(picked))


def _seed(seed: int, sources: Sequence[Source]) -> int:
    said = "\0".join(part for source in sources for part in (source.title, source.text))
    return int.from_bytes(hashlib.sha256(f"{seed}\0{said}".encode()).digest()[:4]) & 0x7FFFFFFF


@dataclass(frozen=True)
class Neighbour:
    """An edge of the graph.

    Attributes:
        index: the other segment.
        weight: cosine, and a bonus for every rare entity that both name.
        shared: those entities.
    """

    index: int
    weight: float
    shared: tuple[str, ...]


def find_neighbours(vectors: NDArray[np.float32], entities: Sequence[Sequence[str]]) -> list[list[Neighbour]]:
    """Neighbours of every segment, closest first, equal ones by index.

    Args:
        vectors: unit vectors of the segments, shape (n, d).
        entities: what each segment names.
    """
    from embed_pipeline.embedding.search import search

    if not len(vectors):
        return []
    shared = _shared_entities(entities)
    hits = search(np.ascontiguousarray(vectors), np.ascontiguousarray(vectors), min(_CANDIDATES + 1, len(vectors)))
    graph = []
    for row in range(len(vectors)):
        others = {int(other) for other in hits.indices[row]} | shared[row].keys()
        others.discard(row)
        found = []
        for other in sorted(others):
            cosine = float(vectors[row] @ vectors[other])
            common = tuple(sorted(shared[row].get(other, ())))
            if (_FARTHEST_WITH_ENTITY if common else _FARTHEST) <= cosine < _CLOSEST:
                found.append(Neighbour(other, cosine + _ENTITY_BONUS * math.log2(1 + len(common)), common))
        graph.append(sorted(found, key=lambda edge: (-edge.weight, edge.index))[:_CANDIDATES])
    return graph


def near_duplicate(vectors: NDArray[np.float32], first: int, second: int) -> bool:
    """True where two segments have nearly the same meaning."""
    return float(vectors[first] @ vectors[second]) >= _CLOSEST


def _shared_entities(entities: Sequence[Sequence[str]]) -> list[dict[int, set[str]]]:
    """For each segment, the others that name an entity which at most eight name."""
    places: dict[str, list[int]] = defaultdict(list)
    for index, names in enumerate(entities):
        for name in sorted({" ".join(name.lower().split()) for name in names}):
            places[name].append(index)
    shared: list[dict[int, set[str]]] = [defaultdict(set) for _ in entities]
    for name, indices in places.items():
        if 1 < len(indices) <= _MOST_SHARED_BY:
            for first in indices:
                for second in indices:
                    if first != second:
                        shared[first][second].add(name)
    return shared
