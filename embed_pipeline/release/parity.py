"""The parity gate: an exported model must give the original's vectors and the original's rankings.

Measured on the evaluation corpus itself, since a few hand-picked sentences prove nothing about the texts that the
model will meet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from embed_pipeline.embedding.backend import Backend
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.proven import cosines_of
from embed_pipeline.embedding.search import Floats, Hits, search
from embed_pipeline.release.manifest import ReleaseError
from embed_pipeline.settings import Embedding, Gates

PARITY_FILE = "parity.json"
"""In an export's folder: the figures, as :meth:`Parity.as_dict` gives them."""
_DEPTH = 10
_TIE = 1e-5
"""Similarities that are nearer than this are taken as equal: passages of the same text, which rounding would order."""
_WORST = 10
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True)
class WorstText:
    """A text whose exported vector is among the furthest from the original's."""

    kind: Literal["query", "passage"]
    id: str
    cosine: float
    text: str


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from its original.

    Attributes:
        passages: passages compared.
        queries: queries compared.
        min_cosine: least cosine of a text's two vectors, over queries and passages.
        mean_cosine: their mean.
        top10_overlap: mean over the queries of the share of the ten best passages that both models find.
        ndcg_delta: nDCG@10 of the export less that of the original.
        recall_delta: Recall@10 of the export less that of the original.
        worst: the ten texts of least cosine, worst first.
    """

    passages: int
    queries: int
    min_cosine: float
    mean_cosine: float
    top10_overlap: float
    ndcg_delta: float
    recall_delta: float
    worst: tuple[WorstText, ...]

    def failures(self, gates: Gates) -> list[str]:
        """What misses its bound in ``gates``, a sentence each; empty: the export may be released."""
        found = []
        # Written so that a value that is not a number fails.
        if not self.min_cosine >= gates.min_export_cosine:
            worst = f" (worst: {self.worst[0].kind} {self.worst[0].id}: {self.worst[0].text!r})" if self.worst else ""
            found.append(
                f"min cosine {self.min_cosine:.7f} is below gates.min_export_cosine {gates.min_export_cosine}{worst}"
            )
        if not self.top10_overlap >= gates.min_export_top10_overlap:
            bound = gates.min_export_top10_overlap
            found.append(f"top-10 overlap {self.top10_overlap:.4f} is below gates.min_export_top10_overlap {bound}")
        if not abs(self.ndcg_delta) <= gates.max_export_ndcg_delta:
            bound = gates.max_export_ndcg_delta
            found.append(f"nDCG@10 changes by {self.ndcg_delta:+.4f}, more than gates.max_export_ndcg_delta {bound}")
        return found

    @property
    def figures(self) -> dict[str, float]:
        """The measured figures, by name."""
        names = ("min_cosine", "mean_cosine", "top10_overlap", "ndcg_delta", "recall_delta")
        return {name: getattr(self, name) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON values, as the manifest keeps them."""
        return asdict(self) | {"worst": [asdict(text) for text in self.worst]}


def write_parity(parity: Parity, folder: Path) -> None:
    """Write the figures into the export's folder, without texts: it may be released, where no document is forgotten."""
    kept = replace(parity, worst=tuple(replace(text, text="") for text in parity.worst))
    (folder / PARITY_FILE).write_text(json.dumps(kept.as_dict(), indent=2) + "\n", encoding="utf-8")


def read_parity(onnx_folder: Path) -> Parity:
    """The figures that were measured when ``onnx_folder`` was written.

    Raises:
        ReleaseError: they are missing or damaged.
    """
    path = onnx_folder / PARITY_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Parity(**{**values, "worst": tuple(WorstText(**text) for text in values["worst"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} does not hold the export's parity ({error}); export the model again"
        raise ReleaseError(message) from error


def measure_parity(
    model: Path,
    export: Backend,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    embedding: Embedding,
    vectors: Path | None = None,
    batches: Mapping[int, str] = MappingProxyType({}),
) -> Parity:
    """Encode corpus and queries with both models and compare vectors, rankings and metrics.

    Args:
        model: the original, a sentence-transformers folder.
        export: the export, opened.
        corpus: passage id to text.
        queries: query id to text.
        qrels: query id to relevant passage ids with their grade, for some or all of the queries.
        embedding: how the original is encoded; always in fp32 here.
        vectors: folder in which vectors of earlier stages are found; None: all are computed.
        batches: hash of a passage to the document batch that it came with, by which they are found.

    Raises:
        ReleaseError: there is nothing to compare: no passage, no query, or no relevant passage of the corpus.
        ModelError: a model cannot be loaded or gives a vector that is not finite.
    """
    judged = {query: dict(grades) for query, grades in qrels.items() if query in queries and grades}
    if not corpus or not any(passage in corpus for grades in judged.values() for passage in grades):
        message = f"parity needs passages, queries and qrels: got {len(corpus)}, {len(queries)}, {len(judged)} that fit"
        raise ReleaseError(message)
    original = Encoder.load(model, embedding.model_copy(update={"precision": "fp32"}), vectors, batches)
    exported = Encoder(export, embedding.batch_tokens, vectors, batches)
    if (original.dimensions, original.max_tokens) != (exported.dimensions, exported.max_tokens):
        message = (
            f"the export has {exported.dimensions} dimensions and {exported.max_tokens} tokens, "
            f"the original {original.dimensions} and {original.max_tokens}"
        )
        raise ReleaseError(message)
    passage_ids, query_ids = sorted(corpus), sorted(queries)
    passages, questions = [corpus[i] for i in passage_ids], [queries[i] for i in query_ids]
    passages_a = original.encode(passages, "passage", "Encoding passages with the original")
    passages_b = exported.encode(passages, "passage", "Encoding passages with the export")
    questions_a = original.encode(questions, "query", "Encoding queries with the original")
    questions_b = exported.encode(questions, "query", "Encoding queries with the export")
    cosines = np.concatenate([cosines_of(questions_a, questions_b), cosines_of(passages_a, passages_b)])
    hits_a, hits_b = _ranked(questions_a, passages_a), _ranked(questions_b, passages_b)
    metrics_a = _metrics(hits_a, query_ids, passage_ids, judged)
    metrics_b = _metrics(hits_b, query_ids, passage_ids, judged)
    labels: list[tuple[Literal["query", "passage"], str, str]] = [
        *(("query", i, queries[i]) for i in query_ids),
        *(("passage", i, corpus[i]) for i in passage_ids),
    ]
    return Parity(
        passages=len(passages),
        queries=len(questions),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
        top10_overlap=hits_a.overlap(hits_b),
        ndcg_delta=metrics_b[0] - metrics_a[0],
        recall_delta=metrics_b[1] - metrics_a[1],
        worst=tuple(
            WorstText(labels[i][0], labels[i][1], float(cosines[i]), labels[i][2][:_SHOWN_CHARACTERS])
            for i in np.argsort(cosines, kind="stable")[:_WORST]
        ),
    )


def _ranked(questions: Floats, passages: Floats) -> Hits:
    """The ten best passages of every question, those of equal similarity in their own order."""
    found = search(questions, passages, 2 * _DEPTH)
    level = np.cumsum(np.diff(found.scores, axis=1, prepend=found.scores[:, :1]) < -_TIE, axis=1)
    order = np.lexsort((found.indices, level), axis=-1)[:, :_DEPTH]
    return Hits(np.take_along_axis(found.scores, order, axis=1), np.take_along_axis(found.indices, order, axis=1))


def _metrics(
    hits: Hits, query_ids: Sequence[str], passage_ids: Sequence[str], qrels: Mapping[str, Mapping[str, int]]
) -> tuple[float, float]:
    """NDCG@10 and Recall@10. Scores are ranks, so that the metric does not reorder ties."""
    import ir_measures
    from ir_measures import R, nDCG

    run = {
        query: {passage_ids[index]: float(-rank) for rank, index in enumerate(row)}
        for query, row in zip(query_ids, hits.indices.tolist(), strict=True)
    }
    measures = [nDCG @ _DEPTH, R @ _DEPTH]
    values = ir_measures.calc_aggregate(measures, {q: dict(g) for q, g in qrels.items()}, run)
    return float(values[measures[0]]), float(values[measures[1]])
