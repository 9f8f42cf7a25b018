"""Addresses say what they ask for, both ways, and refuse what there is not."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest

from embed_pipeline.inspection.pair_query import PairQuery, QueryError

FULL = PairQuery(
    words='"red lamp" & <b>', chosen={"state": ("rejected", "invalid")}, least={"clarity": 2.5}, below={"overall": 7.0},
    document="d1", segment="s1", sort="overall", descending=True, page=3, size=100,
)  # fmt: skip


def read(address: str) -> PairQuery:
    return PairQuery.parse(parse_qsl(address.removeprefix("?")))


def test_an_address_comes_back_as_it_was():
    assert read(FULL.address(page=3)) == FULL
    assert read(PairQuery().address()) == PairQuery()
    assert read(FULL.address()).page == 1


def test_a_click_adds_and_takes_away():
    once = read(PairQuery().toggled("state", "rejected"))
    assert once.chosen == {"state": ("rejected",)}
    assert read(once.toggled("state", "rejected")) == PairQuery()
    assert read(FULL.within("overall", 3, None)).least == {"clarity": 2.5, "overall": 3}
    assert read(FULL.within("overall", 3, None)).below == {}
    assert [read(FULL.sorted_by(name)).descending for name in ("overall", "state")] == [False, False]
    assert read(read(FULL.sorted_by("state")).sorted_by("state")).descending


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("sort", "secret", "sort is 'secret'"),
        ("page", "0", "page is '0'"),
        ("page", "1e3", "page is"),
        ("size", "1000000", "expected one of 25, 50, 100, 200"),
        ("order", "up", "order is 'up'"),
        ("overall_least", "much", "overall_least is 'much', expected a number"),
        ("overall_below", "nan", "expected a number"),
        ("words_least", "1", "there is no filter 'words_least'"),
        ("foo", "1", "there is no filter 'foo'"),
    ],
)
def test_what_there_is_not_is_refused_by_name(name, value, said):
    with pytest.raises(QueryError, match=said):
        PairQuery.parse([(name, value)])
