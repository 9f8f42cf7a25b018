"""Errors as Dagster should treat them: final ones fail at once with their own words, passing ones are tried again."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.embedding.models import ModelError
from embed_pipeline.evaluation.query_sets import EvaluationError
from embed_pipeline.llm.errors import BudgetExhausted, EmbeddedModelError, EndpointError, ResponseStoreError
from embed_pipeline.release.manifest import BundleError
from embed_pipeline.release.onnx_export import ReleaseError
from embed_pipeline.settings import SettingsError
from embed_pipeline.tables import TableError
from embed_pipeline.tracking import TrackingError
from embed_pipeline.training.errors import TrainingError

FINAL = (
    BudgetExhausted,
    BundleError,
    CorpusError,
    EmbeddedModelError,
    EndpointError,
    EvaluationError,
    ModelError,
    ReleaseError,
    ResponseStoreError,
    SettingsError,
    TableError,
    TrackingError,
    TrainingError,
)
"""Errors that a repetition cannot mend: their message says what a person has to do."""

transient = dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For steps that ask an endpoint: what is not :data:`FINAL` is tried again, stored answers are not asked for anew."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn a final error of a stage into a Dagster failure with the same words and no retry."""
    try:
        yield
    except FINAL as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
