"""Second opinions on negatives: does the passage answer the question after all?

A base model that ranks a passage just under the ceiling cannot say. A cross-encoder reads question and passage
together; an LLM is asked outright. Either is optional, and either alone can find an answer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

from embed_pipeline.embedding.models import refuse_foreign_code, torch_device
from embed_pipeline.llm.answers import InvalidAnswer
from embed_pipeline.llm.client import LLMClient, open_client
from embed_pipeline.llm.gathering import run_interruptibly
from embed_pipeline.llm.prompts import CROSS_CHECK_PROMPTS, delimit
from embed_pipeline.settings import Settings
from embed_pipeline.training_data.candidates import similarity_ceiling

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

logger = logging.getLogger(__name__)


class CrossCheckError(ValueError):
    """A cross-check is set that cannot be made."""


@dataclass(frozen=True)
class QuestionCandidates:
    """A question, the texts that answer it, and mined negatives to be checked."""

    question: str
    positives: list[str]
    negatives: list[str]


class CrossCheck(Protocol):
    """Tells which negatives answer their question."""

    @property
    def name(self) -> str:
        """Who checks, as stored with the decision."""
        ...

    def answering(self, candidates: Sequence[QuestionCandidates]) -> list[list[bool]]:
        """For each question, for each of its negatives: does it answer?"""
        ...


def configured_checks(settings: Settings) -> list[CrossCheck]:
    """The checks that the settings ask for.

    Raises:
        CrossCheckError: the LLM is to judge and no endpoint is set.
        ModelError: the cross-encoder's folder brings pickled weights or code of its own.
    """
    options = settings.training_data
    checks: list[CrossCheck] = []
    if options.cross_encoder is not None:
        checks.append(CrossEncoderCheck(options.cross_encoder, settings))
    if options.judge_negatives:
        if settings.llm.embedded:
            message = "training_data.judge_negatives is set, but llm.base_url is not: the embedded model cannot judge"
            raise CrossCheckError(message)
        checks.append(JudgeCheck(settings))
    return checks


class CrossEncoderCheck:
    """A negative answers where its score is over the ceiling that the positives' scores give, by the same margins."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Load the cross-encoder in ``folder``.

        Raises:
            CrossCheckError: there is no such folder, or it cannot be read.
            ModelError: it brings pickled weights or code of its own.
        """
        if not folder.is_dir():
            message = f"training_data.cross_encoder = {str(folder)!r}: no such folder"
            raise CrossCheckError(message)
        refuse_foreign_code(folder)
        self._model = _load(folder, torch_device(settings.embedding))
        self._options = settings.training_data
        self.name = f"cross-encoder {folder.resolve().name}"

    def answering(self, candidates: Sequence[QuestionCandidates]) -> list[list[bool]]:
        """See :class:`CrossCheck`."""
        pairs = [(entry.question, text) for entry in candidates for text in (*entry.positives, *entry.negatives)]
        if not pairs:
            return [[] for _ in candidates]
        scores = iter(self._model.predict(pairs, show_progress_bar=False).tolist())
        found = []
        for entry in candidates:
            positive = [next(scores) for _ in entry.positives]
            ceiling = similarity_ceiling(positive, self._options)
            found.append([next(scores) > ceiling for _ in entry.negatives])
        return found


class AnswerVerdict(BaseModel):
    """Why, and then whether the passage answers the question."""

    model_config = ConfigDict(extra="forbid", strict=True)
    justification: Annotated[str, Field(min_length=1, json_schema_extra={"maxLength": 300})]
    answers: bool


class JudgeCheck:
    """A negative answers where the judge model says so; what it says nothing usable about stays a negative."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.name = f"judge {settings.llm.judge_model or settings.llm.model}"

    def answering(self, candidates: Sequence[QuestionCandidates]) -> list[list[bool]]:
        """See :class:`CrossCheck`.

        Raises:
            EndpointError, BudgetExhausted, TooManyFailures: from the client.
        """
        asked = [(entry.question, text) for entry in candidates for text in entry.negatives]
        verdicts = iter(run_interruptibly(self._ask(asked)))
        return [[next(verdicts) for _ in entry.negatives] for entry in candidates]

    async def _ask(self, asked: Sequence[tuple[str, str]]) -> list[bool]:
        store = self._settings.paths.responses
        async with open_client(self._settings.llm, store) as client:

            async def ask(pair: tuple[str, str]) -> bool:
                return await self._judge(client, *pair)

            return await client.gather(asked, ask, label="Checking negatives", unit="pair")

    async def _judge(self, client: LLMClient, question: str, passage: str) -> bool:
        asked = f"{delimit({'S1': passage})}\n\nQuestion: {question}"
        try:
            answer = await client.judge(*CROSS_CHECK_PROMPTS, asked, AnswerVerdict, seed=self._settings.seed)
        except InvalidAnswer as error:
            logger.warning("cross-check of a negative: no verdict on %r: %s", question, error)
            return False
        return answer.value.answers


def _load(folder: Path, device: str) -> CrossEncoder:
    from sentence_transformers import CrossEncoder

    try:
        return CrossEncoder(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}, num_labels=1
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = f"training_data.cross_encoder = {str(folder)!r} cannot be loaded as a cross-encoder: {error}"
        raise CrossCheckError(message) from error
