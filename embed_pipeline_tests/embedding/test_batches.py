"""Token-budget batches and padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from embed_pipeline.embedding.batches import pad_rows, token_budget, token_budget_batches


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_batches_hold_every_text_once_within_the_budget(lengths, budget):
    batches = [batch.tolist() for batch in token_budget_batches(lengths, budget)]
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    flat = [lengths[position] for batch in batches for position in batch]
    assert flat == sorted(flat, reverse=True)


def test_padding_on_either_side():
    ids, mask = pad_rows([[5, 6], [7]], 0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    ids, mask = pad_rows([[5, 6], [7]], 9, left=True)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [9, 7]], [[1, 1], [0, 1]])


def test_the_budget_is_what_is_wanted_or_suits_the_hardware():
    assert [token_budget(wanted, on_gpu=gpu) for wanted in (0, 300) for gpu in (False, True)] == [1024, 16384, 300, 300]
