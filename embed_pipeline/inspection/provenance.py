"""One pair, segment or document with all that belongs to it, from the documents to the models trained on it."""

from __future__ import annotations

import io
import re
import shlex
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.inspection.pair_index import reject_ids
from embed_pipeline.lineage import Model, ReadTable, Trace, trace, trained_on_path
from embed_pipeline.storage import read_whole
from embed_pipeline.text.words import content_words

Row = dict[str, Any]
Parts = list[tuple[str, bool]]
"""A text in pieces, each with whether it is marked."""
_TOKEN = re.compile(r"\w[\w'’-]*")
_MOST_ROWS = 100
_RAW_FOUND = 3
_LEAST_SOUGHT = 12


@dataclass(frozen=True)
class SourceText:
    """A segment as it is shown.

    Attributes:
        row: its row of :data:`tables.SEGMENTS` or :data:`tables.CORPUS`.
        path: the document's file.
        parts: its text, with the words marked that a pair rests on.
        before: the end of the segment before it; empty: it is the first.
        after: the beginning of the one after it.
    """

    row: Row
    path: str
    parts: Parts
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class HopSources:
    """A hop, and the segments that it needs; ``missing`` are those that are stored no more."""

    number: int
    summary: str
    sources: list[SourceText]
    missing: list[str]


@dataclass(frozen=True)
class TrainedModel(Model):
    """A model version that was trained on something, and the questions by which it was, as ids in their order."""

    qa_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairDetail:
    """A pair with everything around it.

    Attributes:
        trace: the chain of :func:`embed_pipeline.lineage.trace`.
        hops: its hops with their segments.
        positives: what its training examples take for answers, each with its similarity.
        negatives: likewise its hard negatives.
        answering: segments that a cross-check removed from the negatives.
        result: its row of :data:`tables.QUESTION_RESULTS`.
        firsts: the segments that base, tuned model and BM25 rank first, by id.
        models: versions trained on it.
    """

    trace: Trace
    hops: list[HopSources]
    positives: list[tuple[SourceText, float]]
    negatives: list[tuple[SourceText, float]]
    answering: list[str]
    result: Row | None
    firsts: dict[str, Row]
    models: list[TrainedModel]


class Provenance:
    """What the stored tables say of one thing at a time."""

    def __init__(self, root: UPath, read: ReadTable, models: Sequence[Model]) -> None:
        """Read below ``root``; ``models`` are all registered versions."""
        self._root, self._read, self._models = root, read, models

    def pair(self, qa_id: str) -> PairDetail:
        """A pair and all that belongs to it.

        Raises:
            LineageError: there is no such pair.
        """
        found = trace(qa_id, self._read)
        pair = found.pair
        mined = _first(self._rows("hard_negatives", pl.col("qa_id") == qa_id)) or {}
        result = _first(
            self._rows("question_results", (pl.col("query_id") == qa_id) & (pl.col("query_set") == "generated"))
        )
        firsts = [] if result is None else [result[f"{system}_first"] for system in ("base", "tuned", "bm25")]
        wanted = [*mined.get("positive_segment_ids", ()), *mined.get("negative_segment_ids", ()), *firsts]
        others = {row["segment_id"]: row for row in self._segments(wanted)}
        segments = {row["segment_id"]: row for row in found.segments}
        paths = {row["document_id"]: row["path"] for row in found.documents}
        around = self._around(found.segments)
        support = [pair["answer"] or ""]

        def shown(key: str, words: Sequence[str]) -> SourceText:
            row = segments[key]
            before, after = around.get(key, ("", ""))
            path = str(row.get("path") or paths.get(row["document_id"], row["document_id"]))
            return SourceText(row, path, marked(row["text"], words), before, after)

        def compared(ids: str, values: str) -> list[tuple[SourceText, float]]:
            pairs = zip(mined.get(ids, ()), mined.get(values, ()), strict=True)
            return [(_shown_other(others.get(key), key, pair["question"]), value) for key, value in pairs]

        hops = [
            HopSources(
                hop["hop_number"],
                hop["summary"],
                [shown(key, [hop["summary"], *support]) for key in hop["segment_ids"] if key in segments],
                [key for key in hop["segment_ids"] if key not in segments],
            )
            for hop in pair["hops"]
        ]
        return PairDetail(
            found,
            hops,
            compared("positive_segment_ids", "positive_similarities"),
            compared("negative_segment_ids", "negative_similarities"),
            list(mined.get("answering_segment_ids", ())),
            result,
            {key: others[key] for key in firsts if key in others},
            self.trained_on(pl.col("qa_id") == qa_id),
        )

    def negatives(self, qa_id: str) -> frozenset[str]:
        """The hard negatives of a question, by id."""
        mined = self._rows("hard_negatives", pl.col("qa_id") == qa_id)
        return frozenset(key for row in mined for key in row["negative_segment_ids"])

    def reject(self, reject_id: str) -> tuple[Row, list[SourceText]] | None:
        """An answer that was no valid pair, and the segments that the question was asked of; None: there is none."""
        stored = self._read("rejected_pairs")
        rejects = tables.REJECTED_PAIRS.empty() if stored is None else stored.collect()
        for place, key in enumerate(reject_ids(rejects)):
            if key == reject_id:
                row = rejects.row(place, named=True)
                return row, [_shown_other(one, one["segment_id"], "") for one in self._segments(row["segment_ids"])]
        return None

    def document(self, document_id: str) -> tuple[Row, list[Row], list[Row], list[TrainedModel]] | None:
        """A document version: itself, every version of its file, its segments, the models trained on it."""
        own = _first(self._rows("documents", (pl.col("document_id") == document_id) & ~pl.col("deleted")))
        if own is None:
            brought = _first(self._rows("corpus", (pl.col("document_id") == document_id)))
            own = brought and {**brought, "batch": None, "deleted": False, "modified_at": None, "bytes": None}
        if own is None:
            return None
        versions = sorted(self._rows("documents", pl.col("path") == own["path"]), key=lambda row: row["batch"])
        segments = self._rows("segments", pl.col("document_id") == document_id)
        segments = segments or self._rows("corpus", pl.col("document_id") == document_id)
        unique = {row["segment_id"]: row for row in segments}
        ordered = sorted(unique.values(), key=lambda row: row["position"])
        models = self.trained_on(pl.col("segment_id").is_in(list(unique)))
        return {**own, "forget": f"embed-pipeline forget {shlex.quote(own['path'])}"}, versions, ordered, models

    def segment(self, segment_id: str) -> tuple[SourceText, list[Row], int, list[TrainedModel]] | None:
        """A segment: its text, questions that have it as a negative (some, and how many), the models trained on it."""
        found = self._segments([segment_id])
        if not found:
            return None
        before, after = self._around(found)[segment_id]
        shown = SourceText(found[0], found[0]["path"], [(found[0]["text"], False)], before, after)
        stored = self._read("hard_negatives")
        negative: list[Row] = []
        if stored is not None:
            holding = stored.filter(pl.col("negative_segment_ids").list.contains(segment_id)).collect()
            negative = holding.select("qa_id", "origin", "question").sort("qa_id").to_dicts()
        return shown, negative[:_MOST_ROWS], len(negative), self.trained_on(pl.col("segment_id") == segment_id)

    def trained_on(self, condition: pl.Expr) -> list[TrainedModel]:
        """The models whose training examples hold such ids (``qa_id``, ``segment_id``), as answer or hard negative."""
        found = []
        for model in self._models:
            version = model.data_versions.get("training_examples", "unrecorded")
            try:
                used = pl.read_parquet(io.BytesIO(read_whole(trained_on_path(self._root, version))))
            except FileNotFoundError:
                continue
            questions = used.filter(condition)["qa_id"].unique().sort().to_list()
            if questions:
                found.append(TrainedModel(model.name, model.version, model.data_versions, tuple(questions)))
        return found

    def _rows(self, name: str, condition: pl.Expr) -> list[Row]:
        frame = self._read(name)
        return [] if frame is None else frame.filter(condition).collect().to_dicts()

    def _segments(self, ids: Iterable[str]) -> list[Row]:
        """Segments with their paths, those of the present corpus before older ones, in the order asked for."""
        wanted = list(dict.fromkeys(ids))
        known = {row["segment_id"]: row for row in self._rows("corpus", pl.col("segment_id").is_in(wanted))}
        missing = [key for key in wanted if key not in known]
        older = self._rows("segments", pl.col("segment_id").is_in(missing)) if missing else []
        owners = {row["document_id"] for row in older}
        documents = self._rows("documents", pl.col("document_id").is_in(owners) & ~pl.col("deleted")) if older else []
        paths = {row["document_id"]: row["path"] for row in documents}
        known |= {row["segment_id"]: {**row, "path": paths.get(row["document_id"], "")} for row in older}
        return [known[key] for key in wanted if key in known]

    def _around(self, segments: Sequence[Row]) -> dict[str, tuple[str, str]]:
        """Segment to the texts before and after it in its document."""
        owners = list({row["document_id"] for row in segments})
        rows = self._rows("segments", pl.col("document_id").is_in(owners))
        texts = {(row["document_id"], row["position"]): row["text"][row["repeated"] :] for row in rows}
        return {
            row["segment_id"]: (
                texts.get((row["document_id"], row["position"] - 1), ""),
                texts.get((row["document_id"], row["position"] + 1), ""),
            )
            for row in segments
        }


def raw_responses(path: Path, question: str) -> list[str]:
    """Stored answers of the language model that hold a question, or its end where its beginning was given.

    Args:
        path: the response store's file.
        question: the question as the model wrote it.
    """
    if not path.is_file():
        return []
    said = question.split()
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        for start in range(min(4, len(said))):
            sought = " ".join(said[start:])
            if len(sought) < _LEAST_SOUGHT:
                break
            escaped = sought.replace("\\", "\\\\").replace('"', '\\"')
            asked = "SELECT text FROM responses WHERE instr(text, ?) OR instr(text, ?) LIMIT ?"
            found = database.execute(asked, (sought, escaped, _RAW_FOUND)).fetchall()
            if found:
                return [text for (text,) in found]
    return []


def marked(text: str, supports: Sequence[str]) -> Parts:
    """``text`` with what it shares with ``supports`` marked: a whole sentence where it is there, else the words."""
    spans = [span for support in supports for span in _verbatim(text, support)]
    if not spans:
        wanted = {word for support in supports for word in content_words(support)}
        spans = [match.span() for match in _TOKEN.finditer(text) if wanted.intersection(content_words(match.group()))]
    parts: Parts = []
    place = 0
    for start, end in _joined(text, spans):
        parts += [(text[place:start], False), (text[start:end], True)]
        place = end
    return [part for part in [*parts, (text[place:], False)] if part[0]]


def _verbatim(text: str, support: str) -> list[tuple[int, int]]:
    words = support.split()
    if not words or len(support) < _LEAST_SOUGHT:
        return []
    pattern = r"\s+".join(map(re.escape, words))
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def _joined(text: str, spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order; those that overlap, or have only blanks between them, as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _shown_other(row: Row | None, key: str, words: str) -> SourceText:
    """A segment that another one is compared with; one that is gone has no text."""
    if row is None:
        gone = {"segment_id": key, "document_id": "", "heading_path": "", "text": "", "position": None}
        return SourceText(gone, "no longer in the corpus", [])
    return SourceText(row, row["path"], marked(row["text"], [words]) if words else [(row["text"], False)])


def _first(rows: list[Row]) -> Row | None:
    return rows[-1] if rows else None
