"""The stages as Python functions: a folder of documents to an evaluated, exported model, without Dagster and MLflow.

Each function takes what the one before it returns, and settings; without settings, those of ``embed_pipeline.toml`` and
the environment count, as for the commands. Tables are polars frames in the columns of :mod:`embed_pipeline.tables`.
What the commands add is memory: they store every table, skip what is current, apply the gates and register models.
They also compare candidates for the base; with ``embedding.model = "auto"`` these functions take the first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import polars as pl

from embed_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from embed_pipeline.evaluation.query_sets import QuerySet
    from embed_pipeline.evaluation.retrieval import Comparison
    from embed_pipeline.release.parity import Parity

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _apart_from_a_loop(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run ``function`` in a thread of its own where this one runs an event loop already, as a notebook's does.

    The language model's client has an event loop of its own, and a thread can run one at a time.
    """

    @wraps(function)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return function(*args, **kwargs)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copy_context().run, partial(function, *args, **kwargs)).result()

    return called


@dataclass(frozen=True)
class DocumentSet:
    """Documents as they were read and cut.

    Attributes:
        documents: batch name to its table ``documents``.
        segments: batch name to its table ``segments``.
        rejected: table ``rejected_documents``: files that could not be read, with the reason.
        corpus: table ``corpus``: every segment that is searched, near-duplicate documents left out.
        left_out: table ``left_out_documents``: which these are, and what they are copies of.
    """

    documents: dict[str, pl.DataFrame]
    segments: dict[str, pl.DataFrame]
    rejected: pl.DataFrame
    corpus: pl.DataFrame
    left_out: pl.DataFrame


@dataclass(frozen=True)
class TrainingSet:
    """Pairs, split and turned into training examples.

    Attributes:
        corpus: table ``corpus`` of the documents.
        left_out: table ``left_out_documents``: the copies that it leaves out.
        pairs: table ``qa_dataset``.
        split: table ``dataset_split``: the side of every pair.
        negatives: table ``hard_negatives``.
        examples: table ``training_examples``.
    """

    corpus: pl.DataFrame
    left_out: pl.DataFrame
    pairs: pl.DataFrame
    split: pl.DataFrame
    negatives: pl.DataFrame
    examples: pl.DataFrame

    def query_set(self, side: str) -> QuerySet:
        """The generated questions of a side: train, dev or test."""
        from embed_pipeline.evaluation.query_sets import generated_set

        return generated_set(self.pairs, self.split, side)


def read_documents(folder: str | Path, settings: Settings | None = None) -> DocumentSet:
    """Read a folder of documents, remove boilerplate and cut the documents into segments.

    Args:
        folder: a folder, or an address such as ``s3://bucket/prefix``; takes the place of ``paths.documents``.
        settings: groups ``corpus`` and ``embedding`` (whose tokens segments are counted in).

    Raises:
        CorpusError: the folder is missing or has no readable document.
        ModelError: the base model cannot be loaded.
    """
    from embed_pipeline.corpus import documents as reading
    from embed_pipeline.corpus.batches import cut_batches
    from embed_pipeline.corpus.current import current_corpus
    from embed_pipeline.corpus.segments import split_segments
    from embed_pipeline.embedding.encoder import Encoder
    from embed_pipeline.training_data.labels import with_labelled_passages

    settings = _effective(settings)
    encoder = Encoder.load(settings.embedding.model, settings.embedding)
    documents, segments, rejected = {}, {}, []
    with TemporaryDirectory() as temporary:
        # Batches are remembered in a store, so that a later look finds what is new; here every file is.
        paths = settings.paths.model_copy(update={"documents": folder, "store": Path(temporary), "assets": None})
        aside = settings.model_copy(update={"paths": type(paths).model_validate(paths.model_dump())})
        batches, _ = cut_batches(aside)
        for batch in batches:
            read, unread = reading.read_documents(batch, aside, only_batch=len(batches) == 1)
            documents[batch.name], _ = reading.clean_documents(read, batch, aside)
            segments[batch.name] = split_segments(
                documents[batch.name],
                settings.corpus,
                encoder.count_tokens,
                max_tokens=encoder.passage_tokens,
                count_unknown=encoder.count_unknown,
                context=settings.embedding.context,
            )
            rejected.append(unread)
    corpus, left_out = current_corpus(documents, segments, settings.corpus)
    if settings.training_data.label_sets:
        folders, context = settings.training_data.label_sets, settings.embedding.context
        corpus = with_labelled_passages(corpus, folders, encoder.count_tokens, context)
    return DocumentSet(documents, segments, pl.concat(rejected), corpus, left_out)


def baseline(documents: DocumentSet, settings: Settings | None = None) -> pl.DataFrame:
    """Score the base model, BM25 and both together on people's queries: what a tuned model has to beat.

    Args:
        documents: from :func:`read_documents`.
        settings: groups ``embedding`` and ``evaluation``; ``evaluation.query_sets`` names people's queries.

    Returns:
        Rows of the table ``retrieval_evaluation``, for the systems base, bm25 and hybrid_base.

    Raises:
        EvaluationError: there is no query about these documents.
        LabelsError: a query set is malformed.
        ModelError: the base model cannot be loaded.
    """
    from embed_pipeline.evaluation.query_sets import EvaluationError, labelled_set
    from embed_pipeline.evaluation.retrieval import compare

    settings = _effective(settings)
    found = (labelled_set(folder, documents.corpus, documents.left_out) for folder in settings.evaluation.query_sets)
    sets = [query_set for query_set in found if query_set is not None]
    if not sets:
        message = "no query set of evaluation.query_sets judges one of these documents (docs/labels.md)"
        raise EvaluationError(message)
    base = settings.embedding.model
    compared = compare(base, base, documents.corpus, sets, settings, vectors=settings.paths.store / "vectors")
    return compared.metrics.filter(pl.col("system").is_in(["base", "bm25", "hybrid_base"]))


@_apart_from_a_loop
def generate(documents: DocumentSet, settings: Settings | None = None) -> pl.DataFrame:
    """Write questions about the documents, score them and keep the good ones: table ``qa_dataset``.

    Pairs of the other sources (``training_data.sources``, ``training_data.label_sets``) are added. Answers of the
    language model are kept in ``paths.store``, so that asking again costs nothing.

    Args:
        documents: from :func:`read_documents`.
        settings: groups ``llm``, ``synthesis``, ``embedding`` and ``training_data``.

    Raises:
        EndpointError, BudgetExhausted, TooManyFailures, EmbeddedModelError: the language model cannot be asked.
    """
    from embed_pipeline.embedding.proven import open_base_encoder
    from embed_pipeline.synthesis.artifacts import extract_artifacts
    from embed_pipeline.synthesis.coverage import mark_asked
    from embed_pipeline.synthesis.generate import generate_pairs
    from embed_pipeline.synthesis.score import score_pairs
    from embed_pipeline.synthesis.select import select_pairs
    from embed_pipeline.synthesis.trial import choose_judge, choose_path
    from embed_pipeline.text.passages import with_titles
    from embed_pipeline.training_data.pair_sources import collect_pairs

    settings = _effective(settings).since(time.time())
    encoder = open_base_encoder(settings, documents.corpus)
    pairs, scores = {}, {}
    whole = max(1, sum(segments.height for segments in documents.segments.values()))
    for batch, segments in documents.segments.items():
        titled = with_titles(segments, documents.documents[batch])
        asked = mark_asked(batch, titled, segments.height / whole, settings, lambda: encoder)
        titles = dict(documents.documents[batch].select("document_id", "title").iter_rows())
        asking = choose_path(asked, titles, settings).applied(settings)
        artifacts = extract_artifacts(batch, asked, asking).artifacts
        pairs[batch] = generate_pairs(batch, asked, artifacts, titles, asking, lambda: encoder).pairs
        judging = choose_judge(pairs[batch], titled, settings).applied(settings)
        scores[batch] = score_pairs(batch, pairs[batch], titled, judging, encoder).scores
    accepted = select_pairs(pairs, scores, documents.corpus, settings, encoder).dataset
    return collect_pairs(accepted, documents.corpus, settings, documents.left_out)


@_apart_from_a_loop
def mine(pairs: pl.DataFrame, documents: DocumentSet, settings: Settings | None = None) -> TrainingSet:
    """Split the pairs without leaks and mine hard negatives for the training questions.

    Args:
        pairs: table ``qa_dataset``, from :func:`generate`.
        documents: the documents that the pairs are about.
        settings: groups ``training_data`` and ``embedding``.

    Raises:
        ModelError: the base model cannot be loaded.
    """
    from embed_pipeline.embedding.proven import open_base_encoder
    from embed_pipeline.training_data.negatives import mine_hard_negatives, unroll
    from embed_pipeline.training_data.questions import training_questions
    from embed_pipeline.training_data.split import split_dataset

    settings = _effective(settings)
    corpus = documents.corpus
    split = split_dataset(pairs, corpus, settings, None)
    questions = training_questions(pairs, split, corpus, settings, documents.left_out)
    encoder = open_base_encoder(settings, corpus)
    negatives = mine_hard_negatives(questions, corpus, settings, encoder)
    return TrainingSet(corpus, documents.left_out, pairs, split, negatives, unroll(negatives))


def train(data: TrainingSet, output: str | Path, settings: Settings | None = None) -> Path:
    """Fine-tune the base model and return the folder of the tuned sentence-transformers model.

    Checkpoints lie next to it in ``.<name>.work``: a training that was killed continues from them, and the same
    training again only chooses and writes. ``training.json`` in the folder says what was done.

    Args:
        data: from :func:`mine`.
        output: a folder that does not exist yet.
        settings: groups ``embedding``, ``training``, ``adapter``, ``forgetting`` and ``evaluation``.

    Raises:
        FileExistsError: ``output`` exists.
        TrainingError: as :func:`embed_pipeline.training.train.finetune`.
        ModelError: the base model cannot be loaded.
    """
    from embed_pipeline.text.passages import passages_by_id
    from embed_pipeline.training.train import finetune

    folder = Path(output)
    if folder.exists():
        message = f"{folder} exists; name a folder that does not"
        raise FileExistsError(message)
    settings = _effective(settings)
    passages = passages_by_id(data.corpus, settings.embedding.context)
    finetune(
        data.examples,
        passages,
        data.query_set("dev"),
        (list(passages), list(passages.values())),
        settings,
        output=folder,
        work=folder.with_name(f".{folder.name}.work"),
        documents=data.corpus["document_id"].to_list(),
    )
    return folder


def evaluate(model: str | Path, data: TrainingSet, settings: Settings | None = None) -> Comparison:
    """Compare a tuned model with its base, BM25 and their hybrids on the held-out questions and on people's queries.

    Args:
        model: folder of the tuned model, from :func:`train`.
        data: from :func:`mine`; its test questions were not trained on.
        settings: groups ``embedding`` and ``evaluation``; ``evaluation.query_sets`` names people's queries.

    Raises:
        EvaluationError: there is no question to evaluate on.
        ModelError: a model cannot be loaded.
    """
    from embed_pipeline.evaluation.query_sets import known_sets
    from embed_pipeline.evaluation.retrieval import compare

    settings = _effective(settings)
    sets = known_sets(data.pairs, data.split, data.corpus, data.left_out, settings.evaluation.query_sets)
    dev = data.query_set("dev")
    return compare(settings.embedding.model, Path(model), data.corpus, sets, settings, dev=dev)


def export(model: str | Path, output: str | Path, data: TrainingSet, settings: Settings | None = None) -> Parity:
    """Export a model to ONNX, pooling and normalisation included, and compare its vectors with the original's.

    The figures are also written into ``output``, as ``parity.json``.

    Args:
        model: folder of the tuned model.
        output: folder for the export.
        data: its corpus and up to 2,000 of its questions are what both models encode.
        settings: groups ``release``, ``embedding`` and ``gates``.

    Raises:
        ReleaseError: the export's vectors or rankings are beyond the bounds in ``gates``.
        OnnxExportError: the model has no valid graph.
        ModelError: the model cannot be loaded.
    """
    from embed_pipeline.embedding.onnx_backend import OnnxBackend
    from embed_pipeline.embedding.onnx_export import export_onnx
    from embed_pipeline.evaluation.query_sets import sampled_set
    from embed_pipeline.release.manifest import ReleaseError
    from embed_pipeline.release.parity import measure_parity, write_parity
    from embed_pipeline.text.passages import passages_by_id

    settings = _effective(settings)
    folder, asked = Path(output), sampled_set(data.pairs)
    export_onnx(model, folder, settings.release, settings.embedding)
    texts = passages_by_id(data.corpus, settings.embedding.context)
    exported = OnnxBackend(folder)
    parity = measure_parity(Path(model), exported, texts, asked.queries, asked.qrels, embedding=settings.embedding)
    write_parity(parity, folder)
    if failures := parity.failures(settings.gates):
        message = f"the export in {folder} differs from {model}: {'; '.join(failures)}"
        raise ReleaseError(message)
    return parity


def _effective(settings: Settings | None) -> Settings:
    """The settings given, else those of the project, with the base model named."""
    found = settings or load_settings()
    return found.with_base(found.embedding.reading_model)
