"""Final errors fail at once in their own words; passing ones are left to the retry policy."""

from __future__ import annotations

import dagster as dg
import pytest

from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.llm.budget import BudgetExhausted
from embed_pipeline.llm.transport import TooManyFailures
from embed_pipeline.orchestration.outputs import explained


@pytest.mark.parametrize("error", [CorpusError("no documents"), BudgetExhausted("llm.max_calls is 3")])
def test_an_error_of_the_product_is_final(error):
    with pytest.raises(dg.Failure) as caught, explained():
        raise error
    assert caught.value.description == str(error)
    assert caught.value.allow_retries is False


@pytest.mark.parametrize("error", [TooManyFailures("endpoint is ill"), OSError("disk"), ValueError("of a library")])
def test_what_may_pass_is_left_as_it_is(error):
    with pytest.raises(type(error)) as caught, explained():
        raise error
    assert caught.value is error


def test_a_final_failure_is_not_retried():
    tries = []

    @dg.op(retry_policy=dg.RetryPolicy(max_retries=3))
    def step():
        tries.append(1)
        with explained():
            raise CorpusError("no documents")

    @dg.job
    def job():
        step()

    assert not job.execute_in_process(raise_on_error=False).success
    assert len(tries) == 1
