"""Final errors fail at once in their own words; passing ones are tried again where an endpoint is asked."""

from __future__ import annotations

import dagster as dg
import pytest

from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.llm.budget import BudgetExhausted
from embed_pipeline.llm.transport import TooManyFailures
from embed_pipeline.orchestration import outputs
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


@pytest.mark.parametrize(
    ("error", "runs"),
    [(CorpusError("no documents"), 1), (TooManyFailures("ill"), 3), (OSError("disk"), 3),
     (dg.DagsterExecutionInterruptedError(), 1)],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(error, runs, monkeypatch):
    monkeypatch.setattr(outputs, "RETRY_SECONDS", 0.0)
    tries = []

    @dg.asset
    def step(context):
        tries.append(context.retry_number)
        with explained(context):
            raise error

    assert not dg.materialize([step], raise_on_error=False).success
    assert tries == list(range(runs))
