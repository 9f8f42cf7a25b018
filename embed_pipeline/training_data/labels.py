"""Labels that people made, over the segments of the corpus, and mixed in as pairs.

Files are read by :mod:`embed_pipeline.training_data.label_files`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from embed_pipeline import tables
from embed_pipeline.document_paths import DocumentPaths
from embed_pipeline.enumerations import LABELLED, SIDES, Context, Side
from embed_pipeline.row_files import LabelsError
from embed_pipeline.text.passages import passage_texts, passages_by_id
from embed_pipeline.text.words import overlap
from embed_pipeline.training_data.label_files import LabelSet, RawLabel, read_label_set

logger = logging.getLogger(__name__)

_PATH_PREFIX = "labels"
_BETWEEN_IDS = re.compile(r"[,;|\n]")


@dataclass(frozen=True)
class Label:
    """A labelled question over the segments of the corpus.

    Attributes:
        qa_id: hash of the set's name, the question and its positives.
        label_set: name of the set.
        question: the question.
        positives: segments that answer it, sorted.
        negatives: segments that people say do not, in their order.
        side: None where the set has no split of its own.
    """

    qa_id: str
    label_set: str
    question: str
    positives: list[str]
    negatives: list[str]
    side: Side | None


def with_labelled_passages(
    corpus: pl.DataFrame,
    labelled: Sequence[Path],
    count_tokens: Callable[[Sequence[str]], list[int]],
    context: Context = "none",
) -> pl.DataFrame:
    """The corpus and the passages of the labels: BEIR corpora, and texts named as positive or negative.

    A passage is one document of one segment, whatever its length, at the path ``labels/<set>/<its id>``. A text that is
    already a segment, alone or after its context, is not added again.

    Args:
        corpus: frame of :data:`tables.CORPUS`; it may be empty.
        labelled: the label sets.
        count_tokens: tokens of each text under the encoder's tokenizer, without special tokens.
        context: ``embedding.context``.

    Raises:
        LabelsError: a set cannot be read.
    """
    known = {text.strip() for text in (*corpus["text"], *passage_texts(corpus, context))}
    rows: list[tuple[str, str, str]] = []
    for label_set in _read_label_sets(labelled):
        for path, text in _labelled_passages(label_set):
            if text.strip() and text.strip() not in known:
                known.add(text.strip())
                rows.append((label_set.name, path, text))
    counts = count_tokens([text for _, _, text in rows])
    added = tables.CORPUS.frame(
        [
            {
                "segment_id": hashlib.sha256(path.encode()).hexdigest()[:16],
                "document_id": hashlib.sha256(text.encode()).hexdigest()[:16],
                "path": path,
                "title": "",
                "position": 0,
                "heading_path": "",
                "text": text,
                "token_count": tokens,
                "batch": None,
                "label_set": name,
            }
            for (name, path, text), tokens in zip(rows, counts, strict=True)
        ]
    )
    return pl.concat([corpus, added]).sort("path", "position")


def read_labels(
    labelled: Sequence[Path],
    corpus: pl.DataFrame,
    context: Context = "none",
    *,
    left_out: pl.DataFrame | None = None,
) -> list[Label]:
    """All labels over a corpus that holds their passages.

    An id names a passage of the label's own set, a segment, or the path of a document: then the document's segment
    that shares most content words with the question answers it. The path of a copy that the corpus leaves out stands
    for the document that stayed. What does not exist is left out and counted in the log, and so is a question
    that keeps no positive.

    Args:
        labelled: the label sets.
        corpus: what :func:`with_labelled_passages` returned.
        context: ``embedding.context``: a text of a label may be a segment's as it is embedded.
        left_out: table ``left_out_documents``; None: nothing was left out.

    Raises:
        LabelsError: a set cannot be read, or nothing that one names is in the corpus.
    """
    lookup = _SegmentLookup(corpus, context, left_out)
    labels: list[Label] = []
    for label_set in _read_label_sets(labelled):
        missing: list[str] = []
        found = [lookup.label(label_set, raw, missing) for raw in label_set.labels]
        kept = [label for label in found if label.positives]
        if missing and not kept:
            message = f"{missing[0]}, and nothing else that the labels of {label_set.name} name is in the corpus"
            raise LabelsError(message)
        if missing:
            logger.warning(
                "labels %s: %d passages are not in the corpus and are left out, and %d of %d questions with them; "
                "first %s",
                label_set.name,
                len(missing),
                len(found) - len(kept),
                len(found),
                missing[0],
            )
        labels += kept
    return sorted(_merged(labels), key=lambda label: label.qa_id)


def _merged(labels: Sequence[Label]) -> list[Label]:
    """Labels of one question and the same positives as one, with the negatives of all, on the side that judges most."""
    merged: dict[str, Label] = {}
    moved = 0
    for label in labels:
        known = merged.setdefault(label.qa_id, label)
        sides = {known.side, label.side}
        moved += len(sides) > 1
        merged[label.qa_id] = replace(
            known,
            negatives=list(dict.fromkeys([*known.negatives, *label.negatives])),
            side=next((side for side in reversed(SIDES) if side in sides), None),
        )
    if moved:
        logger.warning("labels: %d are on several sides; those of the test stay there, then those of dev", moved)
    return list(merged.values())


def labelled_pairs(labels: Sequence[Label], corpus: pl.DataFrame) -> pl.DataFrame:
    """Labels as rows of :data:`tables.QA_DATASET`; what a generator or a judge says of a pair is null."""
    documents = dict(corpus.select("segment_id", "document_id").iter_rows())
    return tables.QA_DATASET.frame(
        [
            {
                "qa_id": label.qa_id,
                "origin": LABELLED,
                "batch": None,
                "label_set": label.label_set,
                "side": label.side,
                "question": label.question,
                "answer": None,
                "query_type": None,
                "reasoning_type": None,
                "complexity": None,
                "hop_count": 1,
                "hops": [{"hop_number": 1, "segment_ids": label.positives, "summary": ""}],
                "segment_ids": label.positives,
                "document_ids": sorted({documents[segment] for segment in label.positives}),
                "generator": None,
                "prompt_version": None,
                "overall": None,
                "round_trip_rank": None,
            }
            for label in labels
        ]
    )


def _read_label_sets(labelled: Sequence[Path]) -> Iterator[LabelSet]:
    names: dict[str, Path] = {}
    for path in labelled:
        label_set = read_label_set(path)
        name = re.sub(r"[^\w.-]+", "-", label_set.name)
        if name in names:
            message = f"training_data.label_sets: {names[name]} and {path} are both named {name!r}"
            raise LabelsError(message)
        names[name] = path
        yield LabelSet(name, label_set.labels, label_set.passages)


def _labelled_passages(label_set: LabelSet) -> Iterator[tuple[str, str]]:
    """Path and text of every passage of a set."""
    for key, text in label_set.passages.items():
        yield f"{_PATH_PREFIX}/{label_set.name}/{key}", text
    for label in label_set.labels:
        for text in (*label.positives, *label.negatives):
            yield f"{_PATH_PREFIX}/{label_set.name}/{hashlib.sha256(text.encode()).hexdigest()[:16]}", text


class _SegmentLookup:
    """Finds the segments that labels name: by text, by segment id, by path."""

    def __init__(self, corpus: pl.DataFrame, context: Context, left_out: pl.DataFrame | None) -> None:
        ordered = corpus.sort("path", "position")
        self._texts: dict[str, str] = dict(ordered.select("segment_id", "text").iter_rows())
        self._passages = passages_by_id(ordered, context)
        self._by_text: dict[str, str] = {}
        self._by_path: dict[str, list[str]] = {}
        for segment, path, text in ordered.select("segment_id", "path", "text").iter_rows():
            self._by_text.setdefault(text.strip(), segment)
            self._by_path.setdefault(path, []).append(segment)
        for segment, passage in self._passages.items():
            self._by_text.setdefault(passage.strip(), segment)
        self._documents = DocumentPaths(self._by_path, left_out)

    def label(self, label_set: LabelSet, raw: RawLabel, missing: list[str]) -> Label:
        """The label over segments; what is not in the corpus is added to ``missing``."""
        positives = sorted(set(self._segments(label_set.passages, raw, raw.positives, raw.positive_ids, missing)))
        found = self._segments(label_set.passages, raw, raw.negatives, raw.negative_ids, missing)
        negatives = [segment for segment in dict.fromkeys(found) if segment not in positives]
        identity = "\0".join([label_set.name, raw.question, *positives])
        qa_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return Label(qa_id, label_set.name, raw.question, positives, negatives, raw.side)

    def _segments(
        self,
        passages: Mapping[str, str],
        raw: RawLabel,
        texts: Sequence[str],
        ids: Sequence[str],
        missing: list[str],
    ) -> list[str]:
        named: dict[str, str | None] = {}
        for key in ids:
            named |= self._by_ids(passages, raw, key)
        found = {text: self._by_text.get(text.strip()) for text in texts}
        missing += [
            f"{raw.place}: {key!r} is no passage of the set, no segment and no path of a document"
            for key, segment in named.items()
            if segment is None
        ]
        missing += [
            f"{raw.place}: the passage {text[:80]!r} is not in the corpus"
            for text, segment in found.items()
            if segment is None
        ]
        return [segment for segment in (*named.values(), *found.values()) if segment is not None]

    def _by_ids(self, passages: Mapping[str, str], raw: RawLabel, key: str) -> dict[str, str | None]:
        """An id and its segment; of several ids in one cell, such as ``a.md, b.md``, each where all are known."""
        whole = self._by_id(passages, raw, key)
        parts = [part.strip() for part in _BETWEEN_IDS.split(key) if part.strip()] if whole is None else []
        several = {part: self._by_id(passages, raw, part) for part in parts}
        return several if several and None not in several.values() else {key: whole}

    def _by_id(self, passages: Mapping[str, str], raw: RawLabel, key: str) -> str | None:
        own = passages.get(key, "").strip()
        # An id of ours means that very segment, though others may have the same text.
        if key in self._texts and own in {"", self._texts[key].strip(), self._passages[key].strip()}:
            return key
        if own in self._by_text:
            return self._by_text[own]
        document = self._documents.find(key)
        segments = self._by_path[document] if document else []
        return max(segments, key=lambda segment: overlap(raw.question, self._texts[segment]), default=None)
