"""What each document is about: key phrases by statistics, or an LLM pass where an endpoint is set."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from embed_pipeline import tables
from embed_pipeline.enumerations import ArtifactKind
from embed_pipeline.llm.answers import InvalidAnswer, some_of
from embed_pipeline.llm.budget import Usage
from embed_pipeline.llm.client import LLMClient, open_client
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.prompts import delimit, fill_prompt, plain_label
from embed_pipeline.llm.rehearsal import NOT_ASKED
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.coverage import ASKED
from embed_pipeline.text.injections import remove_instructions
from embed_pipeline.text.words import (
    content_words,
    inverse_document_frequency,
    is_prose,
    overlap,
    sentences,
    specific_terms,
    words,
)

logger = logging.getLogger(__name__)

_PER_DOCUMENT = 12
_WINDOW_CHARACTERS = 12_000
_MAX_CHARACTERS = 300
_MIN_OVERLAP = 0.5
_MOST_SHARED_BY = 8
_CLAUSE_END = re.compile(r"[^\w\s'’-]+")

Window = list[dict[str, Any]]
"""Rows of :data:`tables.SEGMENTS` of one document that one call reads."""


class ArtifactAnswer(BaseModel):
    """One artifact as the model states it."""

    model_config = ConfigDict(extra="forbid")
    kind: ArtifactKind
    text: str
    segments: list[str]


class ArtifactsAnswer(BaseModel):
    """The whole answer for one window of a document."""

    model_config = ConfigDict(extra="forbid")
    artifacts: list[ArtifactAnswer]


@dataclass(frozen=True)
class Extraction:
    """What was found in a batch.

    Attributes:
        artifacts: frame of :data:`tables.DOCUMENT_ARTIFACTS`.
        dropped: what the model stated and no segment bears out, or whole answers that were none, by reason.
        usage: what the calls cost.
    """

    artifacts: pl.DataFrame
    dropped: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)


def extract_artifacts(batch: str, segments: pl.DataFrame, settings: Settings) -> Extraction:
    """Artifacts of every document of the batch: what the questions are steered by and the neighbour graph joined by.

    A model that is asked for JSON reads each document. One that completes texts cannot, and the statistical extractor
    (``keyphrases``) speaks instead: headings, identifiers, and phrases that a few segments have in common, first those
    whose words set the document apart. An artifact that names an unknown segment, or whose words do not occur in its
    segments, is left out.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """
    dropped: Counter[str] = Counter()
    usage = Usage()
    if not settings.structured:
        rows = _keyphrases(batch, segments)
    else:
        rows, usage = run_interruptibly(_ask_all(batch, segments, settings, dropped))
    return Extraction(artifact_frame(rows), dropped, usage)


def artifact_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The rows as a frame of :data:`tables.DOCUMENT_ARTIFACTS`, each artifact once."""
    frame = tables.DOCUMENT_ARTIFACTS.frame(rows).unique(["document_id", "kind", "text"], keep="first")
    return frame.sort("document_id", "kind", "text")


def _keyphrases(batch: str, segments: pl.DataFrame) -> list[dict[str, Any]]:
    documents = segments.sort("document_id", "position").group_by("document_id", maintain_order=True)
    texts = {key[0]: group.to_dicts() for key, group in documents}
    recurring = recurring_phrases([row["text"] for rows in texts.values() for row in rows])
    idf = inverse_document_frequency(" ".join(row["text"] for row in rows) for rows in texts.values())
    found = []
    for document_id, rows in texts.items():
        places: dict[tuple[str, str], list[str]] = {}
        weights: dict[tuple[str, str], float] = {}
        for row in rows:
            heading = row["heading_path"].rsplit(" > ", 1)[-1]
            named = [("concept", heading)] if heading else []
            named += [("entity", phrase) for phrase in phrases(remove_instructions(row["text"])) if phrase in recurring]
            named += [
                ("entity", term)
                for term in specific_terms(remove_instructions(row["text"]))
                if re.search(r"[^\W\d_]{2}", term)
            ]
            for key in dict.fromkeys(named):
                places.setdefault(key, []).append(row["segment_id"])
                weight = sum(idf.get(word, 1.0) for word in set(content_words(key[1])))
                weights[key] = weights.get(key, 0.0) + weight
        best = sorted(weights, key=lambda key: (-weights[key], key))[:_PER_DOCUMENT]
        found += [
            _row(document_id, batch, kind, text, places[kind, text], extractor="keyphrases") for kind, text in best
        ]
    return found


def recurring_phrases(texts: Sequence[str]) -> frozenset[str]:
    """Phrases that a few segments have in common: two to eight of them."""
    counts = Counter(phrase for text in texts for phrase in set(phrases(text)))
    return frozenset(phrase for phrase, count in counts.items() if 1 < count <= _MOST_SHARED_BY)


def phrases(text: str) -> list[str]:
    """Two words of a sentence that follow each other and both carry meaning, in lower case."""
    return [
        f"{first} {second}"
        for sentence in sentences(text)
        if is_prose(sentence)
        for clause in _CLAUSE_END.split(sentence)
        for first, second in pairwise(words(clause))
        if content_words(first) and content_words(second) and first != second
    ]


async def _ask_all(
    batch: str, segments: pl.DataFrame, settings: Settings, dropped: Counter[str]
) -> tuple[list[dict[str, Any]], Usage]:
    async with open_client(settings.llm, settings.paths.responses) as client:
        return await ask_artifacts(batch, plan_windows(segments), settings, client, dropped), client.usage


async def ask_artifacts(
    batch: str, windows: list[Window], settings: Settings, client: LLMClient, dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Have windows of documents read; rows of :data:`tables.DOCUMENT_ARTIFACTS`.

    What is left out is counted in ``dropped``.
    A window that the model's context does not hold is read in halves.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures: from the client.
    """

    async def ask(window: Window) -> list[dict[str, Any]]:
        try:
            answer = await client.structured(
                messages_of(window),
                ArtifactsAnswer,
                temperature=0.0,
                seed=settings.seed,
                known=_known_of(window),
                about=f"document {window[0]['document_id']}",
            )
        except InvalidAnswer as error:
            if error.reason == "prompt_too_long" and len(window) > 1:
                half = len(window) // 2
                return [*await ask(window[:half]), *await ask(window[half:])]
            if error.reason == NOT_ASKED:
                return []
            logger.info("no artifacts from document %s: %s", window[0]["document_id"], error)
            dropped[error.reason] += 1
            return []
        return _borne_out(answer.value, window, batch, client.generator, dropped)

    results = await client.gather(windows, ask, label="Reading documents for artifacts", unit="call")
    return [row for result in results for row in result]


def _known_of(window: Window) -> dict[str, dict[str, Any]]:
    labels = [f"S{number}" for number in range(1, len(window) + 1)]
    return {
        "ArtifactsAnswer.artifacts": {"maxItems": _PER_DOCUMENT},
        "ArtifactAnswer.text": {"minLength": 1, "maxLength": _MAX_CHARACTERS},
        "ArtifactAnswer.segments": some_of(labels),
    }


def messages_of(window: Window) -> list[dict[str, Any]]:
    """The conversation that asks for a window's artifacts."""
    texts = {f"S{number}": remove_instructions(row["text"]) for number, row in enumerate(window, start=1)}
    return [
        {"role": "system", "content": fill_prompt("artifacts.md", count=_PER_DOCUMENT)},
        {"role": "user", "content": delimit(texts)},
    ]


def _borne_out(
    answer: ArtifactsAnswer, window: Window, batch: str, extractor: str, dropped: Counter[str]
) -> list[dict[str, Any]]:
    """Rows of the artifacts that their segments bear out; the others are counted."""
    labels = {f"S{number}": row for number, row in enumerate(window, start=1)}
    rows = []
    for artifact in answer.artifacts:
        text = " ".join(artifact.text.split())
        named = [plain_label(label) for label in artifact.segments]
        known = [labels[label] for label in named if label in labels]
        said = " ".join(f"{row['heading_path']} {row['text']}" for row in known)
        if not text or len(text) > _MAX_CHARACTERS:
            dropped["empty_or_long"] += 1
        elif not known or len(known) < len(artifact.segments):
            dropped["unknown_segment"] += 1
        elif overlap(text, said) < _MIN_OVERLAP:
            dropped["not_in_segments"] += 1
        else:
            ids = [row["segment_id"] for row in known]
            rows.append(_row(window[0]["document_id"], batch, artifact.kind, text, ids, extractor=extractor))
    return rows


def plan_windows(segments: pl.DataFrame) -> list[Window]:
    """Runs of one document's segments, each run short enough for one call; none without a segment asked about."""
    windows: list[Window] = []
    size = 0
    for row in segments.sort("document_id", "position").iter_rows(named=True):
        same = bool(windows) and windows[-1][0]["document_id"] == row["document_id"]
        if not same or size + len(row["text"]) > _WINDOW_CHARACTERS:
            windows.append([])
            size = 0
        windows[-1].append(row)
        size += len(row["text"])
    return [window for window in windows if any(row.get(ASKED, True) for row in window)]


def _row(
    document_id: str, batch: str, kind: str, text: str, segment_ids: list[str], *, extractor: str
) -> dict[str, Any]:
    ids = sorted(set(segment_ids))
    return {"document_id": document_id, "batch": batch, "kind": kind, "text": text, "segment_ids": ids,
            "extractor": extractor}  # fmt: skip
