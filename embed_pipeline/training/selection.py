"""Choosing the weights: the best on dev, mixed with the base's where too much was forgotten, and the linear adapter.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.models import load_model, torch_device
from embed_pipeline.evaluation.general_set import general_set
from embed_pipeline.settings import Embedding
from embed_pipeline.training.checkpoints import SEAL
from embed_pipeline.training.linear_adapter import Teaching, append_adapter, fit_adapter, remove_adapter, set_adapter
from embed_pipeline.training.prepared_model import load_plain_base
from embed_pipeline.training.query_encoder import follow_teacher
from embed_pipeline.training.record import TrainingResult
from embed_pipeline.training.seed_run import RESULT_FILE, SeedResult, winner_folder
from embed_pipeline.training.supervisor import DevMeasure
from embed_pipeline.training.task import TrainingError, TrainingTask, adapter_share
from embed_pipeline.training.weights import State, load_weights, mean_weights, mix_weights, save_model

logger = logging.getLogger(__name__)
Measure = Callable[[SentenceTransformer], float]
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the tuned weights, and of the linear adapter that is wanted, in the order in which they are tried."""


@dataclass(frozen=True)
class DevChoice:
    """The weights that are best on dev: a seed's own, or the mean of all seeds' in ``model``."""

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


@dataclass(frozen=True)
class AdapterOutcome:
    """What came of the linear adapter.

    Attributes:
        share: share of the fitted map in the model; 0: the model is left without it; None: none is wanted.
        reason: why it is this share.
        general_after: nDCG@10 on the general questions with that share; None: not measured.
        query_encoder_share: share of the query encoder that followed the same teacher.
    """

    share: float | None
    reason: str
    general_after: float | None = None
    query_encoder_share: float = 0.0


def select(task: TrainingTask, seeds: Sequence[SeedResult], output: Path) -> TrainingResult:
    """Choose the weights, limit forgetting, add the adapter, and write the model with its record to ``output``.

    Args:
        task: what was trained.
        seeds: what each seed did; their weights lie in the task's ``work``.
        output: folder of the model; made where it is absent.

    Raises:
        TrainingError: the linear adapter is asked for and there is no sentence to fit it to.
        EvaluationError: this machine has too few general questions.
        ModelError: a model cannot be loaded.
    """
    embedding = task.settings.embedding.model_copy(update={"precision": seeds[0].precision})
    dev_measure = DevMeasure.of(task)
    dev: Measure | None = (lambda model: dev_measure(model, embedding)) if dev_measure else None
    general = _general_measure(task, embedding)
    choice = _best_on_dev(task, seeds, dev)
    model = choice.model or load_model(winner_folder(task, choice.seed.seed), task.settings.embedding)
    forgetting = _forgetting(task, choice, model, general, dev) if general else None
    adapter = _add_adapter(task, model, embedding, general, forgetting)
    logger.log(logging.WARNING if adapter.share == 0 else logging.INFO, "linear adapter: %s", adapter.reason)
    if forgetting and adapter.general_after is not None:
        forgetting = replace(forgetting, after=adapter.general_after)
    changed = bool(adapter.share) or (forgetting is not None and 0 < forgetting.share < 1)
    if choice.model is None and not changed:
        ignored = shutil.ignore_patterns(SEAL, RESULT_FILE)
        shutil.copytree(winner_folder(task, choice.seed.seed), output, dirs_exist_ok=True, ignore=ignored)
    else:
        save_model(model, output)
    dev_ndcg_10 = dev(model) if dev and changed else choice.dev_ndcg_10
    result = _result(task, seeds, choice, forgetting, adapter, dev_ndcg_10=dev_ndcg_10)
    result.write(output)
    return result


def _general_measure(task: TrainingTask, embedding: Embedding) -> Measure | None:
    """nDCG@10 of a model on the general questions; None: the settings want none."""
    count = task.settings.forgetting.questions
    if not count:
        return None
    questions, passages = general_set(count)
    # All passages, not dev's smaller pool: the answers alone would be too easy to find.
    measure = DevMeasure(questions, passages, seed=task.settings.seed, max_pool=len(passages[0]))
    return lambda model: measure(model, embedding)


def _best_on_dev(task: TrainingTask, seeds: Sequence[SeedResult], dev: Measure | None) -> DevChoice:
    """The seed that does best on dev, or the mean of all where that does better; without dev the first."""
    if dev is None or len(seeds) == 1:
        return DevChoice(seeds[0], None, seeds[0].dev_ndcg_10)
    best = max(seeds, key=lambda result: (result.dev_ndcg_10 or 0.0, -result.seed))
    models = [load_model(winner_folder(task, result.seed), task.settings.embedding, device="cpu") for result in seeds]
    averaged = load_model(winner_folder(task, best.seed), task.settings.embedding)
    load_weights(averaged, mean_weights([model.state_dict() for model in models]))
    value = dev(averaged)
    logger.info("mean weights of %d seeds: dev nDCG@10 %.4f; best seed %.4f", len(seeds), value, best.dev_ndcg_10)
    if best.dev_ndcg_10 is not None and value > best.dev_ndcg_10:
        return DevChoice(best, averaged, value)
    return DevChoice(best, None, best.dev_ndcg_10)


def _forgetting(
    task: TrainingTask, choice: DevChoice, model: SentenceTransformer, general: Measure, dev: Measure | None
) -> ForgettingOutcome:
    if choice.is_base:
        value = general(model)
        return ForgettingOutcome(1.0, value, value)
    base = load_plain_base(task.settings, torch_device(task.settings.embedding))
    outcome = limit_forgetting(
        model,
        base.state_dict(),
        general=general,
        before=general(base),
        max_loss=task.settings.forgetting.max_loss,
        dev=(dev, dict(choice.seed.dev_curve)[0]) if dev else None,
    )
    logger.info("general questions: nDCG@10 %.4f before, %.4f after", outcome.before, outcome.after)
    return outcome


def limit_forgetting(
    model: SentenceTransformer,
    base: State,
    *,
    general: Measure,
    before: float,
    max_loss: float,
    dev: tuple[Measure, float] | None,
) -> ForgettingOutcome:
    """Mix ``model`` with its base at the largest share of :data:`SHARES` that keeps both bounds.

    The bounds: on the general questions the loss is at most ``max_loss``, and on dev the model is no worse than the
    base. Weights that keep the first bound are left as they are.

    Args:
        model: the tuned model, without adapters; changed in place.
        base: weights of the base under the same names.
        general: nDCG@10 of a model on the general questions.
        before: the same of the base.
        max_loss: greatest loss, absolute.
        dev: nDCG@10 of a model on the dev questions, and that of the base; None: there are none.
    """
    tuned = _copied_weights(model)
    unmixed = general(model)
    if before - unmixed <= max_loss:
        return ForgettingOutcome(1.0, before, unmixed)
    for share in SHARES[1:]:
        load_weights(model, mix_weights(base, tuned, share))
        after = general(model)
        if before - after > max_loss:
            continue
        if dev is None or dev[0](model) >= dev[1]:
            logger.warning(
                "general questions: nDCG@10 fell from %.4f to %.4f; %.0f %% of the tuned weights give %.4f",
                before,
                unmixed,
                100 * share,
                after,
            )
            return ForgettingOutcome(share, before, after)
    load_weights(model, tuned)
    logger.warning("no mixture of tuned and base weights keeps both bounds; the tuned weights stay as they are")
    return ForgettingOutcome(0.0, before, unmixed)


def _add_adapter(
    task: TrainingTask,
    model: SentenceTransformer,
    embedding: Embedding,
    general: Measure | None,
    forgetting: ForgettingOutcome | None,
) -> AdapterOutcome:
    """Append the linear adapter, at the share wanted or the largest below that keeps the bound on forgetting.

    The model is left without one where no share keeps the bound, and, where the adapter is only there by default,
    where there is no sentence to fit it to.
    """
    settings = task.settings
    wanted = adapter_share(settings, labelled=task.examples.labelled, documents=len(set(task.documents)))
    if not wanted:
        return AdapterOutcome(None, "none is wanted")
    generator = np.random.default_rng(settings.seed)
    try:
        teaching = Teaching.of(
            Encoder.of(model, embedding),
            task.corpus[1],
            task.documents or task.corpus[0],
            dense_weight=settings.training.teacher_dense_weight,
            generator=generator,
            language=settings.corpus.language,
            questions=task.answers if settings.adapter.query_encoder_share else {},
        )
    except TrainingError as error:
        if settings.adapter.share != "auto" or not settings.training.contrastive:
            raise
        return AdapterOutcome(0.0, f"the model is left without it: {error}")
    matrix = fit_adapter(teaching, generator=generator, dimensions=settings.training.matryoshka_dimensions)
    sides, encoder_share = settings.training.sides, settings.adapter.query_encoder_share
    before = _copied_weights(model) if encoder_share else {}
    if encoder_share:
        follow_teacher(model, teaching, generator)
    followed = _copied_weights(model) if encoder_share else {}
    layer = append_adapter(model, sides)
    for part in SHARES:
        share = wanted * part
        set_adapter(layer, matrix, share, sides)
        load_weights(model, mix_weights(before, followed, encoder_share * part))
        outcome = AdapterOutcome(share, f"{share:.0%} of it", query_encoder_share=encoder_share * part)
        if general is None or forgetting is None:
            return replace(outcome, reason=f"{outcome.reason}; forgetting is not checked")
        after = general(model)
        if forgetting.before - after <= settings.forgetting.max_loss:
            reason = f"{outcome.reason} gives nDCG@10 {after:.4f} on the general questions"
            return replace(outcome, reason=reason, general_after=after)
    remove_adapter(model, sides)
    load_weights(model, before)
    bound = f"forgetting.max_loss = {settings.forgetting.max_loss}"
    return AdapterOutcome(0.0, f"the model is left without it: no share of it keeps {bound}")


def _copied_weights(model: SentenceTransformer) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _result(
    task: TrainingTask,
    seeds: Sequence[SeedResult],
    choice: DevChoice,
    forgetting: ForgettingOutcome | None,
    adapter: AdapterOutcome,
    *,
    dev_ndcg_10: float | None,
) -> TrainingResult:
    training = task.settings.training
    schedule, best = task.schedule if training.contrastive else None, choice.seed
    seconds = sum(seed.seconds for seed in seeds)
    return TrainingResult(
        examples=len(task.examples),
        batch_size=schedule.batch_size if schedule else 0,
        epochs=schedule.epochs if schedule else 0.0,
        learning_rate=best.learning_rate,
        small_data=schedule is not None and schedule.small_data,
        steps=best.steps,
        final_loss=best.loss_curve[-1][1] if best.loss_curve else None,
        loss_curve=best.loss_curve,
        dev_curve=best.dev_curve,
        best_step=best.best_step,
        weights=choice.weights,
        seed=best.seed,
        seed_dev_ndcg_10=[seed.dev_ndcg_10 for seed in seeds if seed.dev_ndcg_10 is not None],
        dev_ndcg_10=dev_ndcg_10,
        tuned_share=forgetting.share if forgetting else 1.0,
        general_before=forgetting.before if forgetting else None,
        general_after=forgetting.after if forgetting else None,
        adapter_share=adapter.share,
        query_encoder_share=adapter.query_encoder_share,
        lora_rank=training.lora_rank,
        matryoshka_dimensions=tuple(sorted(set(training.matryoshka_dimensions))),
        teacher=training.teacher,
        seconds=seconds,
        examples_per_second=sum(seed.examples_trained for seed in seeds) / seconds,
        precision=best.precision,
        device=best.device,
        resumed_from=best.resumed_from,
    )
