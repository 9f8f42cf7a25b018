"""Which segments questions are asked about where a corpus has more than ``synthesis.max_questions`` allow.

Segments are taken one after another, each the one that adds most to how close every segment of the batch is to one that
was taken (facility location). So those that stand for many others come first, and a higher limit only adds some: what
was asked under a lower one is asked alike, and its answers are in the response store.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import math
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.settings import Settings
from embed_pipeline.text.passages import passages_by_id

logger = logging.getLogger(__name__)
ASKED = "asked"
"""Column of the segments: whether questions are asked about it."""
_NEIGHBOURS = 64


def mark_asked(
    batch: str, segments: pl.DataFrame, share: float, settings: Settings, load_encoder: Callable[[], Encoder]
) -> pl.DataFrame:
    """The segments with the column :data:`ASKED`; none are left where no source of pairs is generated.

    Args:
        batch: name of the batch.
        segments: frame of :data:`tables.SEGMENTS`, with titles where ``embedding.context`` needs them.
        share: of the corpus that the batch is, and so of the questions that it gets.
        settings: ``synthesis.max_questions`` and what decides how many questions a segment gets.
        load_encoder: gives the base encoder, called only where not all segments are asked about.
    """
    if not settings.training_data.generates:
        return segments.clear().with_columns(pl.lit(value=True).alias(ASKED))
    candidates = askable_segments(segments, settings)
    wanted = _wanted(batch, candidates, share, settings)
    if wanted >= candidates.height:
        return segments.with_columns(pl.lit(value=True).alias(ASKED))
    ids = candidates["segment_id"].to_list()
    chosen: list[str] = []
    if wanted:
        vectors = segment_vectors(ids, segments, settings, load_encoder)
        chosen = [ids[index] for index in covering(vectors, wanted)]
    logger.info(
        "questions are asked about %d of %d segments of batch %s, which cover it (synthesis.max_questions is %s)",
        wanted,
        candidates.height,
        batch,
        settings.synthesis.max_questions,
    )
    return segments.with_columns(pl.col("segment_id").is_in(chosen).alias(ASKED))


def askable_segments(segments: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Segments long enough to ask about, one for each distinct text, sorted by document and position."""
    long_enough = segments.filter(pl.col("token_count") >= settings.corpus.min_segment_tokens)
    return long_enough.sort("document_id", "position").unique("text", keep="first", maintain_order=True)


def segment_vectors(
    segment_ids: Iterable[str], segments: pl.DataFrame, settings: Settings, load_encoder: Callable[[], Encoder]
) -> NDArray[np.float32]:
    """Unit vectors of some segments of a frame, in their order, shape (segments, d)."""
    # All texts in the order of the later searches, whose vectors these then are.
    text_of = passages_by_id(segments.sort("segment_id"), settings.embedding.context)
    texts = list(dict.fromkeys(text_of.values()))
    place = {text: index for index, text in enumerate(texts)}
    every = load_encoder().encode(texts, "passage", label="Finding neighbours")
    return every[[place[text_of[segment_id]] for segment_id in segment_ids]]


def _wanted(batch: str, candidates: pl.DataFrame, share: float, settings: Settings) -> int:
    """How many segments of the batch make up its share of the questions."""
    synthesis = settings.synthesis
    if synthesis.max_questions == "all" or candidates.is_empty():
        return candidates.height
    hops = 1 + (synthesis.multi_hop_share if synthesis.max_hops > 1 else 0)
    per_segment = float(synthesis.questions_per_segment)
    if synthesis.questions_per_document is not None:
        documents = candidates["document_id"].n_unique()
        per_segment = synthesis.questions_per_document * documents / candidates.height
    # Rounded down or up by chance, so that the questions of many small batches add up to the limit.
    digest = hashlib.sha256(f"{settings.seed} {batch} asked".encode()).digest()
    chance = int.from_bytes(digest[:4]) / 2**32
    return math.floor(synthesis.max_questions * share / hops / per_segment + chance)


def covering(vectors: NDArray[np.float32], wanted: int) -> list[int]:
    """The first ``wanted`` rows in the order in which they cover all rows best, greedily.

    A row covers each of its 64 nearest neighbours by their similarity. The next row taken is always the one that adds
    most to what is covered; of equal ones, the first. Any number of rows covers at least 63 % of what is possible.

    Args:
        vectors: unit vectors, float32 (n, d).
        wanted: how many rows, at most n.
    """
    from scipy.sparse import coo_array, eye_array

    from embed_pipeline.embedding.search import search

    count = len(vectors)
    if not wanted:
        return []
    hits = search(np.ascontiguousarray(vectors), np.ascontiguousarray(vectors), min(_NEIGHBOURS, count))
    rows = np.repeat(np.arange(count), hits.indices.shape[1])
    near = coo_array((np.clip(hits.scores, 0, 1).ravel(), (rows, hits.indices.ravel())), shape=(count, count))
    # Column j: the rows that j covers, itself among them even where 64 others have the same vector.
    covers = near.tocsc().maximum(eye_array(count, dtype=np.float32, format="csc")).tocsc()
    covered = np.zeros(count, np.float32)
    # What a row adds only falls while others are taken: the first whose figure is up to date is the best.
    queue = [(-float(gain), index) for index, gain in enumerate(covers.sum(axis=0))]
    heapq.heapify(queue)
    taken: list[int] = []
    while len(taken) < wanted:
        index = heapq.heappop(queue)[1]
        column = slice(covers.indptr[index], covers.indptr[index + 1])
        reached, similar = covers.indices[column], covers.data[column]
        gain = float(np.maximum(similar - covered[reached], 0).sum())
        if not queue or (-gain, index) <= queue[0]:
            taken.append(index)
            covered[reached] = np.maximum(covered[reached], similar)
        else:
            heapq.heappush(queue, (-gain, index))
    return taken
