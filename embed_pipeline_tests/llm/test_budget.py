"""Counts of usage and the hard caps on it."""

from __future__ import annotations

import pytest

from embed_pipeline.llm.budget import Budget, BudgetExhausted
from embed_pipeline.settings import LLM


def test_cost_follows_the_prices() -> None:
    budget = Budget(LLM(price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=8.0))
    budget.record(1_000_000, 500_000, 1.5)
    budget.record(0, 1, 0.5)
    used = budget.usage
    assert (used.calls, used.prompt_tokens, used.completion_tokens, used.seconds) == (2, 1_000_000, 500_001, 2.0)
    assert used.cost == pytest.approx(6.000008)
    assert "cost 6.0000" in used.line()


@pytest.mark.parametrize(
    ("caps", "named"),
    [
        ({"max_calls": 2}, "llm.max_calls is 2"),
        ({"max_total_tokens": 200}, "llm.max_total_tokens is 200"),
        ({"max_cost": 0.002, "price_per_million_prompt_tokens": 10.0}, "llm.max_cost is 0.002"),
    ],
)
def test_a_cap_refuses_the_next_call_and_says_how_to_go_on(caps: dict[str, float], named: str) -> None:
    budget = Budget(LLM(**caps))
    for _ in range(2):
        budget.check()
        budget.record(100, 0, 0.1)
    with pytest.raises(BudgetExhausted, match=rf"{named} .*run the same command again"):
        budget.check()


def test_what_the_run_used_before_counts_against_the_caps() -> None:
    llm = LLM(max_calls=5, max_cost=3, price_per_million_prompt_tokens=2.0, price_per_million_completion_tokens=8.0)
    budget = Budget(llm, (4, 500_000, 0))
    budget.check()
    budget.record(100_000, 0, 0.1)
    with pytest.raises(BudgetExhausted, match=r"5 is used \(1 call, .*; 4 calls before in this run\)"):
        budget.check()
    with pytest.raises(BudgetExhausted, match=r"max_cost is 3"):
        Budget(llm, (1, 500_000, 250_000)).check()


def test_calls_in_flight_count_against_the_cap_on_calls() -> None:
    budget = Budget(LLM(max_calls=1))
    with budget.call(), pytest.raises(BudgetExhausted):
        budget.check()
    budget.check()


def test_no_cap_never_refuses() -> None:
    budget = Budget(LLM())
    budget.record(10**9, 10**9, 1.0)
    budget.check()
