"""What a fine-tuning did, and the shorter lengths that its vectors may be cut to: stored with the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embed_pipeline.embedding.families import DIMENSIONS_KEY
from embed_pipeline.training.task import TrainingError

RECORD_FILE = "training.json"
"""File in the tuned model's folder: what was done, without what differs from run to run."""
_DIFFERS_BY_RUN = ("seconds", "examples_per_second", "device", "resumed_from")


@dataclass(frozen=True)
class TrainingResult:
    """What a fine-tuning did.

    Attributes:
        examples: training examples.
        batch_size: examples in a batch, on each process; 0: nothing was trained.
        epochs: passes over the examples that were scheduled; 0: the base's weights were left as they are.
        learning_rate: peak learning rate.
        small_data: whether the rules for few examples set batch size and passes.
        steps: optimizer steps of the winning seed, those before a resumption included.
        final_loss: the last loss that was logged; None where there was none.
        loss_curve: step and mean loss since the step before: of every step on a CPU, of at least 50 on a GPU.
        dev_curve: step and dev nDCG@10, the base at step 0; empty without dev questions.
        best_step: step whose weights won; 0: no step beat the base on dev, and the weights are the base's.
        weights: where the weights come from: ``step``, ``mean of steps`` or ``mean of seeds``.
        seed: the winning seed.
        seed_dev_ndcg_10: dev nDCG@10 of each seed, the first seed first; empty without dev questions.
        dev_ndcg_10: of the model written; None without dev questions.
        tuned_share: share of the tuned weights, the rest is the base's; 0: no share kept both bounds.
        general_before: nDCG@10 of the base on the general questions; None: not measured.
        general_after: the same of the model written.
        adapter_share: share of the linear adapter in the model; 0: no share kept the bound on forgetting, or there was
            no sentence to fit it to; None: none was wanted.
        query_encoder_share: share of the query encoder that followed the adapter's teacher; 0: none was wanted or kept.
        lora_rank: rank of the adapters; None: all weights were trained.
        matryoshka_dimensions: shorter lengths that were trained as well.
        teacher: the teacher of distillation; None: there was none.
        seconds: time in this process, dev measurements included.
        examples_per_second: examples trained on, over that time.
        precision: ``bf16`` or ``fp32``.
        device: the device in words.
        resumed_from: step of the checkpoint that this process started from; None: from the start.
    """

    examples: int
    batch_size: int
    epochs: float
    learning_rate: float
    small_data: bool
    steps: int
    final_loss: float | None
    loss_curve: list[tuple[int, float]]
    dev_curve: list[tuple[int, float]]
    best_step: int
    weights: str
    seed: int
    seed_dev_ndcg_10: list[float]
    dev_ndcg_10: float | None
    tuned_share: float
    general_before: float | None
    general_after: float | None
    adapter_share: float | None
    query_encoder_share: float
    lora_rank: int | None
    matryoshka_dimensions: tuple[int, ...]
    teacher: str | None
    seconds: float
    examples_per_second: float
    precision: str
    device: str
    resumed_from: int | None

    def write(self, model_folder: Path) -> None:
        """Write the record to the model's folder; the same training writes the same bytes."""
        recorded = {name: value for name, value in asdict(self).items() if name not in _DIFFERS_BY_RUN}
        text = json.dumps(recorded, indent=2, sort_keys=True, allow_nan=False)
        (model_folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def read_record(model_folder: Path) -> dict[str, Any]:
    """The record that :meth:`TrainingResult.write` wrote; empty for a model without one.

    Raises:
        TrainingError: the record cannot be read.
    """
    path = model_folder / RECORD_FILE
    if not path.exists():
        return {}
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path} does not say how the model was trained: {error}; train it again"
        raise TrainingError(message) from error
    return values


def declared_dimensions(model_folder: Path) -> tuple[int, ...]:
    """The lengths that a model's folder declares, shortest first; none where it declares none.

    Raises:
        TrainingError: the folder is not a sentence-transformers model.
    """
    try:
        first = json.loads((model_folder / "modules.json").read_text(encoding="utf-8"))[0]
        config = model_folder / str(first["path"]) / "config.json"
        values = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        message = f"{model_folder} is not a sentence-transformers model: {error}"
        raise TrainingError(message) from error
    return tuple(sorted(int(length) for length in values.get(DIMENSIONS_KEY) or ()))
