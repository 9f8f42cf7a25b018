"""Dev nDCG@10 while training: the figure by which the checkpoint is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.search import BM25, search
from embed_pipeline.evaluation.metrics import score_rankings
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.settings import Embedding
from embed_pipeline.training.errors import TrainingError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CUTOFF = 10
MAX_POOL = 400
_LEXICAL_HITS = 10


class DevMeasure:
    """Measures a model on the dev questions.

    A large corpus is cut to a pool that is searched instead: every positive, the passages that share most words
    with a question (so that the task stays hard), and a seeded sample.

    Attributes:
        pool: texts that are searched.
    """

    def __init__(
        self, dev: QuerySet, corpus: tuple[Sequence[str], Sequence[str]], *, seed: int, max_pool: int = MAX_POOL
    ) -> None:
        """Choose the pool.

        Args:
            dev: questions answered by segments.
            corpus: ids and texts of all segments.
            seed: seed of the sample.
            max_pool: passages searched, but for positives, which are all in.

        Raises:
            TrainingError: a dev question is answered by a segment that is not in the corpus.
        """
        ids, texts = corpus
        place = {segment: index for index, segment in enumerate(ids)}
        unknown = sorted({item for rel in dev.qrels.values() for item in rel} - set(place))
        if unknown:
            message = f"dev questions are answered by segments not in the corpus, first {unknown[0]!r}"
            raise TrainingError(message)
        self._dev = dev
        self._questions = [dev.queries[query] for query in dev.ids]
        chosen = sorted(_pool(dev, list(texts), place, seed, max_pool))
        self._ids = [ids[index] for index in chosen]
        self.pool = [texts[index] for index in chosen]

    def __call__(self, model: SentenceTransformer, embedding: Embedding) -> float:
        """Mean nDCG@10 of ``model``, which is left in the mode it was in."""
        import torch

        training = model.training
        model.eval()
        try:
            # Layers compiled for training would be compiled again for this.
            with torch.compiler.set_stance("force_eager"):
                encoder = Encoder.of(model, embedding)
                passages = encoder.encode(self.pool, "passage")
                hits = search(encoder.encode(self._questions, "query"), passages, CUTOFF)
        finally:
            model.train(training)
        rankings = {
            query: [self._ids[index] for index in row] for query, row in zip(self._dev.ids, hits.indices, strict=True)
        }
        return float(score_rankings(rankings, self._dev.qrels, (CUTOFF,)).column("nDCG", CUTOFF).mean())


def _pool(dev: QuerySet, texts: list[str], place: dict[str, int], seed: int, max_pool: int) -> set[int]:
    if len(texts) <= max_pool:
        return set(range(len(texts)))
    chosen = {place[item] for rel in dev.qrels.values() for item in rel}
    hits = BM25(texts).search([dev.queries[query] for query in dev.ids], _LEXICAL_HITS)
    for rank in range(hits.indices.shape[1]):
        column = [int(index) for index in hits.indices[:, rank] if index >= 0]
        chosen.update(column[: max(0, max_pool - len(chosen))])
    rest = np.asarray(sorted(set(range(len(texts))) - chosen))
    wanted = max(0, max_pool - len(chosen))
    chosen.update(int(index) for index in np.random.default_rng(seed).permutation(rest)[:wanted])
    return chosen
