"""Training examples as batches: tokenised once, shuffled by seed, each distinct passage of a batch once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from embed_pipeline.embedding.backend import EncoderConfig
from embed_pipeline.embedding.families import TASKS, Kind, has_types, route_of
from embed_pipeline.embedding.token_batches import pad_rows
from embed_pipeline.training.task import Examples

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

Tokens = NDArray[np.int32]


class Collator:
    """Example numbers to the padded features and labels that the loss takes; texts are tokenised once, here."""

    # The trainer reads these of every collator.
    valid_label_columns: tuple[str, ...] = ("label",)

    def __init__(
        self,
        examples: Examples,
        model: SentenceTransformer,
        *,
        max_tokens: int | None = None,
        teacher_scores: Mapping[tuple[int, int], float] | None = None,
    ) -> None:
        """Tokenise all texts.

        Args:
            examples: the numbered examples.
            model: the model, whose tokenizers, prefixes and limits hold; each kind of text is read by its own side.
            max_tokens: longest text, special tokens included; None: the model's own limit.
            teacher_scores: (question number, passage number) to the teacher's score; None: there is no teacher.
        """
        self.examples = examples
        self._teacher_scores = teacher_scores
        ways = {kind: route_of(model, kind) for kind in TASKS}
        self._types = {kind: has_types(way) for kind, way in ways.items()}
        self._configs = {kind: EncoderConfig.of(way) for kind, way in ways.items()}
        self._questions = self._tokenize("query", examples.questions, max_tokens)
        self._passages = self._tokenize("passage", examples.passages, max_tokens)

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Features of a batch, under the names by which the trainer tells the two sides apart."""
        chosen = sorted(
            (row["index"] for row in rows), key=lambda i: (-len(self._questions[self.examples.question[i]]), i)
        )
        passages = self._distinct_passages(chosen)
        return {
            **self._features("question", "query", [self._questions[self.examples.question[i]] for i in chosen]),
            **self._features("passage", "passage", [self._passages[passage] for passage in passages]),
            "label": self._labels(chosen, passages),
        }

    def tokens(self, rows: Sequence[int]) -> int:
        """Tokens of a batch of these examples, without padding."""
        questions = sum(len(self._questions[self.examples.question[i]]) for i in rows)
        return questions + sum(len(self._passages[passage]) for passage in self._distinct_passages(rows))

    def _distinct_passages(self, rows: Sequence[int]) -> list[int]:
        distinct = {passage for i in rows for passage in (self.examples.positive[i], *self.examples.negatives[i])}
        return sorted(distinct, key=lambda passage: (-len(self._passages[passage]), passage))

    def _labels(self, rows: Sequence[int], passages: Sequence[int]) -> Tensor:
        """Labels for the loss: relations, and the teacher's scores where there is a teacher."""
        import torch

        relations = self._relations(rows, passages)
        if self._teacher_scores is None:
            return relations
        questions = [self.examples.question[row] for row in rows]
        scores = [
            [self._teacher_scores.get((question, passage), math.nan) for passage in passages] for question in questions
        ]
        return torch.stack([relations.float(), torch.tensor(scores, dtype=torch.float32)])

    def _relations(self, rows: Sequence[int], passages: Sequence[int]) -> Tensor:
        import torch

        from embed_pipeline.training.loss import IGNORED, NEGATIVE, POSITIVE

        place = {passage: column for column, passage in enumerate(passages)}
        relations = torch.full((len(rows), len(passages)), NEGATIVE, dtype=torch.int8)
        for row, example in enumerate(rows):
            known = self.examples.known[self.examples.question[example]]
            relations[row, [place[passage] for passage in known if passage in place]] = IGNORED
            relations[row, place[self.examples.positive[example]]] = POSITIVE
        return relations

    def _features(self, side: str, kind: Kind, rows: Sequence[Tokens]) -> dict[str, Any]:
        import torch

        from embed_pipeline.training.loss import LENGTHS

        config = self._configs[kind]
        padded = pad_rows(rows, config.pad_token_id, left=config.padding_side == "left")
        ids, mask = (torch.from_numpy(array) for array in padded)
        features: dict[str, Any] = {f"{side}_input_ids": ids, f"{side}_attention_mask": mask}
        features[f"{side}_{LENGTHS}"] = [len(row) for row in rows]
        return features | ({f"{side}_token_type_ids": torch.zeros_like(ids)} if self._types[kind] else {})

    def _tokenize(self, kind: Kind, texts: Sequence[str], max_tokens: int | None) -> list[Tokens]:
        config = self._configs[kind]
        prefix = config.query_prefix if kind == "query" else config.passage_prefix
        tokenizer = Tokenizer.from_str(config.tokenizer.to_str())
        longest = min(config.max_tokens, max_tokens or config.max_tokens)
        tokenizer.enable_truncation(longest, direction=config.truncation_side)
        encodings = tokenizer.encode_batch_fast([prefix + text for text in texts])
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]


class ShuffledBatches:
    """Batches of example numbers in an order that seed and epoch alone decide; sizes differ by at most one.

    A short last batch would give its examples few negatives, so examples are spread evenly over the batches, whose
    number is a multiple of the number of processes.
    """

    drop_last = False
    # accelerate drops batches shorter than a stated size when it deals them out to processes.
    batch_size = None

    def __init__(self, examples: int, batch_size: int, seed: int, *, processes: int = 1) -> None:
        self._count = min(examples, math.ceil(examples / (batch_size * processes)) * processes)
        self._examples = examples
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order: the trainer calls this at the start of every pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._examples)
        yield from (batch.tolist() for batch in np.array_split(order, len(self)))
