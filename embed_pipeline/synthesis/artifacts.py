"""What each document is about: key phrases by statistics, or an LLM pass where an endpoint is set."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from embed_pipeline import tables
from embed_pipeline.llm.client import LLMClient, open_client
from embed_pipeline.llm.errors import InvalidAnswer
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.prompts import delimit, fill_prompt
from embed_pipeline.synthesis.words import content_words, inverse_document_frequency, specific_terms

logger = logging.getLogger(__name__)

_PER_DOCUMENT = 12
_WINDOW_CHARACTERS = 12_000


class ArtifactAnswer(BaseModel):
    """One artifact as the model states it."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["concept", "entity", "relation", "procedure", "condition", "figure"]
    text: str
    segments: list[str]


class ArtifactsAnswer(BaseModel):
    """The whole answer for one window of a document."""

    model_config = ConfigDict(extra="forbid")
    artifacts: list[ArtifactAnswer]


def extract_artifacts(batch: str, segments: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Artifacts of every document of the batch, as a frame of :data:`tables.DOCUMENT_ARTIFACTS`.

    With an endpoint, its model reads each document; the embedded model is too small for that, and the
    statistical extractor (``keyphrases``) speaks instead: headings, identifiers and words that set the
    document apart from the others. Artifacts that name an unknown segment are left out.
    """
    embedded = settings.llm.embedded
    rows = _keyphrases(batch, segments) if embedded else asyncio.run(_ask_all(batch, segments, settings))
    frame = tables.DOCUMENT_ARTIFACTS.frame(rows)
    return frame.unique(["document_id", "kind", "text"], keep="first").sort("document_id", "kind", "text")


def _keyphrases(batch: str, segments: pl.DataFrame) -> list[dict[str, Any]]:
    documents = segments.sort("document_id", "position").group_by("document_id", maintain_order=True)
    texts = {key[0]: group.to_dicts() for key, group in documents}
    idf = inverse_document_frequency(" ".join(row["text"] for row in rows) for rows in texts.values())
    found = []
    for document_id, rows in texts.items():
        places: dict[tuple[str, str], list[str]] = {}
        weights: dict[tuple[str, str], float] = {}
        for row in rows:
            heading = row["heading_path"].rsplit(" > ", 1)[-1]
            named = [("concept", heading)] if heading else []
            named += [("entity", term) for term in specific_terms(row["text"]) if re.search(r"[a-z]{2}", term)]
            for key in dict.fromkeys(named):
                places.setdefault(key, []).append(row["segment_id"])
                weight = sum(idf.get(word, 1.0) for word in set(content_words(key[1])))
                weights[key] = weights.get(key, 0.0) + weight
        best = sorted(weights, key=lambda key: (-weights[key], key))[:_PER_DOCUMENT]
        found += [
            _row(document_id, batch, kind, text, places[kind, text], extractor="keyphrases") for kind, text in best
        ]
    return found


async def _ask_all(batch: str, segments: pl.DataFrame, settings: Settings) -> list[dict[str, Any]]:
    windows = _windows(segments)
    async with open_client(settings.llm, settings.paths.store / "responses.sqlite") as client:

        async def ask(window: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return await _ask(client, window, batch, settings.seed)

        results = await client.gather(windows, ask, label="Reading documents for artifacts", unit="calls")
    return [row for result in results for row in result]


async def _ask(client: LLMClient, window: list[dict[str, Any]], batch: str, seed: int) -> list[dict[str, Any]]:
    document_id = window[0]["document_id"]
    labels = {f"S{number}": row for number, row in enumerate(window, start=1)}
    messages = [
        {"role": "system", "content": fill_prompt("artifacts.md", count=_PER_DOCUMENT)},
        {"role": "user", "content": delimit({label: row["text"] for label, row in labels.items()})},
    ]
    try:
        answer = await client.structured(messages, ArtifactsAnswer, temperature=0.0, seed=seed)
    except InvalidAnswer as error:
        logger.warning("no artifacts from document %s: %s", document_id, error)
        return []
    return [
        _row(
            document_id,
            batch,
            a.kind,
            a.text.strip(),
            [labels[s]["segment_id"] for s in a.segments],
            extractor=client.generator,
        )
        for a in answer.value.artifacts
        if a.text.strip() and a.segments and all(label in labels for label in a.segments)
    ]


def _windows(segments: pl.DataFrame) -> list[list[dict[str, Any]]]:
    """Runs of one document's segments, each run short enough for one call."""
    windows: list[list[dict[str, Any]]] = []
    size = 0
    for row in segments.sort("document_id", "position").iter_rows(named=True):
        same = bool(windows) and windows[-1][0]["document_id"] == row["document_id"]
        if not same or size + len(row["text"]) > _WINDOW_CHARACTERS:
            windows.append([])
            size = 0
        windows[-1].append(row)
        size += len(row["text"])
    return windows


def _row(
    document_id: str, batch: str, kind: str, text: str, segment_ids: list[str], *, extractor: str
) -> dict[str, Any]:
    ids = sorted(set(segment_ids))
    return {"document_id": document_id, "batch": batch, "kind": kind, "text": text, "segment_ids": ids,
            "extractor": extractor}  # fmt: skip
