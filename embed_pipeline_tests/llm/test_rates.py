"""What stored calls say of those to come."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from embed_pipeline.llm.rates import measure_rates
from embed_pipeline.llm.store import TimedCall


def _calls(times: Sequence[tuple[float, float]]) -> list[TimedCall]:
    """Calls that began and ended at these times."""
    told = {"source": "m", "kind": "completion", "repeated": False, "characters": 1500, "prompt_tokens": 360}
    return [TimedCall(**told, completion_tokens=8, seconds=end - begin, ended=end, questions=0) for begin, end in times]


def test_the_first_call_of_each_server_is_no_measure() -> None:
    # As two servers of the packaged model begin: each reads the examples of the prompt once, for 5 s.
    first = [(0.0, 5.2), (5.2, 6.4), (6.4, 7.4), (7.4, 8.4)]
    second = [(8.5, 13.7), *((13.7 + n, 14.7 + n) for n in range(8))]
    others = [(8.4 + n, 9.4 + n) for n in range(13)]
    rates = measure_rates(_calls([*first, *second, *others]))
    assert rates is not None
    assert rates.duration([8] * 1000, 2) == pytest.approx(500, rel=0.05)
    # An endpoint whose calls differ as much keeps all of them.
    even = measure_rates(_calls([(float(n), n + (5.0 if n % 4 == 0 else 1.0)) for n in range(0, 80, 5)]))
    assert even is not None
    assert even.duration([8] * 1000, 1) > 1500


def test_a_single_call_is_a_measure() -> None:
    rates = measure_rates(_calls([(0.0, 4.0)]))
    assert rates is not None
    assert rates.duration([8] * 10, 1) == pytest.approx(40)
    assert measure_rates([]) is None
