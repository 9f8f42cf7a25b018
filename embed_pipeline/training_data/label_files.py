"""Label sets: the files in which people bring labels, in every common form.

A label set is a BEIR folder (:mod:`embed_pipeline.beir`), a file with a question a row
(:mod:`embed_pipeline.row_files`), a folder of such files named for their sides, or a folder of NVIDIA NeMo's. Columns
may have our names, sentence-transformers' (``anchor``, ``positive``, ``negative``, ``negative_1`` ...), FlagEmbedding's
(``query``, ``pos``, ``neg``) or NeMo's (``question``, ``pos_doc``, ``neg_doc``). What ``embed-pipeline dataset``
exports is read back as what it was.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from embed_pipeline.beir import holds_queries, read_beir
from embed_pipeline.delimited import list_in_cell
from embed_pipeline.enumerations import SIDES, Side
from embed_pipeline.qrels import SIDES_BY_NAME
from embed_pipeline.row_files import (
    ENDINGS,
    LabelsError,
    files_of_rows,
    id_text,
    name_and_ending,
    name_the_unread,
    names_in,
    read_rows,
)
from embed_pipeline.text.blocks import is_blank
from embed_pipeline.training_data.pair_labels import PAIR_FIELDS, Verdict, pair_verdicts, split_labelled_list

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
_OF_TEXT = (".csv", ".tsv")
_MAYBE_ABOUT = (".json", ".csv", ".tsv")
_USUAL_NAMES = (*_QUESTION_FIELDS, *_TEXT_FIELDS, *_ID_FIELDS, _SPLIT_FIELD)
_MISSPELT = 0.85
_ID_ENDING = re.compile(r"[\W_]*ids?$")


class EmptyLabelError(LabelsError):
    """A row has no question, or no positive."""


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


def read_label_set(path: Path) -> LabelSet:
    """Read a folder, or a file of rows (:data:`embed_pipeline.row_files.ENDINGS`), packed or not.

    Raises:
        LabelsError: naming the file, and the line or row that is malformed.
    """
    if path.is_dir():
        return _beir_label_set(path) if holds_queries(path) else _folder_label_set(path)
    if not path.is_file():
        message = f"training_data.label_sets {path}: neither a folder nor a file"
        raise LabelsError(message)
    return _label_set(path, {path: None})


def _read_labels(path: Path, rows: list[tuple[str, dict[str, Any]]], side: Side | None) -> list[RawLabel]:
    if not rows:
        logger.warning("%s holds no label", path)
    rows, labels = _with_question_and_positive(path, [(place, _split_list(place, row)) for place, row in rows], side)
    has_negatives = any(label.negatives or label.negative_ids for label in labels)
    judged, verdicts = (None, []) if has_negatives else pair_verdicts(rows)
    ignored = sorted({name for _, row in rows for name in row if not _is_known(name) and name != judged})
    for name in ignored:
        # An id of the question, such as questionId.
        if _ID_ENDING.sub("", name.lower()) in _QUESTION_FIELDS:
            continue
        if close := get_close_matches(name, _USUAL_NAMES, n=1, cutoff=_MISSPELT):
            message = f"{path}: unknown field {name!r}; did you mean {close[0]!r}?"
            raise LabelsError(message)
    if ignored:
        logger.warning("%s: the columns %s are ignored", path, ignored)
    if judged is None:
        return labels
    logger.info("%s: whether a pair matches is read from the column %r", path, judged)
    return _matching(path, labels, verdicts)


def _split_list(place: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row without negatives whose list of positives has labels next to it, split by these."""
    fields = _TEXT_FIELDS | _ID_FIELDS
    named = {kind: [name for name in row if pattern.fullmatch(name)] for kind, pattern in fields.items()}
    if any(row[name] for kind in ("negatives", "negative_ids") for name in named[kind]):
        return row
    for positives, negatives in (("positives", "negatives"), ("positive_ids", "negative_ids")):
        for name in named[positives]:
            row = split_labelled_list(place, row, name, negatives)
    return row


def _with_question_and_positive(
    path: Path, rows: Sequence[tuple[str, dict[str, Any]]], side: Side | None
) -> tuple[list[tuple[str, dict[str, Any]]], list[RawLabel]]:
    """The rows that have both, and their labels; an error where none has."""
    kept, labels, empty = [], [], []
    for place, row in rows:
        try:
            labels.append(_parse_label(place, row, side))
            kept.append((place, row))
        except EmptyLabelError as error:
            empty.append(error)
    if empty and not labels:
        raise empty[0]
    if empty:
        logger.warning(
            "%s: rows without a question or a positive are left out: %d, first %s", path, len(empty), empty[0]
        )
    return kept, labels


def _matching(path: Path, pairs: Sequence[RawLabel], verdicts: Sequence[Verdict]) -> list[RawLabel]:
    """The pairs that match; what is said not to match a question is a negative of its pairs."""
    matches = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict == "match"]
    answers: dict[str, set[str]] = {}
    for pair in matches:
        answers.setdefault(pair.question, set()).update(pair.positives, pair.positive_ids)
    against: dict[str, list[RawLabel]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        if verdict == "mismatch" and pair.question in answers:
            against.setdefault(pair.question, []).append(pair)
    used = sum(map(len, against.values()))
    if wrong := len(pairs) - len(matches):
        message = "%s: pairs that do not match: %d, of which %d are negatives of their questions and %d are left out"
        logger.warning(message, path, wrong, used, wrong - used)
    return [
        replace(
            pair,
            negatives=_without(answers[pair.question], (each.positives for each in against.get(pair.question, ()))),
            negative_ids=_without(
                answers[pair.question], (each.positive_ids for each in against.get(pair.question, ()))
            ),
        )
        for pair in matches
    ]


def _without(answers: set[str], named: Iterable[list[str]]) -> list[str]:
    return [each for each in dict.fromkeys(chain.from_iterable(named)) if each not in answers]


def _one_split(labels: list[RawLabel]) -> list[RawLabel]:
    unsplit = [label for label in labels if label.side is None]
    if unsplit and len(unsplit) < len(labels):
        message = f"{unsplit[0].place}: split is missing, while other rows have one"
        raise LabelsError(message)
    return labels


def _folder_label_set(folder: Path) -> LabelSet:
    """Files of rows, each for the side that its name says; a set of train files alone has no split."""
    files = _label_files(folder) or _label_files(folder / "data")
    sides = {path: _side_of_file(path) for path in files}
    sideless = [path.name for path, side in sides.items() if side is None]
    if not files or 0 < len(sideless) < len(sides):
        found = f"{', '.join(sideless)} are named otherwise" if files else f"the folder holds {names_in(folder)}"
        message = (
            f"training_data.label_sets {folder}: expected a BEIR folder (queries.jsonl), or files of rows "
            f"({', '.join(ENDINGS)}) whose names say train, dev or test; {found}"
        )
        raise LabelsError(message)
    if len(sideless) > 1:
        names = ", ".join(sideless)
        logger.warning("%s: read without a split, as no name says train, dev or test: %s", folder, names)
    split = set(sides.values()) != {"train"}
    return _label_set(folder, {path: side if split else None for path, side in sides.items()})


def _label_files(folder: Path) -> list[Path]:
    """The files of rows; NeMo's alone where there are some, as what the recipe makes of them says the same again.

    A ``.json``, ``.csv`` or ``.tsv`` that is named for no side and has no question is about the set, such as
    ``dataset_infos.json``.
    """
    files = files_of_rows(folder)
    first = {
        path: _with_usual_names(next(read_rows(path), ("", {}))[1])
        for path in files
        if name_and_ending(path)[1] in _MAYBE_ABOUT
    }
    nemo = [path for path, row in first.items() if _is_nemo(row) and _side(name_and_ending(path)[0])]
    about = [path for path, row in first.items() if not _side_of_file(path) and not {*_QUESTION_FIELDS} & row.keys()]
    return nemo or [path for path in files if path not in about]


def _label_set(source: Path, files: Mapping[Path, Side | None]) -> LabelSet:
    labels: list[RawLabel] = []
    passages: dict[str, str] = {}
    read = list(files)
    for path, side in files.items():
        rows = [(place, _with_usual_names(row)) for place, row in read_rows(path)]
        if name_and_ending(path)[1] in _OF_TEXT:
            rows = [(place, _with_lists(row)) for place, row in rows]
        if rows and _is_nemo(rows[0][1]):
            rows, parts = _read_nemo(path, rows[0][1])
            passages |= dict(map(_nemo_passage, chain.from_iterable(map(read_rows, parts))))
            read += parts
        labels += _read_labels(path, rows, side)
    if source.is_dir():
        name_the_unread(source, read)
    return LabelSet(source.name if source.is_dir() else name_and_ending(source)[0], _one_split(labels), passages)


def _with_usual_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the names that are known as they are known: ``Question`` and ``Hard Negatives`` are."""
    usual = {name: "_".join(re.split(r"[\s_-]+", name.strip().lower())) for name in row}
    return {usual[name] if _is_known(usual[name]) and usual[name] not in row else name: row[name] for name in row}


def _with_lists(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of CSV or TSV, with the lists that its cells hold as text."""
    read = dict(row)
    for name, cell in row.items():
        kind = next((kind for kind, pattern in (_TEXT_FIELDS | _ID_FIELDS).items() if pattern.fullmatch(name)), None)
        if isinstance(cell, str) and (kind or name.lower() in PAIR_FIELDS):
            found = list_in_cell(cell)
            # "[1]" is a reference in a text, and a list of an id.
            if found is not None and (kind not in _TEXT_FIELDS or all(isinstance(each, str) for each in found)):
                read[name] = found
    return read


def _is_nemo(content: Mapping[str, Any]) -> bool:
    return {"corpus", "data"} <= content.keys()


def _read_nemo(path: Path, content: Mapping[str, Any]) -> tuple[list[tuple[str, dict[str, Any]]], list[Path]]:
    """NVIDIA NeMo's object: questions with the ids of passages, and the files of the corpus."""
    try:
        rows = [(f"{path}, question {number}", dict(row)) for number, row in enumerate(content["data"], start=1)]
        places = [path.parent / each["path"] for each in _several(content["corpus"])]
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path}: not NeMo's form, an object of corpus and data: {error}"
        raise LabelsError(message) from error
    # A .json in the folder is about the corpus, such as merlin_metadata.json.
    forms = [ending for ending in ENDINGS if ending != ".json"]
    found = {place: [place] if place.is_file() else files_of_rows(place, forms) for place in places}
    if empty := [place for place, parts in found.items() if not parts]:
        problem = "holds no file of passages" if empty[0].exists() else "does not exist"
        message = f"{path}: its corpus.path is {empty[0]}, which {problem}; put the corpus there, or correct the path"
        raise LabelsError(message)
    return rows, [part for parts in found.values() for part in parts]


def _nemo_passage(found: tuple[str, Mapping[str, Any]]) -> tuple[str, str]:
    place, row = found
    key = id_text(row.get("id"))
    if key is None or "text" not in row:
        message = f"{place}: expected the columns id and text of a passage, found {', '.join(row)}"
        raise LabelsError(message)
    return key, str(row["text"] or "")


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
    if question is None or (isinstance(question, str) and is_blank(question)):
        found = f"{question!r}" if asked else f"missing (one of {', '.join(_QUESTION_FIELDS)}; found {sorted(row)})"
        message = f"{place}: question is {found}, expected a text"
        raise EmptyLabelError(message)
    if not isinstance(question, str):
        message = f"{place}: question is {question!r}, expected a text"
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
        raise EmptyLabelError(message)
    return RawLabel(place=place, question=question, side=side, **lists)


def _side_of_file(path: Path) -> Side | None:
    """The side that a file's name says: ``train`` for ``train.jsonl``, ``nq-train.jsonl`` and ``train_1.csv.gz``."""
    said = {side for word in re.split(r"[^a-z]+", name_and_ending(path)[0].lower()) if (side := _side(word))}
    return said.pop() if len(said) == 1 else None


def _side(name: object) -> Side | None:
    """The side that a split or a file is named for."""
    return SIDES_BY_NAME.get(str(name))


def _text_list(place: str, name: str, value: object) -> list[str]:
    """A field that holds one text, several, or none; empty ones are passed over."""
    several = [text for text in _several(value) if not (isinstance(text, str) and is_blank(text))]
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


def _several(value: object) -> list[Any]:
    """The parts of a field; what pandas writes where there is nothing (NaN) is none."""
    several = value if isinstance(value, list) else [value]
    return [each for each in several if each is not None and not (isinstance(each, float) and math.isnan(each))]
