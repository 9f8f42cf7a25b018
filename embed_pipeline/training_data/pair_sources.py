"""All pairs that the dataset is made of: generated, from the documents' structure, labelled."""

from __future__ import annotations

import hashlib
import json

import polars as pl

from embed_pipeline import tables
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.labels import LABELLED, labelled_pairs, read_labels
from embed_pipeline.training_data.structure import structure_pairs

GENERATED = "generated"
_STRUCTURE = "structure"


def collect_pairs(generated: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The pairs of every source that ``training_data.sources`` and ``training_data.labelled`` name.

    Args:
        generated: accepted generated pairs, frame of :data:`tables.QA_DATASET`.
        corpus: frame of :data:`tables.CORPUS`, labelled passages in it.
        settings: the sources.

    Returns:
        Frame of :data:`tables.QA_DATASET`, sorted by qa_id.

    Raises:
        LabelsError: labels cannot be read, or name what is not in the corpus.
    """
    options = settings.training_data
    frames = [tables.QA_DATASET.empty()]
    if options.generates:
        frames.append(generated)
    if _STRUCTURE in options.sources:
        frames.append(structural_pairs(corpus, settings))
    if options.labelled:
        frames.append(labelled_pairs(read_labels(options.labelled, corpus), corpus))
    return tables.validate(pl.concat(frames).sort("qa_id"), tables.QA_DATASET)


def labels_version(settings: Settings) -> str:
    """Short hash of which labels there are: names, sizes and times of their files, whose texts are not read."""
    found = []
    for given in settings.training_data.labelled:
        files = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        stats = [(path, path.stat()) for path in files if path.exists()]
        found.append([str(given), *((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


def sources_version(settings: Settings) -> str:
    """Short hash of what decides which pairs there are beside the generated ones."""
    options = settings.training_data
    chosen = [sorted(options.sources), sorted(options.augmentations), settings.corpus.min_segment_tokens]
    return hashlib.sha256(json.dumps([chosen, labels_version(settings)]).encode()).hexdigest()[:12]


def structural_pairs(corpus: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Structure pairs as rows of :data:`tables.QA_DATASET`; the kinds are those of ``training_data.augmentations``.

    What generation would have measured is 10 (overall) and 0 (rank).
    """
    place = {row[0]: row[1:] for row in corpus.select("segment_id", "document_id", "text").iter_rows()}
    found = structure_pairs(corpus, settings.training_data.augmentations, settings.corpus.min_segment_tokens)
    rows: list[dict[str, object]] = []
    for pair in found:
        document, text = place[pair.segment_id]
        identity = f"{pair.origin}\0{pair.question}\0{pair.segment_id}"
        rows.append(
            {
                "qa_id": hashlib.sha256(identity.encode()).hexdigest()[:16],
                "batch": _STRUCTURE,
                "question": pair.question,
                "answer": text,
                "query_type": "structural",
                "reasoning_type": "factual",
                "complexity": 1,
                "hop_count": 1,
                "hops": [{"hop_number": 1, "segment_ids": [pair.segment_id], "summary": ""}],
                "segment_ids": [pair.segment_id],
                "document_ids": [document],
                "generator": f"{_STRUCTURE}:{pair.origin}",
                "prompt_version": "",
                "overall": 10.0,
                "round_trip_rank": 0,
            }
        )
    return tables.QA_DATASET.frame(rows)


def origin_of(generator: str) -> str:
    """How a pair came to be, from the ``generator`` stored with it: generated, labelled, or the structure's kind."""
    if generator == LABELLED:
        return LABELLED
    source, _, kind = generator.partition(":")
    return kind if source == _STRUCTURE and kind else GENERATED
