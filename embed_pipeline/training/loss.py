"""InfoNCE over in-batch passages and mined negatives, with known positives masked and gradients cached on demand.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embed_pipeline.embedding.families import TASK, TASKS
from embed_pipeline.embedding.packing import token_count

Features = dict[str, Any]
"""Padded token tensors of some texts, (n, longest), and ``LENGTHS``."""
LENGTHS = "lengths"
"""Tokens of each text, as a list: counting them on a GPU would mean waiting for it."""
POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
"""Relations of a question to a passage of its batch: its own positive, scored against it, or left out."""


class MaskedInfoNCE(nn.Module):
    """Contrastive loss of a sentence-transformers model (van den Oord et al. 2018), cosine over temperature.

    For every question: the cross entropy of its own positive among all passages of the batch, mined negatives
    included, where passages that are known to answer the question as well are left out. Texts are encoded in
    length-bucketed micro-batches. With ``cached`` on, only one micro-batch's activations are in memory at a time and
    the gradients are the same (GradCache; Gao et al. 2021).

    With ``dimensions`` the loss is the mean over the full vectors and those cut to each length (Kusupati et al. 2022).

    Attributes:
        model: the model; the trainer puts its wrapped form in its place.
        temperature: what cosines are divided by.
        micro: bounds of what is encoded at once.
        cached: whether gradients are cached.
        bf16: whether the model computes in bf16; the loss itself is always fp32.
        dimensions: shorter lengths that are trained as well.
        routed: whether questions and passages take different ways through the model.
        trained: the tasks whose ways learn, where they differ; weights of the others are frozen.
        teacher_weight: weight of distillation, added to InfoNCE where the labels hold a teacher's scores.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float,
        micro: MicroBatches,
        cached: bool = False,
        bf16: bool = False,
        dimensions: Sequence[int] = (),
        routed: bool = False,
        trained: Collection[str] = tuple(TASKS.values()),
        teacher_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.micro = micro
        self.cached = cached
        self.bf16 = bf16
        self.dimensions = tuple(dimensions)
        self.routed = routed
        self.trained = frozenset(trained)
        self.teacher_weight = teacher_weight

    def forward(self, features: Sequence[Features], labels: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            features: padded token features of the questions, then of the distinct passages; rows sorted by length.
            labels: relations, int (questions, passages): one ``POSITIVE`` in each row, ``NEGATIVE`` or ``IGNORED``;
                or float (2, questions, passages), the relations and a teacher's scores, NaN where there is none.

        Returns:
            Scalar float32; its ``backward`` fills the model's gradients.
        """
        relations, teacher_scores = (labels, None) if labels.dim() == 2 else (labels[0], labels[1])  # noqa: PLR2004 - a matrix has two axes
        parts = self._routed_parts(features) if self.routed else self.micro.of_sides(features)
        vectors = self._encode_cached(parts) if self.cached and torch.is_grad_enabled() else self._encode(parts)
        vectors = vectors.float()
        lengths = sorted({*self.dimensions, vectors.shape[1]})
        return torch.stack([self._loss_at(vectors[:, :length], relations, teacher_scores) for length in lengths]).mean()

    def _loss_at(self, vectors: Tensor, relations: Tensor, teacher_scores: Tensor | None) -> Tensor:
        questions, passages = torch.split(nn.functional.normalize(vectors, dim=-1), list(relations.shape))
        logits = questions @ passages.T / self.temperature
        loss = info_nce(logits, relations)
        if teacher_scores is None or not self.teacher_weight:
            return loss
        return loss + self.teacher_weight * follow_distribution(logits, teacher_scores, self.temperature)

    def _routed_parts(self, sides: Sequence[Features]) -> list[Features]:
        """Micro-batches of questions, then of passages, each with the task by which a router sends them their way."""
        return [
            part | {TASK: task}
            for task, side in zip(TASKS.values(), sides, strict=True)
            for part in self.micro.split(side)
        ]

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says about the loss."""
        return {"temperature": self.temperature, "cached": self.cached}

    def _encode(self, parts: Sequence[Features]) -> Tensor:
        with self._arithmetic(parts[0]):
            return torch.cat([self._vectors(part) for part in parts])

    def _vectors(self, part: Features) -> Tensor:
        padded = dict(part)
        with token_count(sum(padded.pop(LENGTHS))):
            vectors: Tensor = self.model(padded)["sentence_embedding"]
        return vectors

    def _encode_cached(self, parts: Sequence[Features]) -> Tensor:
        """Vectors whose gradient, once it is known, is carried into the model a micro-batch at a time (GradCache)."""
        # Step 1, graph-less forward: the vectors of every micro-batch without gradient, with the random state before.
        states, vectors = [], []
        with torch.no_grad(), self._arithmetic(parts[0]):
            for part in parts:
                states.append(RandomState.of(part["input_ids"].device))
                vectors.append(self._vectors(part))
        # Step 2, representation gradient computation and caching: the loss is computed from this leaf, and backward
        # gives the gradient of the loss by the vectors to the hook.
        leaf = torch.cat(vectors).requires_grad_()
        sizes = [len(vector) for vector in vectors]

        def accumulate(gradient: Tensor) -> None:
            # Step 3, sub-batch gradient accumulation: each micro-batch again, with gradient and from the same random
            # state, and its part of the cached gradient backward through the model. Nothing frozen learns from it.
            given = zip(parts, states, torch.split(gradient, sizes), strict=True)
            pieces = [piece for piece in given if piece[0].get(TASK) in {None, *self.trained}]
            for number, (part, state, piece) in enumerate(pieces, start=1):
                with state.restored(), self._synchronized(last=number == len(pieces)), torch.enable_grad():
                    torch.autograd.backward(self._encode([part]), piece)

        leaf.register_hook(accumulate)  # type: ignore[no-untyped-call]  # torch has no annotation here
        return leaf

    def _arithmetic(self, features: Features) -> AbstractContextManager[object]:
        device = features["input_ids"].device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def _synchronized(self, *, last: bool) -> AbstractContextManager[object]:
        """Between processes, gradients are averaged once a batch: with the last micro-batch."""
        wait = getattr(self.model, "no_sync", None)
        return wait() if wait is not None and not last else nullcontext()


def info_nce(logits: Tensor, relations: Tensor) -> Tensor:
    """Mean cross entropy of each row's positive among what is not ignored.

    Args:
        logits: float (questions, passages).
        relations: int (questions, passages); each row has one ``POSITIVE``.
    """
    scored = logits.masked_fill(relations == IGNORED, -torch.inf)
    return nn.functional.cross_entropy(scored, (relations == POSITIVE).int().argmax(dim=1))


def follow_distribution(logits: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
    """Mean divergence KL(teacher, student) over each question's candidates, both as softmax at ``temperature``.

    Hinton et al. 2015. Questions with fewer than two candidates count for nothing; without any others it is 0.

    Args:
        logits: the student's cosines over ``temperature``, float (questions, passages).
        teacher_scores: on the scale of cosines, NaN where there is none, float (questions, passages).
        temperature: of both distributions.
    """
    candidates = ~torch.isnan(teacher_scores)
    # A row without candidates is left whole: of nothing but -inf, neither softmax nor gradient would be numbers.
    left_out = ~candidates & candidates.any(dim=1, keepdim=True)
    scores = torch.where(candidates, teacher_scores / temperature, 0.0).masked_fill(left_out, -torch.inf)
    teacher = torch.softmax(scores, dim=1)
    student = torch.log_softmax(logits.masked_fill(left_out, -torch.inf), dim=1).masked_fill(~candidates, 0.0)
    terms = torch.where(candidates, torch.special.xlogy(teacher, teacher) - teacher * student, 0.0)
    ranked = candidates.sum(dim=1) > 1
    return torch.where(ranked, terms.sum(dim=1), 0.0).sum() / ranked.sum().clamp(min=1)


@dataclass
class MicroBatches:
    """How many texts are encoded at once.

    Attributes:
        rows: texts, at most.
        tokens: tokens, at most; only a single longer text may exceed it.
        padded_left: where the padding is.
        packed: whether the model computes no padding; then it does not count, and texts of all lengths share batches.
    """

    rows: int
    tokens: int
    padded_left: bool = False
    packed: bool = False

    def tokens_of(self, batch: Mapping[str, Any]) -> int:
        """Tokens that are computed for a collated batch, padding included where it is computed."""
        if self.packed:
            return sum(sum(lengths) for name, lengths in batch.items() if name.endswith(LENGTHS))
        return sum(ids.numel() for name, ids in batch.items() if name.endswith("input_ids"))

    def of_sides(self, sides: Sequence[Features]) -> list[Features]:
        """Cut a batch's questions and passages into micro-batches, in order; packed ones may hold both."""
        return [part for side in ([self._joined(sides)] if self.packed else sides) for part in self.split(side)]

    def split(self, features: Features) -> Iterator[Features]:
        """Cut padded features into consecutive rows within the bounds, each trimmed to its longest text.

        Rows should come sorted by length, so that little of a micro-batch is padding.
        """
        lengths: list[int] = features[LENGTHS]
        padded = {name: tensor for name, tensor in features.items() if name != LENGTHS}
        width = padded["attention_mask"].shape[1]
        start = 0
        while start < len(lengths):
            stop, longest, total = start, 0, 0
            while stop < len(lengths) and stop - start < self.rows:
                wider, more = max(longest, lengths[stop]), total + lengths[stop]
                if stop > start and (more if self.packed else wider * (stop - start + 1)) > self.tokens:
                    break
                stop, longest, total = stop + 1, wider, more
            columns = slice(width - longest, None) if self.padded_left else slice(0, longest)
            part = {name: tensor[start:stop, columns] for name, tensor in padded.items()}
            yield part | {LENGTHS: lengths[start:stop]}
            start = stop

    def _joined(self, sides: Sequence[Features]) -> Features:
        """The rows of all sides under each other, padded to the longest."""
        width = max(side["input_ids"].shape[1] for side in sides)
        joined: Features = {LENGTHS: [length for side in sides for length in side[LENGTHS]]}
        for name in sides[0].keys() - {LENGTHS}:
            missing = [(side[name], width - side[name].shape[1]) for side in sides]
            padded = [nn.functional.pad(rows, (n, 0) if self.padded_left else (0, n)) for rows, n in missing]
            joined[name] = torch.cat(padded)
        return joined


@dataclass(frozen=True)
class RandomState:
    """State of the random generators that dropout draws from, on one device."""

    device: torch.device
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """The present state."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Draw from this state from now on."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run the block from this state, and continue from the outer one."""
        outer = RandomState.of(self.device)
        self.restore()
        try:
            yield
        finally:
            outer.restore()
