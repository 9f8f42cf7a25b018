"""What asking a language model costs, and the hard caps on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from embed_pipeline import settings
from embed_pipeline.escaping import counted

_MILLION = 1_000_000


class BudgetExhausted(RuntimeError):  # noqa: N818 - an outcome, named as the callers speak of it
    """A hard cap of the settings is reached: the run stops, all answers are kept."""


@dataclass
class Usage:
    """Counts of one client.

    Attributes:
        calls: answered requests, paid for; answers from the response store are not among them.
        cached: answers from the response store.
        prompt_tokens: tokens sent in the calls.
        completion_tokens: tokens received in the calls.
        cost: price of those tokens, in the currency of the settings.
        retries: requests sent again after a failure.
        seconds: waiting time of the calls, added up over concurrent ones.
        elapsed: seconds from the first call to the last answer, added up over the client's rounds of work.
    """

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    retries: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def line(self) -> str:
        """The counts as a note next to a progress bar."""
        price = f", cost {self.cost:.4f}" if self.cost else ""
        retried = f", {counted(self.retries, 'retry')}" if self.retries else ""
        paid = f"{counted(self.calls, 'call')}, {self.cached:,} from the store, {counted(self.tokens, 'token')}"
        return f"{paid}{price}{retried}"


def price(llm: settings.LLM, prompt_tokens: int, completion_tokens: int, *, batch: bool = False) -> float:
    """Price of tokens, in the currency of the settings; in a batch less ``llm.batch_discount``."""
    prompt = prompt_tokens * llm.price_per_million_prompt_tokens
    completion = completion_tokens * llm.price_per_million_completion_tokens
    return (prompt + completion) / _MILLION * (1 - llm.batch_discount if batch else 1)


class Budget:
    """Counts usage and refuses a call once a cap is reached.

    The caps hold for a run, of which other clients may have had a part before. The cap on calls is exact. Tokens and
    cost are known only when an answer is there, so they may be exceeded by the requests in flight when the cap is
    reached, which are finished and stored.

    Attributes:
        usage: the counts so far.
    """

    def __init__(self, llm: settings.LLM, before: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Count from what the run had used before: calls, prompt tokens and completion tokens."""
        self.usage = Usage()
        self._before = before
        self._llm = llm
        self._open = 0

    def check(self, *, held: int = 0) -> None:
        """Raise if another call would pass a cap.

        Args:
            held: calls in flight that are the one in question, sent again.

        Raises:
            BudgetExhausted: naming the cap, its value, what was used and how to go on.
        """
        used = self.usage
        calls, prompt, completion = self._before
        caps = (
            ("max_calls", self._llm.max_calls, calls + used.calls + self._open - held),
            ("max_total_tokens", self._llm.max_total_tokens, prompt + completion + used.tokens),
            ("max_cost", self._llm.max_cost, price(self._llm, prompt, completion, batch=self._llm.batch) + used.cost),
        )
        for name, cap, spent in caps:
            if cap is not None and spent >= cap:
                earlier = f"; {counted(calls, 'call')} before in this run" if calls else ""
                message = (
                    f"llm.{name} is {cap} and {spent:.6g} is used ({used.line()}{earlier}). Every answer paid for is "
                    f"stored: raise llm.{name} (none: no cap) and run the same command again to resume."
                )
                raise BudgetExhausted(message)

    @contextmanager
    def call(self) -> Iterator[None]:
        """Hold one call against the cap on calls while it is in flight.

        Raises:
            BudgetExhausted: before the block runs, if a cap is reached.
        """
        self.check()
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def record(self, prompt_tokens: int, completion_tokens: int, seconds: float, *, batch: bool = False) -> None:
        """Count one call that is paid for, made alone or in a batch."""
        self.usage.calls += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        self.usage.seconds += seconds
        self.usage.cost += price(self._llm, prompt_tokens, completion_tokens, batch=batch)

    def snapshot(self) -> Usage:
        """A copy of the counts, for the metadata of a stage."""
        return replace(self.usage)
