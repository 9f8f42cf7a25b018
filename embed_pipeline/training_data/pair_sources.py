"""All pairs that the dataset is made of: generated, from the documents' structure, labelled."""

from __future__ import annotations

import hashlib
import json

import polars as pl

from embed_pipeline import tables
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.labels import labelled_pairs, read_labels
from embed_pipeline.training_data.structure import structure_pairs


def collect_pairs(generated: pl.DataFrame, corpus: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """The pairs of every source that ``training_data.sources`` and ``training_data.label_sets`` name.

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
    if "structure" in options.sources:
        frames.append(structural_pairs(corpus, settings))
    if options.label_sets:
        frames.append(labelled_pairs(read_labels(options.label_sets, corpus), corpus))
    return tables.validate(pl.concat(frames).sort("qa_id"), tables.QA_DATASET)


def labels_version(settings: Settings) -> str:
    """Short hash of which labels there are: names, sizes and times of their files, whose texts are not read."""
    found = []
    for given in settings.training_data.label_sets:
        files = sorted(path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        stats = [(path, path.stat()) for path in files if path.exists()]
        found.append([str(given), *((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:12]


def structural_pairs(corpus: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Structure pairs as rows of :data:`tables.QA_DATASET`; the kinds are those of ``training_data.augmentations``.

    What a generator or a judge says of a pair is null.
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
                "origin": pair.origin,
                "batch": None,
                "label_set": None,
                "side": None,
                "question": pair.question,
                "answer": text,
                "query_type": None,
                "reasoning_type": None,
                "complexity": None,
                "hop_count": 1,
                "hops": [{"hop_number": 1, "segment_ids": [pair.segment_id], "summary": ""}],
                "segment_ids": [pair.segment_id],
                "document_ids": [document],
                "generator": None,
                "prompt_version": None,
                "overall": None,
                "round_trip_rank": None,
            }
        )
    return tables.QA_DATASET.frame(rows)
