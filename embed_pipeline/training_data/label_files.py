"""Label sets: the files in which people bring labels, in every common form.

A label set is a BEIR folder (:mod:`embed_pipeline.beir`), a JSONL or Parquet file with a question a row, a folder of
such files named for their sides, or a folder of NVIDIA NeMo's. Columns may have our names, sentence-transformers'
(``anchor``, ``positive``, ``negative``, ``negative_1`` ...), FlagEmbedding's (``query``, ``pos``, ``neg``) or NeMo's
(``question``, ``pos_doc``, ``neg_doc``). What ``embed-pipeline dataset`` exports is read back as what it was.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from embed_pipeline.beir import read_beir
from embed_pipeline.enumerations import SIDES, Side
from embed_pipeline.row_files import LabelsError, id_text, parquet_rows, read_json, read_json_lines

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
