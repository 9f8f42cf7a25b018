"""Choosing the weights: best on dev, mixed with the base's where too much was forgotten, and the linear adapter.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sentence_transformers import SentenceTransformer

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.evaluation.general_set import general_set
from embed_pipeline.settings import Embedding
from embed_pipeline.training.checkpoints import SEAL
from embed_pipeline.training.linear_adapter import append_adapter, fit_adapter, remove_adapter, set_adapter
from embed_pipeline.training.record import TrainingResult
from embed_pipeline.training.seed_run import RESULT_FILE, SeedResult, winner_folder
from embed_pipeline.training.supervisor import DevMeasure
from embed_pipeline.training.task import TrainingError, TrainingTask, adapter_share
from embed_pipeline.training.weights import State, mean, mix, put

logger = logging.getLogger(__name__)
Measure = Callable[[SentenceTransformer], float]
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the tuned weights that are tried, the largest first."""


@dataclass(frozen=True)
class _Choice:
    """The weights that won: a seed's own, or the mean of all seeds' in ``model``."""

    seed: SeedResult
    model: SentenceTransformer | None
    dev_ndcg_10: float | None

    @property
    def weights(self) -> str:
        """Where they come from, in words."""
        if self.model is not None:
            return "mean of seeds"
        return "mean of steps" if self.seed.averaged else "step"

    @property
    def is_base(self) -> bool:
        """True where nothing beat the base, whose weights these are."""
        return self.model is None and not self.seed.averaged and not self.seed.best_step


def select(task: TrainingTask, seeds: Sequence[SeedResult], output: Path) -> TrainingResult:
    """Choose, guard against forgetting, and write the model with its record to ``output``.

    Args:
        task: what was trained.
        seeds: what each seed did; their weights lie in the task's ``work``.
        output: folder of the model; made where it is absent.

    Raises:
        TrainingError: the general questions cannot be made here.
        ModelError: a model cannot be loaded.
    """
    embedding = task.settings.embedding.model_copy(update={"precision": seeds[0].precision})
    measured = DevMeasure(task.dev, task.corpus, seed=task.settings.seed) if task.dev else None
    dev: Measure | None = (lambda model: measured(model, embedding)) if measured else None
    general = _general(task, embedding)
    choice = _choose(task, seeds, dev)
    model = choice.model or load_model(winner_folder(task, choice.seed.seed), task.settings.embedding)
    kept = _keep_general(task, choice, model, general, dev) if general else None
    adapted, kept = _adapt(task, model, embedding, general, kept)
    changed = bool(adapted) or (kept is not None and 0 < kept.share < 1)
    if choice.model is None and not changed:
        ignored = shutil.ignore_patterns(SEAL, RESULT_FILE)
        shutil.copytree(winner_folder(task, choice.seed.seed), output, dirs_exist_ok=True, ignore=ignored)
    else:
        model.save_pretrained(str(output), create_model_card=False)
    measured_last = dev(model) if dev and changed else choice.dev_ndcg_10
    result = replace(_result(task, seeds, choice, kept, measured_last), adapter_share=adapted)
    result.write(output)
    return result


def _choose(task: TrainingTask, seeds: Sequence[SeedResult], dev: Measure | None) -> _Choice:
    """The seed that does best on dev, or the mean of all where that does better; without dev the first."""
    if dev is None or len(seeds) == 1:
        return _Choice(seeds[0], None, seeds[0].dev_ndcg_10)
    best = max(seeds, key=lambda result: (result.dev_ndcg_10 or 0.0, -result.seed))
    models = [load_model(winner_folder(task, result.seed), task.settings.embedding, device="cpu") for result in seeds]
    together = load_model(winner_folder(task, best.seed), task.settings.embedding)
    put(together, mean([model.state_dict() for model in models]))
    value = dev(together)
    logger.info("mean weights of %d seeds: dev nDCG@10 %.4f; best seed %.4f", len(seeds), value, best.dev_ndcg_10)
    if best.dev_ndcg_10 is not None and value > best.dev_ndcg_10:
        return _Choice(best, together, value)
    return _Choice(best, None, best.dev_ndcg_10)


def _general(task: TrainingTask, embedding: Embedding) -> Measure | None:
    """nDCG@10 of a model on the general questions; None: the settings want none."""
    count = task.settings.forgetting.questions
    if not count:
        return None
    questions, passages = general_set(count)
    # All passages, not dev's smaller pool: the answers alone would be too easy to find.
    measure = DevMeasure(questions, passages, seed=task.settings.seed, max_pool=len(passages[0]))
    return lambda model: measure(model, embedding)


def _keep_general(
    task: TrainingTask, choice: _Choice, model: SentenceTransformer, general: Measure, dev: Measure | None
) -> ForgettingOutcome:
    if choice.is_base:
        value = general(model)
        return ForgettingOutcome(1.0, value, value)
    base = load_model(task.settings.embedding.model, task.settings.embedding)
    kept = keep_general(
        model,
        base.state_dict(),
        general=general,
        before=general(base),
        max_forgetting=task.settings.forgetting.max_loss,
        dev=(dev, dict(choice.seed.dev_curve)[0]) if dev else None,
    )
    logger.info("general questions: nDCG@10 %.4f before, %.4f after", kept.before, kept.after)
    return kept


def _adapt(
    task: TrainingTask,
    model: SentenceTransformer,
    embedding: Embedding,
    general: Measure | None,
    kept: ForgettingOutcome | None,
) -> tuple[float | None, ForgettingOutcome | None]:
    """Append the linear adapter, at the share wanted or the largest below that keeps the bound on forgetting.

    Returns the share, None where none is wanted, and ``kept`` as it is with the adapter. Where no share keeps the
    bound, or the adapter is there by default and there is no sentence to fit it to, the model is left without one: 0.
    """
    training = task.settings.training
    wanted = adapter_share(task.settings.adapter, labelled=task.examples.labelled, documents=len(set(task.documents)))
    if not wanted:
        return None, kept
    try:
        matrix = fit_adapter(
            Encoder.of(model, embedding),
            task.corpus[1],
            task.documents or task.corpus[0],
            dense_weight=task.settings.evaluation.hybrid_dense_weight,
            seed=task.settings.seed,
            dimensions=training.matryoshka_dimensions,
        )
    except TrainingError as error:
        if task.settings.adapter.share != "auto":
            raise
        logger.warning("the model is left without a linear adapter: %s", error)
        return 0.0, kept
    layer = append_adapter(model)
    for share in (wanted * part for part in SHARES):
        set_adapter(layer, matrix, share)
        if general is None or kept is None:
            return share, kept
        after = general(model)
        if kept.before - after <= task.settings.forgetting.max_loss:
            logger.info("linear adapter: general nDCG@10 %.4f with %.0f %% of it", after, 100 * share)
            return share, replace(kept, after=after)
    logger.warning("no share of the linear adapter keeps the bound on forgetting; the model is left without it")
    remove_adapter(model)
    return 0.0, kept


def _result(
    task: TrainingTask,
    seeds: Sequence[SeedResult],
    choice: _Choice,
    kept: ForgettingOutcome | None,
    dev_ndcg_10: float | None,
) -> TrainingResult:
    training = task.settings.training
    schedule, won = task.plan if training.contrastive else None, choice.seed
    seconds = sum(seed.seconds for seed in seeds)
    return TrainingResult(
        examples=len(task.examples),
        batch_size=schedule.batch_size if schedule else 0,
        epochs=schedule.epochs if schedule else 0.0,
        learning_rate=won.learning_rate,
        small_data=schedule is not None and schedule.small_data,
        steps=won.steps,
        final_loss=won.loss_curve[-1][1] if won.loss_curve else None,
        loss_curve=won.loss_curve,
        dev_curve=won.dev_curve,
        best_step=won.best_step,
        weights=choice.weights,
        seed=won.seed,
        seed_dev_ndcg_10=[seed.dev_ndcg_10 for seed in seeds if seed.dev_ndcg_10 is not None],
        dev_ndcg_10=dev_ndcg_10,
        tuned_share=kept.share if kept else 1.0,
        general_before=kept.before if kept else None,
        general_after=kept.after if kept else None,
        adapter_share=None,
        lora_rank=training.lora_rank,
        matryoshka_dimensions=tuple(sorted(set(training.matryoshka_dimensions))),
        teacher=training.teacher,
        seconds=seconds,
        examples_per_second=sum(seed.examples_trained for seed in seeds) / seconds,
        precision=won.precision,
        device=won.device,
        resumed_from=won.resumed_from,
    )


@dataclass(frozen=True)
class ForgettingOutcome:
    """What came of the check against forgetting.

    Attributes:
        share: share of the tuned weights in the model; 1: nothing was mixed in; 0: no share kept both bounds, and
            the tuned weights are left as they are for the check to refuse.
        before: nDCG@10 of the base on the general questions.
        after: nDCG@10 of the model on them.
    """

    share: float
    before: float
    after: float


def keep_general(
    model: SentenceTransformer,
    base: State,
    *,
    general: Measure,
    before: float,
    max_forgetting: float,
    dev: tuple[Measure, float] | None,
) -> ForgettingOutcome:
    """Mix ``model`` with its base at the largest share of :data:`SHARES` that keeps both bounds.

    The bounds: on the general questions the loss is at most ``max_forgetting``, and on dev the model is no worse
    than the base. Weights that keep the first bound as they are are left alone.

    Args:
        model: the tuned model, without adapters; changed in place.
        base: weights of the base under the same names.
        general: nDCG@10 of a model on the general questions.
        before: the same of the base.
        max_forgetting: greatest loss, absolute.
        dev: nDCG@10 of a model on the dev questions, and that of the base; None: there are none.
    """
    tuned = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    first = general(model)
    if before - first <= max_forgetting:
        return ForgettingOutcome(1.0, before, first)
    for share in SHARES[1:]:
        put(model, mix(base, tuned, share))
        after = general(model)
        if before - after > max_forgetting:
            continue
        if dev is None or dev[0](model) >= dev[1]:
            logger.warning(
                "general questions: nDCG@10 fell from %.4f to %.4f; %.0f %% of the tuned weights give %.4f",
                before,
                first,
                100 * share,
                after,
            )
            return ForgettingOutcome(share, before, after)
    put(model, tuned)
    logger.warning("no mixture of tuned and base weights keeps both bounds; the tuned weights stay as they are")
    return ForgettingOutcome(0.0, before, first)
