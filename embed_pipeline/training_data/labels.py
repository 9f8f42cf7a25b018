"""Labels that people made: read in every common form, and mixed in as pairs.

A label set is a BEIR folder (:mod:`embed_pipeline.beir`), a JSONL or Parquet file with a question a row, a folder of
such files named for their sides, or a folder of NVIDIA NeMo's. Columns may have our names, sentence-transformers'
(``anchor``, ``positive``, ``negative``, ``negative_1`` ...), FlagEmbedding's (``query``, ``pos``, ``neg``) or NeMo's
(``question``, ``pos_doc``, ``neg_doc``). What ``embed-pipeline dataset`` exports is read back as what it was.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import polars as pl

from embed_pipeline import tables
from embed_pipeline.beir import (
    LabelsError,
    document_key,
    id_text,
    parquet_rows,
    read_beir,
    read_json,
    read_json_lines,
)
from embed_pipeline.enumerations import LABELLED, SIDES, Context, Side
from embed_pipeline.text.passages import passage_texts, passages_by_id
from embed_pipeline.text.words import overlap

logger = logging.getLogger(__name__)

_QUESTION_FIELDS = ("question", "query", "anchor")
_TEXT_FIELDS = {
    "positives": re.compile(r"positives?|pos"),
    "negatives": re.compile(r"(hard_)?negatives?(_[0-9]+)?|neg(_[0-9]+)?"),
}
_ID_FIELDS = {
    "positive_ids": re.compile(r"positive_ids?|pos_doc"),
    "negative_ids": re.compile(r"negative_ids?|neg_doc"),
}
_SPLIT_FIELD = "split"
# Of sentence-transformers' pairs: whether they match.
_PAIR_FIELD, _LEAST_MATCH = "label", 0.5
_USUAL_NAMES = (*_QUESTION_FIELDS, *_TEXT_FIELDS, *_ID_FIELDS, _SPLIT_FIELD)
_MISSPELT = 0.85
_OTHER_SIDES: Mapping[str, Side] = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev"}
_FILES = (".jsonl", ".parquet")
_NEMO_SIDES: Mapping[Side, str] = {"train": "train.json", "dev": "val.json"}
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


def read_label_set(path: Path) -> LabelSet:
    """Read a folder, a ``.jsonl`` or a ``.parquet`` file.

    Raises:
        LabelsError: naming the file, and the line or row that is malformed.
    """
    if path.is_dir():
        if any((path / f"queries{ending}").exists() for ending in (*_FILES, ".jsonl.gz", "")):
            return _beir_label_set(path)
        return _nemo_label_set(path) if (path / _NEMO_SIDES["train"]).is_file() else _folder_label_set(path)
    if path.suffix not in _FILES or not path.is_file():
        message = f"training_data.label_sets {path}: neither a folder nor a .jsonl or .parquet file"
        raise LabelsError(message)
    return LabelSet(path.stem, _one_split(_read_rows(path)))


def _read_rows(path: Path, side: Side | None = None) -> list[RawLabel]:
    rows = list(read_json_lines(path) if path.suffix == ".jsonl" else parquet_rows(path))
    matching = [(place, row) for place, row in rows if _match(row.get(_PAIR_FIELD))]
    if wrong := len(rows) - len(matching):
        logger.warning("%s: pairs whose label is under %s, which do not match: %d left out", path, _LEAST_MATCH, wrong)
        rows = matching
    if not rows:
        logger.warning("%s holds no label", path)
    ignored = sorted({name for _, row in rows for name in row if not _is_known(name) and name != _PAIR_FIELD})
    for name in ignored:
        if close := get_close_matches(name, _USUAL_NAMES, n=1, cutoff=_MISSPELT):
            message = f"{path}: unknown field {name!r}; did you mean {close[0]!r}?"
            raise LabelsError(message)
    if ignored:
        logger.warning("%s: the columns %s are ignored", path, ignored)
    return [_parse_label(place, row, side) for place, row in rows]


def _match(label: object) -> bool:
    """Whether a pair with this label belongs together: 1, a similarity of at least a half, or no number at all."""
    try:
        return float(str(label)) >= _LEAST_MATCH
    except ValueError:
        return str(label) != "False"


def _one_split(labels: list[RawLabel]) -> list[RawLabel]:
    unsplit = [label for label in labels if label.side is None]
    if unsplit and len(unsplit) < len(labels):
        message = f"{unsplit[0].place}: split is missing, while other rows have one"
        raise LabelsError(message)
    return labels


def _folder_label_set(folder: Path) -> LabelSet:
    """Files of rows, each for the side that its name begins with; a set of train files alone has no split."""
    files = _row_files(folder) or _row_files(folder / "data")
    sides = {path: _side(re.split(r"[^a-z]", path.name.lower())[0]) for path in files}
    if not files or (None in sides.values() and len(set(sides.values())) > 1):
        message = (
            f"training_data.label_sets {folder}: expected a BEIR folder (queries.jsonl), or .jsonl or .parquet files "
            "whose names begin with train, dev or test"
        )
        raise LabelsError(message)
    split = set(sides.values()) != {"train"}
    labels = [label for path, side in sides.items() for label in _read_rows(path, side if split else None)]
    return LabelSet(folder.name, _one_split(labels))


def _row_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*")) if path.suffix in _FILES]


def _nemo_label_set(folder: Path) -> LabelSet:
    """NVIDIA NeMo's files: questions with the ids of passages, over a corpus of Parquet files."""
    labels: list[RawLabel] = []
    passages: dict[str, str] = {}
    found: dict[Side, Path] = {side: folder / name for side, name in _NEMO_SIDES.items() if (folder / name).is_file()}
    for side, path in found.items():
        try:
            content = read_json(path.read_text(encoding="utf-8-sig"))
            rows, corpora = [dict(row) for row in content["data"]], content["corpus"]
            places = [Path(each["path"]) for each in (corpora if isinstance(corpora, list) else [corpora])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"{path}: not NeMo's form, an object of corpus and data: {error}"
            raise LabelsError(message) from error
        for place in places:
            for part in sorted((folder / place).glob("*.parquet")):
                passages |= {id_text(row.get("id")) or "": str(row.get("text") or "") for _, row in parquet_rows(part)}
        own = side if len(found) > 1 else None
        labels += [_parse_label(f"{path}, question {number}", row, own) for number, row in enumerate(rows, start=1)]
    return LabelSet(folder.name, labels, passages)


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


def _is_known(name: str) -> bool:
    patterns = (*_TEXT_FIELDS.values(), *_ID_FIELDS.values())
    return name in (*_QUESTION_FIELDS, _SPLIT_FIELD) or any(pattern.fullmatch(name) for pattern in patterns)


def _parse_label(place: str, row: Mapping[str, Any], side: Side | None) -> RawLabel:
    """A row under any of the names that are known; ``side``: that of its file."""
    asked = [row[name] for name in _QUESTION_FIELDS if row.get(name) is not None]
    question = asked[0] if asked else None
    if not isinstance(question, str) or not question.strip():
        found = f"{question!r}" if asked else f"missing (one of {', '.join(_QUESTION_FIELDS)}; found {sorted(row)})"
        message = f"{place}: question is {found}, expected a text"
        raise LabelsError(message)
    given = row.get(_SPLIT_FIELD) or None
    if given is not None:
        side = _side(given)
        if side is None:
            message = f"{place}: split is {given!r}, expected one of {list(SIDES)}"
            raise LabelsError(message)
    lists: dict[str, list[str]] = {}
    for field_name, pattern in (_TEXT_FIELDS | _ID_FIELDS).items():
        named = sorted((name for name in row if pattern.fullmatch(name)), key=lambda name: (len(name), name))
        read = _id_list if field_name in _ID_FIELDS else _text_list
        lists[field_name] = [text for name in named for text in read(place, name, row[name])]
    if not lists["positives"] and not lists["positive_ids"]:
        message = f"{place}: neither positives nor positive_ids; found {sorted(row)}"
        raise LabelsError(message)
    return RawLabel(place=place, question=question, side=side, **lists)


def _side(name: object) -> Side | None:
    """The side that a split or a file is named for."""
    return next((side for side in SIDES if side == name), _OTHER_SIDES.get(str(name)))


def _text_list(place: str, name: str, value: object) -> list[str]:
    """A field that holds one text, several, or none; empty ones are passed over."""
    several = [text for text in _several(value) if text is not None and (not isinstance(text, str) or text.strip())]
    if not all(isinstance(text, str) for text in several):
        message = f"{place}: {name} is {str(value)[:80]!r}, expected a text or a list of texts"
        raise LabelsError(message)
    return [str(text) for text in several]


def _id_list(place: str, name: str, value: object) -> list[str]:
    """Likewise ids, texts or whole numbers, and NeMo's objects that hold one."""
    found = [id_text(each.get("id") if isinstance(each, Mapping) else each) for each in _several(value)]
    if None in found or "" in found:
        message = f"{place}: {name} is {str(value)[:80]!r}, expected an id or a list of ids"
        raise LabelsError(message)
    return [str(key) for key in found]


def _several(value: object) -> list[object]:
    return [] if value is None else value if isinstance(value, list) else [value]


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
            self._by_path.setdefault(document_key(path), []).append(segment)
        for segment, passage in self._passages.items():
            self._by_text.setdefault(passage.strip(), segment)
        copies = tables.LEFT_OUT_DOCUMENTS.empty() if left_out is None else left_out
        for path, stayed in copies.select("path", "duplicate_of").iter_rows():
            if segments := self._by_path.get(document_key(stayed)):
                self._by_path.setdefault(document_key(path), segments)

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
        named = {key: self._by_id(passages, raw, key) for key in ids}
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

    def _by_id(self, passages: Mapping[str, str], raw: RawLabel, key: str) -> str | None:
        own = passages.get(key, "").strip()
        # An id of ours means that very segment, though others may have the same text.
        if key in self._texts and own in {"", self._texts[key].strip(), self._passages[key].strip()}:
            return key
        if own in self._by_text:
            return self._by_text[own]
        segments = self._by_path.get(document_key(key), [])
        return max(segments, key=lambda segment: overlap(raw.question, self._texts[segment]), default=None)
