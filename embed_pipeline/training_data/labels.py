"""Labels that people made: read from BEIR folders, JSONL and Parquet, and mixed in as pairs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline import tables
from embed_pipeline.beir import LabelsError, read_beir, read_json_lines
from embed_pipeline.enumerations import LABELLED, SIDES, Side
from embed_pipeline.text.words import overlap

_TEXT_FIELDS = ("positives", "negatives")
_ID_FIELDS = ("positive_ids", "negative_ids")
_KNOWN_FIELDS = {"question", "split", *_TEXT_FIELDS, *_ID_FIELDS}
_PATH_PREFIX = "labels"


@dataclass(frozen=True)
class RawLabel:
    """A question as its file has it.

    Attributes:
        place: file and line or row, for messages.
        question: the question.
        positives: texts that answer it.
        positive_ids: ids of the set's passages, of segments, or paths of documents.
        negatives: texts that do not answer it.
        negative_ids: likewise ids.
        side: None where the set has no split of its own.
    """

    place: str
    question: str
    positives: list[str]
    positive_ids: list[str]
    negatives: list[str]
    negative_ids: list[str]
    side: Side | None


@dataclass(frozen=True)
class LabelSet:
    """One source of labels: its name, its questions, and passages of its own by their ids."""

    name: str
    labels: list[RawLabel]
    passages: dict[str, str] = field(default_factory=dict)


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
    """The corpus and the passages of the labels: BEIR corpora, and texts named as positive or negative.

    A passage is one document of one segment, whatever its length, at the path ``labels/<set>/<its id>``. A text that is
    already a segment is not added again.

    Args:
        corpus: frame of :data:`tables.CORPUS`; it may be empty.
        labelled: the label sets.
        count_tokens: tokens of each text under the encoder's tokenizer, without special tokens.

    Raises:
        LabelsError: a set cannot be read.
    """
    known = set(corpus["text"])
    rows: list[tuple[str, str, str]] = []
    for label_set in _read_label_sets(labelled):
        for path, text in _labelled_passages(label_set):
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
    lookup = _SegmentLookup(corpus)
    labels = [lookup.label(label_set, raw) for label_set in _read_label_sets(labelled) for raw in label_set.labels]
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


def read_label_set(path: Path) -> LabelSet:
    """Read a BEIR folder, a ``.jsonl`` or a ``.parquet`` file.

    Raises:
        LabelsError: naming the file, and the line or row that is malformed.
    """
    if path.is_dir():
        return _beir_label_set(path)
    if path.suffix not in {".jsonl", ".parquet"} or not path.is_file():
        message = f"training_data.label_sets {path}: neither a folder nor a .jsonl or .parquet file"
        raise LabelsError(message)
    labels = [
        _parse_label(place, row)
        for place, row in (read_json_lines(path) if path.suffix == ".jsonl" else _parquet_rows(path))
    ]
    unsplit = [label for label in labels if label.side is None]
    if unsplit and len(unsplit) < len(labels):
        message = f"{unsplit[0].place}: split is missing, while other rows have one"
        raise LabelsError(message)
    return LabelSet(path.stem, labels)


def _beir_label_set(folder: Path) -> LabelSet:
    found = read_beir(folder)
    # Train judgements alone are no split; test judgements alone mean that none is for training.
    split = found.judged.keys() != {"train"}
    labels = [
        RawLabel(
            place=judged.place,
            question=found.queries[query],
            positives=[],
            positive_ids=judged.positives,
            negatives=[],
            negative_ids=judged.negatives,
            side=side if split else None,
        )
        for side, queries in found.judged.items()
        for query, judged in queries.items()
        if judged.positives
    ]
    return LabelSet(folder.name, labels, found.passages or {})


def _parse_label(place: str, row: Mapping[str, Any]) -> RawLabel:
    unknown = sorted(row.keys() - _KNOWN_FIELDS)
    if unknown:
        message = f"{place}: unknown fields {unknown}; known are {sorted(_KNOWN_FIELDS)}"
        raise LabelsError(message)
    question, side = row.get("question"), row.get("split") or None
    if not isinstance(question, str) or not question.strip():
        message = f"{place}: question is {question!r}, expected a text"
        raise LabelsError(message)
    if side is not None and side not in SIDES:
        message = f"{place}: split is {side!r}, expected one of {list(SIDES)}"
        raise LabelsError(message)
    lists = {name: _text_list(place, name, row.get(name)) for name in (*_TEXT_FIELDS, *_ID_FIELDS)}
    if not lists["positives"] and not lists["positive_ids"]:
        message = f"{place}: neither positives nor positive_ids"
        raise LabelsError(message)
    return RawLabel(place=place, question=question, side=side, **lists)


def _text_list(place: str, name: str, value: object) -> list[str]:
    """A field that holds one text, several, or none."""
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) and text.strip() for text in found):
        message = f"{place}: {name} is {str(value)[:80]!r}, expected a text or a list of texts"
        raise LabelsError(message)
    return found


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        message = f"{path}: not a readable Parquet file: {error}"
        raise LabelsError(message) from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(frame.iter_rows(named=True), start=1))


def _labelled_passages(label_set: LabelSet) -> Iterator[tuple[str, str]]:
    """Path and text of every passage of a set."""
    for key, text in label_set.passages.items():
        yield f"{_PATH_PREFIX}/{label_set.name}/{key}", text
    for label in label_set.labels:
        for text in (*label.positives, *label.negatives):
            yield f"{_PATH_PREFIX}/{label_set.name}/{hashlib.sha256(text.encode()).hexdigest()[:16]}", text


class _SegmentLookup:
    """Finds the segments that labels name: by text, by segment id, by path."""

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
