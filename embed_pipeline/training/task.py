"""What is trained: numbered examples, dev questions, corpus and settings, and the schedule where they leave it open."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from embed_pipeline.embedding.models import resolve_model, torch_device
from embed_pipeline.enumerations import LABELLED
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.methods import made_by
from embed_pipeline.settings import TRAINING, Settings, Training
from embed_pipeline.tables import content_hash

logger = logging.getLogger(__name__)

Record = Callable[[int, dict[str, float]], None]
SMALL_DATA = 2_000
LEAST_DOCUMENTS = 20
"""With fewer documents, the linear adapter has too little text from other documents to rank."""

# The schedule. In fewer steps than this a contrastive fine-tuning at 2e-5 has hardly moved; in more passes it overfits.
_LEAST_STEPS = 30
_MOST_EPOCHS = 8
_ONE_EPOCH_FROM = 20_000
_BATCH_SIZES = ((SMALL_DATA, 32), (20_000, 64), (100_000, 128))
_LARGEST_BATCH = 256
# The learning rate, and the width up to which people's questions bear theirs.
_RATE, _LABELLED_RATE, _LABELLED_RATE_WIDTH = 2e-5, 1e-4, 384
_DEFAULT_ADAPTER_SHARE = 0.5


class TrainingError(RuntimeError):
    """Training cannot start or continue."""


@dataclass(frozen=True)
class TrainingTask:
    """One training, before a seed is chosen.

    Attributes:
        examples: the numbered examples.
        dev: questions for choosing the checkpoint; None: the last weights win.
        corpus: ids and texts of all segments.
        documents: the document of each segment, for the linear adapter; empty: each segment is a document.
        settings: groups ``embedding``, ``training``, ``adapter``, ``forgetting`` and ``evaluation``, and the seed
            of the first run.
        work: folder of checkpoints and finished seeds, of one training at a time.
        fingerprint: hash of all that decides the trained weights; the choice among them, the linear adapter and the
            check against forgetting are not part of it, and are made on every run.
        record: called with the step and its figures.
        answers: question of the examples to the texts that answer it, for the query encoder; there too where nothing
            is trained on them.
    """

    examples: Examples
    dev: QuerySet | None
    corpus: tuple[Sequence[str], Sequence[str]]
    settings: Settings
    work: Path
    fingerprint: str
    documents: Sequence[str] = ()
    record: Record | None = field(default=None, compare=False)
    answers: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """Batch size, passes and steps."""
        return schedule_for(len(self.examples), self.settings.training)

    @classmethod
    def of(
        cls,
        examples: pl.DataFrame,
        passages: Mapping[str, str],
        dev: QuerySet | None,
        corpus: tuple[Sequence[str], Sequence[str]],
        settings: Settings,
        *,
        work: Path,
        documents: Sequence[str] = (),
        record: Record | None = None,
    ) -> TrainingTask:
        """Number the examples and take the fingerprint, so that no other training's checkpoint is used.

        Args:
            examples: table ``training_examples``.
            passages: segment id to text, for every segment that an example names.
            dev: as the attribute; an empty set is none.
            corpus: as the attribute.
            settings: as the attribute.
            work: as the attribute.
            documents: as the attribute.
            record: as the attribute.

        Raises:
            TrainingError: there are no examples to train on, or one names an unknown segment.
        """
        answers: dict[str, set[str]] = {}
        for question, segment in examples.select("question", "positive_segment_id").sort(pl.all()).iter_rows():
            if segment in passages:
                answers.setdefault(question, set()).add(passages[segment])
        if not settings.training.contrastive:
            examples = examples.clear()
        elif examples.is_empty():
            raise TrainingError("there are no training examples")
        negatives = used_negatives(settings)
        if negatives is not None:
            examples = examples.with_columns(pl.col("negative_segment_ids").list.head(negatives))
        numbered = number_examples(examples, passages)
        if unlearnable := numbered.without_contrast:
            logger.warning(
                "%d of %d examples teach nothing: every passage of the training answers their question, so there is "
                "none to tell the answer from; add questions with other answers, or negatives",
                unlearnable,
                len(numbered),
            )
        dev_questions = dev or None
        parts = [
            content_hash(examples.sort("example_id")),
            numbered.passages,
            [dev_questions.queries, dev_questions.qrels] if dev_questions else [],
            hashlib.sha256("\0".join([*corpus[0], *corpus[1]]).encode()).hexdigest(),
            made_by(TRAINING, settings),
            resolve_model(settings.embedding.model),
        ]
        fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        frozen = {question: frozenset(texts) for question, texts in answers.items()}
        return cls(numbered, dev_questions, corpus, settings, work, fingerprint, documents, record, frozen)


def used_negatives(settings: Settings) -> int | None:
    """How many mined negatives of each example are used, the most similar first; None: all.

    Encoding passages takes most of a step's time. On a CPU, further passes over the examples gain more than a second
    negative does in the same time.
    """
    wanted = settings.training.negatives_per_example
    if wanted == "all":
        return None
    if wanted != "auto":
        return wanted
    return 1 if torch_device(settings.embedding) == "cpu" else None


@dataclass(frozen=True)
class Examples:
    """Every example, with its texts as numbers: a text that occurs twice has one number.

    Attributes:
        questions: distinct question texts.
        passages: distinct passage texts.
        question: number of each example's question.
        positive: number of each example's positive passage.
        negatives: numbers of each example's mined negatives.
        known: for each question number, all passages known to answer it: those of its siblings (examples that share
            its qa_id) and of the examples that ask the same in the same words.
        labelled: whether people wrote the questions of at least half of the examples.
    """

    questions: list[str]
    passages: list[str]
    question: list[int]
    positive: list[int]
    negatives: list[list[int]]
    known: list[frozenset[int]]
    labelled: bool

    def __len__(self) -> int:
        return len(self.question)

    @property
    def without_contrast(self) -> int:
        """Examples whose question every passage is known to answer: their loss is 0, whatever the model."""
        return sum(len(self.known[question]) == len(self.passages) for question in self.question)


def number_examples(examples: pl.DataFrame, passages: Mapping[str, str]) -> Examples:
    """Number the texts of ``training_examples``.

    Args:
        examples: table ``training_examples``; order does not matter.
        passages: segment id to text.

    Raises:
        TrainingError: an example names a segment that is not in ``passages``.
    """
    rows = examples.sort("example_id").to_dicts()
    question_numbers: dict[str, int] = {}
    passage_numbers: dict[str, int] = {}

    def number(segment: str) -> int:
        if segment not in passages:
            message = f"training example names segment {segment!r}, which is not in the corpus"
            raise TrainingError(message)
        return passage_numbers.setdefault(passages[segment], len(passage_numbers))

    question = [question_numbers.setdefault(row["question"], len(question_numbers)) for row in rows]
    positive = [number(row["positive_segment_id"]) for row in rows]
    negatives = [[number(segment) for segment in row["negative_segment_ids"]] for row in rows]
    siblings: dict[str, set[int]] = {}
    for row, own in zip(rows, positive, strict=True):
        siblings.setdefault(row["qa_id"], set()).add(own)
    known: list[set[int]] = [set() for _ in question_numbers]
    for row, number_of_question in zip(rows, question, strict=True):
        known[number_of_question] |= siblings[row["qa_id"]]
    return Examples(
        questions=list(question_numbers),
        passages=list(passage_numbers),
        question=question,
        positive=positive,
        negatives=negatives,
        known=[frozenset(answers) for answers in known],
        labelled=2 * sum(row["origin"] == LABELLED for row in rows) >= len(rows),
    )


@dataclass(frozen=True)
class Schedule:
    """Batch size and length of a training.

    Attributes:
        batch_size: examples in a batch, on each process.
        epochs: passes over the examples.
        steps: optimizer steps, were there one process.
        warmup_steps: steps in which the learning rate rises.
        small_data: whether the rules for few examples applied.
    """

    batch_size: int
    epochs: float
    steps: int
    warmup_steps: int
    small_data: bool


def schedule_for(examples: int, training: Training) -> Schedule:
    """Fill in what the settings leave open about the steps (``batch_size`` and ``epochs`` of ``auto``).

    Few examples get small batches, for enough steps, and up to eight passes to reach 30 steps; many get large
    batches, for more negatives at once, and a single pass.

    Args:
        examples: training examples.
        training: the settings.

    Raises:
        ValueError: there are no examples.
    """
    if examples < 1:
        message = f"examples is {examples}, below 1"
        raise ValueError(message)
    fitting = next((size for bound, size in _BATCH_SIZES if examples < bound), _LARGEST_BATCH)
    batch_size = min(fitting if training.batch_size == "auto" else training.batch_size, examples)
    steps_per_epoch = math.ceil(examples / batch_size)
    if training.epochs != "auto":
        epochs = training.epochs
    elif examples < SMALL_DATA:
        epochs = float(min(_MOST_EPOCHS, max(2, math.ceil(_LEAST_STEPS / steps_per_epoch))))
    else:
        epochs = 2.0 if examples < _ONE_EPOCH_FROM else 1.0
    steps = max(1, math.ceil(steps_per_epoch * epochs))
    return Schedule(
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        warmup_steps=math.ceil(steps * training.warmup_ratio),
        small_data=examples < SMALL_DATA,
    )


def learning_rate(width: int, training: Training, *, labelled: bool) -> float:
    """Peak learning rate: the setting, or one that suits the model's width and who wrote the questions.

    At width 384, people's questions gain most at 1e-4, without a loss on passages that training never saw; generated
    questions lose at 1e-4 and gain at 2e-5 (docs/tuning.md). Under Adam the best rate falls in proportion to the width
    (Yang et al. 2022, Tensor Programs V), which limits both. LoRA adapters bear 1e-4 at every width.

    Args:
        width: hidden size of the encoder.
        training: the settings.
        labelled: whether people wrote most of the questions.
    """
    if training.learning_rate != "auto":
        return training.learning_rate
    if training.lora_rank is not None:
        return _LABELLED_RATE
    most = _LABELLED_RATE * min(1.0, _LABELLED_RATE_WIDTH / width)
    return most if labelled else min(_RATE, most)


def adapter_share(settings: Settings, *, labelled: bool, documents: int) -> float:
    """Share of the linear adapter that is wanted: the setting, or half where the questions are generated.

    Half of it gained on people's queries of two sets out of three, and lost on none; after a training on people's
    questions it was not measured (docs/tuning.md). Where nothing is trained on questions, half of it is all there is.

    Args:
        settings: groups ``adapter`` and ``training``.
        labelled: whether people wrote the questions.
        documents: documents in the corpus.
    """
    if settings.adapter.share != "auto":
        return settings.adapter.share
    if not settings.training.contrastive:
        return _DEFAULT_ADAPTER_SHARE
    return 0.0 if labelled or documents < LEAST_DOCUMENTS else _DEFAULT_ADAPTER_SHARE


def is_first_process() -> bool:
    """Whether this process writes what all processes of this training share, as torchrun says."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Processes of this training, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE", "1"))
