"""InfoNCE over in-batch passages and mined negatives, with known positives masked and gradients cached on demand.

Imports torch: import it inside functions from modules that the orchestration reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Features = dict[str, Tensor]

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
"""Relations of a question to a passage of its batch: its own positive, scored against it, or left out."""


@dataclass
class MicroBatches:
    """How many texts are encoded at once: bounds on rows, and on tokens with padding."""

    rows: int
    tokens: int

    def split(self, features: Features) -> Iterator[Features]:
        """Cut padded features into consecutive rows within the bounds, each trimmed to its longest text.

        Rows should come sorted by length, so that little of a micro-batch is padding.
        """
        mask = features["attention_mask"]
        lengths: list[int] = mask.sum(dim=1).tolist()
        padded_left = not bool((mask[:, 0] == 1).all())
        start = 0
        while start < len(lengths):
            stop, longest = start, 0
            while stop < len(lengths) and stop - start < self.rows:
                wider = max(longest, lengths[stop])
                if stop > start and wider * (stop - start + 1) > self.tokens:
                    break
                stop, longest = stop + 1, wider
            columns = slice(mask.shape[1] - longest, None) if padded_left else slice(0, longest)
            yield {name: tensor[start:stop, columns] for name, tensor in features.items()}
            start = stop


class MaskedInfoNCE(nn.Module):
    """Contrastive loss of a sentence-transformers model (van den Oord et al. 2018), cosine over temperature.

    For every question: the cross entropy of its own positive among all passages of the batch, mined negatives
    included, where passages that are known to answer the question as well are left out. Texts are encoded in
    length-bucketed micro-batches. With ``cached`` on, only one micro-batch's activations are in memory at a time and
    the gradients are the same (GradCache; Gao et al. 2021): vectors first without gradient, then the gradients of
    the loss by the vectors, then every micro-batch again with gradient, under the random state that it had.

    Attributes:
        model: the model; the trainer replaces it by its wrapped form.
        temperature: divisor of the cosine.
        micro: bounds of a micro-batch.
        cached: whether gradients are cached.
        bf16: whether the model runs under bfloat16 autocast; the loss itself is always float32.
    """

    def __init__(
        self, model: nn.Module, *, temperature: float, micro: MicroBatches, cached: bool = False, bf16: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.micro = micro
        self.cached = cached
        self.bf16 = bf16

    def forward(self, features: Sequence[Features], labels: Tensor) -> Tensor:
        """Mean loss of a batch.

        Args:
            features: padded token features of the questions, then of the distinct passages; rows sorted by length.
            labels: relations, int (questions, passages): one ``POSITIVE`` in each row, ``NEGATIVE`` or ``IGNORED``.

        Returns:
            Scalar float32; its ``backward`` fills the model's gradients.
        """
        parts = [part for side in features for part in self.micro.split(side)]
        vectors = self._cached(parts) if self.cached and torch.is_grad_enabled() else self._encode(parts)
        questions, passages = torch.split(nn.functional.normalize(vectors.float(), dim=-1), list(labels.shape))
        return info_nce(questions @ passages.T / self.temperature, labels)

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says about the loss."""
        return {"temperature": self.temperature, "cached": self.cached}

    def _encode(self, parts: Sequence[Features]) -> Tensor:
        with self._arithmetic(parts[0]):
            return torch.cat([self.model(dict(part))["sentence_embedding"] for part in parts])

    def _cached(self, parts: Sequence[Features]) -> Tensor:
        """Vectors as a leaf that, when its gradient is known, runs the micro-batches again with gradient."""
        states, vectors = [], []
        with torch.no_grad(), self._arithmetic(parts[0]):
            for part in parts:
                states.append(RandomState.of(part["input_ids"].device))
                vectors.append(self.model(dict(part))["sentence_embedding"])
        leaf = torch.cat(vectors).requires_grad_()
        sizes = [len(vector) for vector in vectors]

        def run_again(gradient: Tensor) -> None:
            pieces = list(zip(parts, states, torch.split(gradient, sizes), strict=True))
            for place, (part, state, piece) in enumerate(pieces, start=1):
                with state.restored(), self._synchronized(last=place == len(pieces)), torch.enable_grad():
                    torch.autograd.backward(self._encode([part]), piece)

        leaf.register_hook(run_again)  # type: ignore[no-untyped-call]  # torch has no annotation here
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
    kept = logits.masked_fill(relations == IGNORED, -torch.inf)
    return nn.functional.cross_entropy(kept, (relations == POSITIVE).int().argmax(dim=1))


@dataclass(frozen=True)
class RandomState:
    """State of the random generators that dropout draws from, on one device."""

    device: torch.device
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def of(cls, device: torch.device) -> RandomState:
        """The state as it is now."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(device, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        """Draw from here on as from this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run the block from this state and go on from the outer one."""
        outer = RandomState.of(self.device)
        self.restore()
        try:
            yield
        finally:
            outer.restore()
