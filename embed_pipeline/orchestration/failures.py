"""Errors as Dagster should treat them: final ones fail at once with their own words, passing ones are tried again."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from embed_pipeline.llm.errors import TooManyFailures

transient = dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""For steps that ask an endpoint: an endpoint that was ill may be well again, and stored answers are not asked anew."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error that the product raised itself into a Dagster failure with the same words and no retry.

    Such an error says what a person has to do, so repeating the step cannot mend it; an endpoint that did not answer
    (:class:`TooManyFailures`), and what libraries and the machine raise, may pass.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, TooManyFailures) or not type(error).__module__.startswith("embed_pipeline."):
            raise
        raise dg.Failure(description=str(error), allow_retries=False) from error
