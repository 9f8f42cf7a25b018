"""The training data in other tools' formats.

``beir``
    ``corpus.jsonl``, ``queries.jsonl``, ``qrels/{train,dev,test}.tsv`` (Thakur et al. 2021).
``sentence-transformers``
    Parquet files of ``anchor``, ``positive`` and ``negative_1`` to ``negative_n``, one file for each number of
    negatives, as its losses take rows of one width; ``dev.parquet`` and ``test.parquet`` have no negatives.
``nemo``
    The corpus-id JSON that NVIDIA's embedding fine-tuning recipe trains on: ``train.json`` and ``val.json`` over
    ``corpus/train.parquet``, and the test questions as ``eval_beir/``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from embed_pipeline.enumerations import Context
from embed_pipeline.text.passages import passages_by_id
from embed_pipeline.training_data.negatives import unroll
from embed_pipeline.training_data.split import DEV, TEST, TRAIN

Format = Literal["beir", "sentence-transformers", "nemo"]
_MARKER = "export.json"
_CORPUS_ID = "embed-pipeline"


class ExportError(ValueError):
    """The data cannot be exported to the folder named."""


@dataclass(frozen=True)
class _AnsweredQuestion:
    """A question and the segments that answer it."""

    key: str
    question: str
    positives: list[str]


@dataclass(frozen=True)
class _ExportedData:
    """Passages by the ids of their segments, the mined train questions, and the questions of dev and test."""

    texts: dict[str, str]
    examples: pl.DataFrame
    sides: dict[str, list[_AnsweredQuestion]]


def export_dataset(
    kind: Format,
    folder: Path,
    *,
    qa: pl.DataFrame,
    split: pl.DataFrame,
    corpus: pl.DataFrame,
    hard_negatives: pl.DataFrame,
    context: Context = "none",
) -> Path:
    """Write the data to ``folder``; an earlier export there is replaced once the new one is complete.

    Train questions are those that were mined for, augmented ones among them; dev and test are those of the split.

    Args:
        kind: the format.
        folder: made where it is missing.
        qa: frame of :data:`tables.QA_DATASET`.
        split: frame of :data:`tables.DATASET_SPLIT`.
        corpus: frame of :data:`tables.CORPUS`.
        hard_negatives: frame of :data:`tables.HARD_NEGATIVES`.
        context: ``embedding.context``: passages are written as they are embedded.

    Returns:
        The folder.

    Raises:
        ExportError: the folder holds other files than an export, or cannot be written.
    """
    if folder.exists() and not (folder / _MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        message = f"{folder} exists and is no export ({_MARKER} is missing); name another folder"
        raise ExportError(message)
    texts = passages_by_id(corpus.sort("segment_id"), context)
    data = _ExportedData(texts, unroll(hard_negatives), _sides(qa, split, hard_negatives))
    writers = {"beir": _write_beir, "sentence-transformers": _write_sentence_transformers, "nemo": _write_nemo}
    counts = {side: len(asked) for side, asked in data.sides.items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
            fresh, old = Path(made) / "new", Path(made) / "old"
            fresh.mkdir()
            writers[kind](data, fresh)
            _write_json(fresh / _MARKER, {"format": kind, "questions": counts, "segments": corpus.height})
            _replace(folder, fresh, old)
    except OSError as error:
        message = f"export to {folder}: {error.strerror or error}"
        raise ExportError(message) from error
    return folder


def _replace(folder: Path, fresh: Path, old: Path) -> None:
    """Put ``fresh`` in the place of ``folder``, which goes to ``old``, or stays where that fails."""
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def _sides(qa: pl.DataFrame, split: pl.DataFrame, hard_negatives: pl.DataFrame) -> dict[str, list[_AnsweredQuestion]]:
    columns = ("qa_id", "question", "positive_segment_ids")
    sides = {TRAIN: [_AnsweredQuestion(*row) for row in hard_negatives.sort("qa_id").select(columns).iter_rows()]}
    for side in (DEV, TEST):
        chosen = split.filter(pl.col("split") == side).select("qa_id")
        rows = qa.join(chosen, on="qa_id", how="semi").sort("qa_id").select("qa_id", "question", "segment_ids")
        sides[side] = [_AnsweredQuestion(*row) for row in rows.iter_rows()]
    return sides


def _write_beir(data: _ExportedData, folder: Path, sides: Sequence[str] = (TRAIN, DEV, TEST)) -> None:
    # Without the title, which BEIR's readers put before the text: what is searched and trained on is the text alone.
    passages = ({"_id": key, "title": "", "text": text} for key, text in data.texts.items())
    _write_lines(folder / "corpus.jsonl", passages)
    asked = [one for side in sides for one in data.sides[side]]
    _write_lines(folder / "queries.jsonl", ({"_id": one.key, "text": one.question} for one in asked))
    (folder / "qrels").mkdir()
    for side in sides:
        judged = [f"{one.key}\t{segment}\t1" for one in data.sides[side] for segment in one.positives]
        text = "\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n"
        (folder / "qrels" / f"{side}.tsv").write_text(text, encoding="utf-8")


def _write_sentence_transformers(data: _ExportedData, folder: Path) -> None:
    texts = data.texts
    by_width: dict[int, list[list[str]]] = {}
    for row in data.examples.iter_rows(named=True):
        negatives = [texts[segment] for segment in row["negative_segment_ids"]]
        cells = [row["question"], texts[row["positive_segment_id"]], *negatives]
        by_width.setdefault(len(negatives), []).append(cells)
    for width, rows in sorted(by_width.items()):
        _write_texts(folder / f"train-{width}-negatives.parquet", rows, width)
    for side in (DEV, TEST):
        pairs = [[one.question, texts[segment]] for one in data.sides[side] for segment in one.positives]
        _write_texts(folder / f"{side}.parquet", pairs, 0)


def _write_texts(path: Path, rows: list[list[str]], negatives: int) -> None:
    columns = ["anchor", "positive", *(f"negative_{number}" for number in range(1, negatives + 1))]
    pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row").write_parquet(path)


def _write_nemo(data: _ExportedData, folder: Path) -> None:
    passages = folder / "corpus"
    passages.mkdir()
    texts = {"id": list(data.texts), "text": list(data.texts.values())}
    pl.DataFrame(texts, schema={"id": pl.String, "text": pl.String}).write_parquet(passages / "train.parquet")
    _write_json(passages / "merlin_metadata.json", {"corpus_id": _CORPUS_ID, "class": "TextQADataset"})
    examples = data.examples.iter_rows(named=True)
    train = [
        _nemo_row(row["example_id"], row["question"], [row["positive_segment_id"]], row["negative_segment_ids"])
        for row in examples
    ]
    held_out = [_nemo_row(one.key, one.question, one.positives, []) for one in data.sides[DEV]]
    for name, rows in (("train", train), ("val", held_out)):
        _write_json(folder / f"{name}.json", {"corpus": {"path": "./corpus/"}, "data": rows})
    (folder / "eval_beir").mkdir()
    _write_beir(data, folder / "eval_beir", (TEST,))


def _nemo_row(key: str, question: str, positives: Iterable[str], negatives: Iterable[str]) -> dict[str, Any]:
    return {
        "question_id": key,
        "question": question,
        "corpus_id": _CORPUS_ID,
        "pos_doc": [{"id": segment} for segment in positives],
        "neg_doc": [{"id": segment} for segment in negatives],
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_lines(path: Path, rows: Iterator[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
