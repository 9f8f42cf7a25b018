"""On what a backend that no release has proven is compared, on this machine, with the fp32 export that one has.

A release proves files. What OpenVINO computes, or torch in half precision, depends on the processor or GPU as well, so
it is measured where it is served: on texts of the corpus, whole and as short as queries, and on those that the release
found its exports to differ in most.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING

from embed_pipeline.release.bundle import EXPORT_FOLDERS, Manifest
from embed_pipeline.release.parity import PARITY_FILE, read_parity

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

SEGMENTS = 64
"""Segments of the corpus that are compared, at most."""
_QUERY_WORDS = 12


def proof_texts(bundle: Path, manifest: Manifest, corpus: UPath | None, seed: int) -> list[str]:
    """What to compare with: parts of the ``corpus`` table and the worst texts of the bundle's exports, or nothing.

    Raises:
        ReleaseError: the parity figures of an export are damaged.
    """
    found: list[str] = []
    for folder in EXPORT_FOLDERS.values():
        if f"{folder}/{PARITY_FILE}" in manifest.files:
            found.extend(worst.text for worst in read_parity(bundle / folder).worst)
    segments = _segments(corpus) if corpus is not None else []
    chosen = random.Random(seed).sample(segments, min(SEGMENTS, len(segments)))  # noqa: S311 - a choice to be repeated
    for text in chosen:
        found.extend([text, " ".join(text.split()[:_QUERY_WORDS])])
    return list(dict.fromkeys(text for text in found if text.strip()))


def _segments(corpus: UPath) -> list[str]:
    from embed_pipeline import tables
    from embed_pipeline.storage import StorageError, read_table

    try:
        texts: list[str] = read_table(corpus, tables.CORPUS).sort("segment_id")["text"].to_list()
    except (FileNotFoundError, StorageError) as error:
        # A bundle may be served where no corpus is; without any text nothing is proven.
        logger.info("no corpus to prove a backend on: %s", error)
        return []
    return texts
