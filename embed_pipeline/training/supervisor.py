"""What happens between the steps: dev nDCG@10, best and averaged weights, checkpoints, early stopping."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.search import BM25, search
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.ranking import score_rankings
from embed_pipeline.progress import Bar, progress
from embed_pipeline.settings import Embedding
from embed_pipeline.text.languages import AUTO
from embed_pipeline.training.checkpoints import seal_checkpoint, step_of_checkpoint
from embed_pipeline.training.task import TrainingError, TrainingTask
from embed_pipeline.training.trainer import ContrastiveTrainer
from embed_pipeline.training.weights import RunningMean, load_weights, trainable_weights

logger = logging.getLogger(__name__)
Record = Callable[[int, dict[str, float]], None]
_MEAN_FILE = "mean.safetensors"
_LEAST_IN_MEAN = 2
DEV_METRIC = "dev_ndcg_10"
PATIENCE = 4
"""Dev measurements without a better one after which training stops."""
CUTOFF = 10
MAX_POOL = 400
"""Passages that dev questions are searched in, at most, unless more than that answer them."""
_LEXICAL_HITS = 10


class Supervisor(TrainerCallback):  # type: ignore[misc]  # transformers is not typed here
    """Measures dev nDCG@10, keeps the best weights, asks for checkpoints, stops early and shows progress.

    Attributes:
        mean: mean of the weights at the measurements of the second half of the steps.
    """

    def __init__(
        self, *, work: Path, every: int, measure: Callable[[SentenceTransformer], float] | None, record: Record | None
    ) -> None:
        """Prepare.

        Args:
            work: folder of checkpoints and best weights.
            every: steps between measurements and checkpoints.
            measure: dev nDCG@10 of a model; None: nothing is measured and the last weights win.
            record: called with the step and figures of every step and measurement.
        """
        self.trainer: ContrastiveTrainer | None = None
        self.mean = RunningMean()
        self._work = work
        self._every = every
        self._measure = measure
        self._record = record
        self._bar: Bar | None = None
        self._shown = ExitStack()

    def on_train_begin(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        **_: object,
    ) -> None:
        """Measure the base, the candidate of step 0."""
        if state.global_step == 0:
            self._evaluate(state)
        self._bar = self._shown.enter_context(progress("Training", state.max_steps, "step"))
        self._bar.done = state.global_step

    def resume(self, checkpoint: Path) -> None:
        """Continue from what ``checkpoint`` holds in addition to the trainer's own state."""
        self.mean = RunningMean.load(checkpoint / _MEAN_FILE)

    def on_step_end(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> TrainerControl:
        """Measure and ask for a checkpoint when due; stop when dev has not improved for long."""
        if self._bar is not None:
            self._bar.advance(note=self._note(state))
        if state.global_step % self._every == 0 or state.global_step >= state.max_steps:
            self._evaluate(state)
            control.should_save = True
            control.should_training_stop = control.should_training_stop or stalled(dev_curve(state))
        return control

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, Any],
        **_: object,
    ) -> None:
        """Pass the figures to ``record``."""
        if self._record is not None:
            figures = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
            self._record(state.global_step, figures)

    def on_save(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        **_: object,
    ) -> None:
        """Seal the checkpoint, then remove the ones that it makes obsolete."""
        # Every process writes a part of the checkpoint.
        self._the_trainer().accelerator.wait_for_everyone()
        if not state.is_world_process_zero:
            return
        newest = self._work / f"checkpoint-{state.global_step}"
        if self.mean.count:
            self.mean.save(newest / _MEAN_FILE)
        seal_checkpoint(newest)
        best = best_step(dev_curve(state), trained_only=True)
        for folder in self._work.glob("checkpoint-*"):
            if folder != newest:
                shutil.rmtree(folder)
        for folder in self._work.glob("best-*"):
            if step_of_checkpoint(folder) not in {0, best}:
                shutil.rmtree(folder)

    def measure_mean(self, state: TrainerState) -> float | None:
        """Give the model the mean weights and measure it; None: there is no mean, or there are no dev questions."""
        trainer = self._the_trainer()
        if self._measure is None or self.mean.count < _LEAST_IN_MEAN or not state.is_world_process_zero:
            return None
        load_weights(trainer.model, self.mean.value())
        value = self._measure(trainer.model)
        logger.info("mean weights of %d measured steps: dev nDCG@10 %.4f", self.mean.count, value)
        return value

    def close(self) -> None:
        """Remove the progress from the screen."""
        self._shown.close()

    def _evaluate(self, state: TrainerState) -> None:
        trainer = self._the_trainer()
        if not all(bool(torch.isfinite(weight).all()) for weight in trainer.model.parameters()):
            message = f"a weight is not finite at step {state.global_step}; {trainer.last_good()}"
            raise TrainingError(message)
        if state.is_world_process_zero and 2 * state.global_step > state.max_steps:
            self.mean.add(trainable_weights(trainer.model))
        if self._measure is None:
            return
        value = self._measure_together(self._measure, state)
        # Not through trainer.log, which would then skip the log of the step itself.
        state.log_history.append({DEV_METRIC: value, "step": state.global_step})
        if self._record is not None:
            self._record(state.global_step, {DEV_METRIC: value})
        logger.info("step %d: dev nDCG@10 %.4f", state.global_step, value)
        if state.global_step in {0, best_step(dev_curve(state), trained_only=True)} and state.is_world_process_zero:
            trainer.save_weights(self._work / f"best-{state.global_step}")

    def _measure_together(self, measure: Callable[[SentenceTransformer], float], state: TrainerState) -> float:
        """The first process's measurement, for all of them: they must agree on when to stop."""
        from accelerate.utils import broadcast  # type: ignore[import-untyped]  # accelerate ships no types

        trainer = self._the_trainer()
        value = measure(trainer.model) if state.is_world_process_zero else 0.0
        shared = broadcast(torch.tensor(value, dtype=torch.float64, device=trainer.args.device))
        return float(shared.item())

    def _the_trainer(self) -> ContrastiveTrainer:
        if self.trainer is None:
            message = "the supervisor has no trainer"
            raise TrainingError(message)
        return self.trainer

    @staticmethod
    def _note(state: TrainerState) -> str:
        last = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
        return "" if last is None else f"loss {last:.3f}"


def dev_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Step and dev nDCG@10 of every measurement so far."""
    return [(int(entry["step"]), float(entry[DEV_METRIC])) for entry in state.log_history if DEV_METRIC in entry]


def loss_curve(state: TrainerState) -> list[tuple[int, float]]:
    """Step and loss of every step so far."""
    return [(int(entry["step"]), float(entry["loss"])) for entry in state.log_history if "loss" in entry]


def best_step(curve: list[tuple[int, float]], *, trained_only: bool = False) -> int | None:
    """Step of the best measurement, the earlier of equals; the base (step 0) only where it beats all of them."""
    trained = [(value, -step) for step, value in curve if step]
    best = max(trained, default=None)
    base = [value for step, value in curve if not step]
    if base and not trained_only and (best is None or base[0] > best[0]):
        return 0
    return -best[1] if best else None


def stalled(curve: list[tuple[int, float]]) -> bool:
    """True after ``PATIENCE`` measurements in a row that did not beat the best before them."""
    best = best_step(curve, trained_only=True)
    return best is not None and sum(step > best for step, _ in curve) >= PATIENCE


class DevMeasure:
    """Measures a model on the dev questions.

    A large corpus is cut to a pool that is searched instead: every positive, the passages that share most words
    with a question (so that the task stays hard), and a seeded sample.

    Attributes:
        pool: texts that are searched.
    """

    def __init__(
        self,
        dev: QuerySet,
        corpus: tuple[Sequence[str], Sequence[str]],
        *,
        seed: int,
        max_pool: int = MAX_POOL,
        language: str = AUTO,
    ) -> None:
        """Choose the pool.

        Args:
            dev: questions answered by segments.
            corpus: ids and texts of all segments.
            seed: seed of the sample.
            max_pool: passages searched; positives are all searched, however many they are.
            language: ``corpus.language``.

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
        chosen = sorted(_pool(dev, list(texts), place, seed, max_pool, language=language))
        self._ids = [ids[index] for index in chosen]
        self.pool = [texts[index] for index in chosen]

    @classmethod
    def of(cls, task: TrainingTask) -> DevMeasure | None:
        """The measure of a training; None: it has no dev questions."""
        settings = task.settings
        return cls(task.dev, task.corpus, seed=settings.seed, language=settings.corpus.language) if task.dev else None

    def __call__(self, model: SentenceTransformer, embedding: Embedding) -> float:
        """Mean nDCG@10 of ``model``, which is left in the mode it was in."""
        training = model.training
        model.eval()
        try:
            # Layers compiled for training would be compiled once more for inference.
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


def _pool(
    dev: QuerySet, texts: list[str], place: dict[str, int], seed: int, max_pool: int, *, language: str
) -> set[int]:
    if len(texts) <= max_pool:
        return set(range(len(texts)))
    chosen = {place[item] for rel in dev.qrels.values() for item in rel}
    asked = [dev.queries[query] for query in dev.ids]
    hits = BM25(texts, language, asked).search(asked, _LEXICAL_HITS)
    for rank in range(hits.indices.shape[1]):
        column = [int(index) for index in hits.indices[:, rank] if index >= 0]
        chosen.update(column[: max(0, max_pool - len(chosen))])
    rest = np.asarray(sorted(set(range(len(texts))) - chosen))
    wanted = max(0, max_pool - len(chosen))
    chosen.update(int(index) for index in np.random.default_rng(seed).permutation(rest)[:wanted])
    return chosen
