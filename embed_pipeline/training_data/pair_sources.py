"""All pairs that the dataset is made of: generated, from the documents' structure, labelled."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import polars as pl

from embed_pipeline import tables
from embed_pipeline.enumerations import Augmentation
from embed_pipeline.settings import Settings
from embed_pipeline.text.words import content_words, sentences
from embed_pipeline.training_data.labels import labelled_pairs, read_labels
from embed_pipeline.training_data.near_duplicates import normalise_question

_LEAST_CONTENT_WORDS = 2
_CROP_WORDS = (6, 30)
_LINK = re.compile(r"(?<!!)\[([^\]\[]{3,120})\]\(([^()\s#]{1,400})(?:#[^()\s]{0,400})?\)")
_HEADING_SEPARATOR = " > "


@dataclass(frozen=True)
class StructurePair:
    """A text that stands for a question, and the segment that it belongs to."""

    origin: Augmentation
    question: str
    segment_id: str


@dataclass(frozen=True, slots=True)
class _Segment:
    """A segment; its text is one of a series, and becomes a string when it is asked for."""

    segment_id: str
    heading_path: str
    long_enough: bool
    texts: pl.Series
    place: int

    @property
    def text(self) -> str:
        return str(self.texts[self.place])


@dataclass(frozen=True)
class _Document:
    """A document and its segments in order."""

    path: str
    title: str
    segments: list[_Segment]

    @property
    def opening(self) -> _Segment | None:
        """The first segment that is long enough to answer anything."""
        return next((segment for segment in self.segments if segment.long_enough), None)


def structure_pairs(corpus: pl.DataFrame, origins: Sequence[Augmentation], least_tokens: int) -> list[StructurePair]:
    """Pairs of the wanted origins; a text that leads to two segments, or says less than two words, is none.

    Args:
        corpus: frame of :data:`tables.CORPUS`, of the documents that may be used.
        origins: which kinds; kinds that do not come from structure are passed over.
        least_tokens: shorter segments answer nothing.

    Returns:
        The pairs in the order of ``origins``, within each by path and position.
    """
    documents = list(_documents(corpus, least_tokens))
    makers: dict[str, Callable[[list[_Document]], Iterator[StructurePair]]] = {
        "title": _titles,
        "heading": _headings,
        "link": _links,
        "crop": _crops,
    }
    found = [pair for origin in origins if origin in makers for pair in makers[origin](documents)]
    targets: dict[str, str | None] = {}
    for pair in found:
        asked = normalise_question(pair.question)
        targets[asked] = pair.segment_id if targets.get(asked, pair.segment_id) == pair.segment_id else None
    chosen: dict[str, StructurePair] = {}
    for pair in found:
        asked = normalise_question(pair.question)
        if targets[asked] is not None and len(set(content_words(pair.question))) >= _LEAST_CONTENT_WORDS:
            chosen.setdefault(asked, pair)
    return list(chosen.values())


def _documents(corpus: pl.DataFrame, least_tokens: int) -> Iterator[_Document]:
    ordered = corpus.sort("path", "document_id", "position")
    rows = enumerate(
        ordered.select("path", "document_id", "title", "segment_id", "heading_path", "token_count").iter_rows()
    )
    for (path, _), group in groupby(rows, key=lambda placed: placed[1][:2]):
        own = list(group)
        yield _Document(
            path,
            own[0][1][2],
            [
                _Segment(segment_id, heading_path, tokens >= least_tokens, ordered["text"], place)
                for place, (*_, segment_id, heading_path, tokens) in own
            ],
        )


def _titles(documents: list[_Document]) -> Iterator[StructurePair]:
    for document in documents:
        if document.opening is not None:
            yield StructurePair("title", document.title, document.opening.segment_id)


def _headings(documents: list[_Document]) -> Iterator[StructurePair]:
    """A heading, or where several sections share it (``Usage``) the heading after its document's title."""
    sections = [
        (document, path, segment)
        for document in documents
        for path, segment in _first_of_sections(document).items()
        if path and path != document.title
    ]
    leaves = Counter(path.rsplit(_HEADING_SEPARATOR, 1)[-1].lower() for _, path, _ in sections)
    for document, path, segment in sections:
        leaf = path.rsplit(_HEADING_SEPARATOR, 1)[-1]
        alone = leaves[leaf.lower()] == 1 and len(set(content_words(leaf))) >= _LEAST_CONTENT_WORDS
        yield StructurePair("heading", leaf if alone else f"{document.title}: {leaf}", segment.segment_id)


def _first_of_sections(document: _Document) -> dict[str, _Segment]:
    first: dict[str, _Segment] = {}
    for segment in document.segments:
        if segment.long_enough:
            first.setdefault(segment.heading_path, segment)
    return first


def _links(documents: list[_Document]) -> Iterator[StructurePair]:
    by_path = {document.path: document for document in documents}
    by_stem = {posixpath.splitext(path)[0]: document for path, document in by_path.items()}
    for document in documents:
        for segment in document.segments:
            for text, target in _LINK.findall(segment.text):
                place = _resolve(document.path, target)
                found = by_path.get(place) or by_stem.get(posixpath.splitext(place)[0])
                if found is not None and found is not document and found.opening is not None:
                    yield StructurePair("link", " ".join(text.split()), found.opening.segment_id)


def _resolve(source: str, target: str) -> str:
    """A relative link as a path below the documents folder."""
    base = "" if target.startswith("/") else posixpath.dirname(source)
    return posixpath.normpath(posixpath.join(base, target.lstrip("/")))


def _crops(documents: list[_Document]) -> Iterator[StructurePair]:
    """The sentence with the most distinct content words of each segment, not too long to be asked."""
    least, most = _CROP_WORDS
    for document in documents:
        for segment in document.segments:
            fitting = [s for s in sentences(segment.text) if least <= len(s.split()) <= most]
            if segment.long_enough and fitting:
                best = max(fitting, key=lambda sentence: len(set(content_words(sentence))))
                yield StructurePair("crop", best, segment.segment_id)


def collect_pairs(
    generated: pl.DataFrame, corpus: pl.DataFrame, settings: Settings, left_out: pl.DataFrame | None = None
) -> pl.DataFrame:
    """The pairs of every source that ``training_data.sources`` and ``training_data.label_sets`` name.

    Args:
        generated: accepted generated pairs, frame of :data:`tables.QA_DATASET`.
        corpus: frame of :data:`tables.CORPUS`, labelled passages in it.
        settings: the sources.
        left_out: frame of :data:`tables.LEFT_OUT_DOCUMENTS`; None: nothing was left out.

    Returns:
        Frame of :data:`tables.QA_DATASET`, sorted by qa_id.

    Raises:
        LabelsError: labels cannot be read, or name what is not in the corpus.
    """
    options = settings.training_data
    frames = [tables.QA_DATASET.empty()]
    if options.generates:
        frames.append(generated)
    if "structure" in options.sources:
        frames.append(structural_pairs(corpus, settings))
    if options.label_sets:
        labels = read_labels(options.label_sets, corpus, settings.embedding.context, left_out=left_out)
        frames.append(labelled_pairs(labels, corpus))
    return tables.validate(pl.concat(frames).sort("qa_id"), tables.QA_DATASET)


def labels_version(settings: Settings) -> str:
    """Short hash of which labels there are: names, sizes and times of their files, whose texts are not read."""
    found = []
    for given in settings.training_data.label_sets:
        files = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        stats = [(path, path.stat()) for path in files if path.exists()]
        found.append([str(given), *((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


def structural_pairs(corpus: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Structure pairs as rows of :data:`tables.QA_DATASET`; the kinds are those of ``training_data.augmentations``.

    What a generator or a judge says of a pair is null.
    """
    place = {row[0]: row[1:] for row in corpus.select("segment_id", "document_id", "text").iter_rows()}
    found = structure_pairs(corpus, settings.training_data.augmentations, settings.corpus.min_segment_tokens)
    rows: list[dict[str, object]] = []
    for pair in found:
        document, text = place[pair.segment_id]
        identity = f"{pair.origin}\0{pair.question}\0{pair.segment_id}"
        rows.append(
            {
                "qa_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
                "origin": pair.origin,
                "batch": None,
                "label_set": None,
                "side": None,
                "question": pair.question,
                "answer": text,
                "query_type": None,
                "reasoning_type": None,
                "complexity": None,
                "hop_count": 1,
                "hops": [{"hop_number": 1, "segment_ids": [pair.segment_id], "summary": ""}],
                "segment_ids": [pair.segment_id],
                "document_ids": [document],
                "generator": None,
                "prompt_version": None,
                "overall": None,
                "round_trip_rank": None,
            }
        )
    return tables.QA_DATASET.frame(rows)
