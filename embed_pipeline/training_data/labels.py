"""Labels that people made, as pairs beside the generated ones or in their place.

Labels become rows of ``qa_dataset``, so that split, mining, training and evaluation treat them as any other pair. Where
a label set has a split of its own, that split is respected, question by question, even where a document answers
questions of several sides.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from embed_pipeline import tables
from embed_pipeline.beir import LabelsError
from embed_pipeline.enumerations import LABELLED, Side
from embed_pipeline.synthesis.words import overlap
from embed_pipeline.training_data.label_files import LabelSet, RawLabel, read_label_set

_FOLDER = "labels"


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
    corpus: pl.DataFrame, labelled: Sequence[Path], count_tokens: Callable[[Sequence[str]], list[int]]
) -> pl.DataFrame:
    """The corpus and the passages that labels bring along: BEIR corpora, and texts named as positive or negative.

    A passage is one document of one segment, whatever its length, at the path ``labels/<set>/<its id>``. A text that is
    a segment already is not added again.

    Args:
        corpus: frame of :data:`tables.CORPUS`; it may be empty.
        labelled: the label sets.
        count_tokens: tokens of each text under the encoder's tokenizer, without special tokens.

    Raises:
        LabelsError: a set cannot be read.
    """
    known = set(corpus["text"])
    rows: list[tuple[str, str, str]] = []
    for label_set in _read_all(labelled):
        for path, text in _own_passages(label_set):
            if text.strip() and text not in known:
                known.add(text)
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
                "label_set": name,
            }
            for (name, path, text), tokens in zip(rows, counts, strict=True)
        ]
    )
    return pl.concat([corpus, added]).sort("path", "position")


def read_labels(labelled: Sequence[Path], corpus: pl.DataFrame) -> list[Label]:
    """All labels over a corpus that holds their passages.

    An id names a passage of the label's own set, a segment, or the path of a document: then the document's segment
    that shares most content words with the question answers it.

    Args:
        labelled: the label sets.
        corpus: what :func:`with_labelled_passages` returned.

    Raises:
        LabelsError: a set cannot be read, or a label names what is not in the corpus.
    """
    finder = _Finder(corpus)
    labels = [finder.label(label_set, raw) for label_set in _read_all(labelled) for raw in label_set.labels]
    return sorted({label.qa_id: label for label in labels}.values(), key=lambda label: label.qa_id)


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


def _read_all(labelled: Sequence[Path]) -> Iterator[LabelSet]:
    names: dict[str, Path] = {}
    for path in labelled:
        label_set = read_label_set(path)
        name = re.sub(r"[^\w.-]+", "-", label_set.name)
        if name in names:
            message = f"training_data.label_sets: {names[name]} and {path} are both named {name!r}"
            raise LabelsError(message)
        names[name] = path
        yield LabelSet(name, label_set.labels, label_set.passages)


def _own_passages(label_set: LabelSet) -> Iterator[tuple[str, str]]:
    """Path and text of every passage of a set."""
    for key, text in label_set.passages.items():
        yield f"{_FOLDER}/{label_set.name}/{key}", text
    for label in label_set.labels:
        for text in (*label.positives, *label.negatives):
            yield f"{_FOLDER}/{label_set.name}/{hashlib.sha256(text.encode()).hexdigest()[:16]}", text


class _Finder:
    """Finds the segments that labels name."""

    def __init__(self, corpus: pl.DataFrame) -> None:
        ordered = corpus.sort("path", "position")
        self._texts: dict[str, str] = dict(ordered.select("segment_id", "text").iter_rows())
        self._by_text: dict[str, str] = {}
        self._by_path: dict[str, list[str]] = {}
        for segment, path, text in ordered.select("segment_id", "path", "text").iter_rows():
            self._by_text.setdefault(text, segment)
            self._by_path.setdefault(path, []).append(segment)

    def label(self, label_set: LabelSet, raw: RawLabel) -> Label:
        positives = sorted(set(self._segments(label_set.passages, raw, raw.positives, raw.positive_ids)))
        found = self._segments(label_set.passages, raw, raw.negatives, raw.negative_ids)
        negatives = [segment for segment in dict.fromkeys(found) if segment not in positives]
        identity = "\0".join([label_set.name, raw.question, *positives])
        qa_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return Label(qa_id, label_set.name, raw.question, positives, negatives, raw.side)

    def _segments(
        self, passages: Mapping[str, str], raw: RawLabel, texts: Sequence[str], ids: Sequence[str]
    ) -> list[str]:
        named = [self._by_id(passages, raw, key) for key in ids]
        found = [self._by_text.get(text) for text in texts]
        if None in found:
            message = f"{raw.place}: the passage {texts[found.index(None)][:80]!r} is not in the corpus"
            raise LabelsError(message)
        return [*named, *(segment for segment in found if segment is not None)]

    def _by_id(self, passages: Mapping[str, str], raw: RawLabel, key: str) -> str:
        if key in passages and passages[key] in self._by_text:
            return self._by_text[passages[key]]
        if key in self._texts:
            return key
        if key in self._by_path:
            return max(self._by_path[key], key=lambda segment: overlap(raw.question, self._texts[segment]))
        message = f"{raw.place}: {key!r} is no passage of the set, no segment and no path of a document"
        raise LabelsError(message)
