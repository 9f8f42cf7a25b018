"""What the address of a list of pairs asks for: words, filters, order and page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from urllib.parse import urlencode

from embed_pipeline.enumerations import CRITERIA

CHOICES: Mapping[str, str] = MappingProxyType(
    {
        "state": "State",
        "reason": "Decision",
        "review": "Review",
        "origin": "Origin",
        "query_type": "Query type",
        "hop_count": "Hops",
        "reasoning_type": "Reasoning",
        "style": "Style",
        "complexity": "Complexity",
        "split": "Split",
        "outcome": "Last evaluation",
        "judge": "Judge",
        "generator": "Generator",
        "batch": "Batch",
    }
)
"""Columns of few values that can be filtered by and counted, with their titles."""
_SCORE, _RANK, _SHARE = (1.0, *range(2, 11)), (1, 2, 4, 11, 101, 102), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
RANGES: Mapping[str, tuple[str, tuple[float, ...]]] = MappingProxyType(
    {
        "overall": ("Overall score", _SCORE),
        **{name: (name.replace("_", " ").capitalize(), _SCORE) for name in CRITERIA},
        "round_trip_rank": ("Round-trip rank", _RANK),
        "dense_rank": ("Rank under the base, in its batch", _RANK),
        "bm25_rank": ("Rank under BM25, in its batch", _RANK),
        "grounding": ("Grounding", _SHARE),
        "lexical_overlap": ("Lexical overlap", _SHARE),
        "hop_need": ("HopSources need", _SHARE),
    }
)
"""Columns of numbers that can be filtered by a least value and one that they stay below: title and ends of bars."""
SORTS: Mapping[str, str] = MappingProxyType(
    {
        "question": "question",
        "document": "document",
        "state": "state",
        "overall": "overall score",
        "round_trip_rank": "round-trip rank",
        "change": "change of nDCG@10",
        **{name: name.replace("_", " ") for name in CRITERIA},
    }
)
PAGE_SIZES = (25, 50, 100, 200)
MAX_WORDS = 500
_WORDS = re.compile(r'"([^"]+)"|(\S+)')
_PAGE = re.compile(r"[1-9][0-9]{0,8}")
_LINKS = ("document", "segment")


class QueryError(ValueError):
    """An address asks for what there is not."""


@dataclass(frozen=True)
class PairQuery:
    """Which pairs, in which order.

    Attributes:
        words: what the words of a pair must hold, as typed; words in quotation marks belong together.
        chosen: column of :data:`CHOICES` to the values of which a pair has one.
        least: column of :data:`RANGES` to its least value.
        below: column of :data:`RANGES` to the value that it stays below.
        document: a document's id; empty: any.
        segment: a segment's id; empty: any.
        sort: one of :data:`SORTS`; empty: by id.
        descending: greatest first.
        page: from 1.
        size: rows on a page.
    """

    words: str = ""
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    below: Mapping[str, float] = field(default_factory=dict)
    document: str = ""
    segment: str = ""
    sort: str = ""
    descending: bool = False
    page: int = 1
    size: int = 50

    @classmethod
    def parse(cls, given: Iterable[tuple[str, str]]) -> PairQuery:
        """The query of an address.

        Raises:
            QueryError: naming the parameter that is unknown or has no such value.
        """
        query = cls()
        chosen: dict[str, list[str]] = {}
        bounds: dict[str, dict[str, float]] = {"least": {}, "below": {}}
        for name, raw in given:
            value = raw.strip()
            stem, _, end = name.rpartition("_")
            if not value:
                continue
            if name == "q":
                query = replace(query, words=value[:MAX_WORDS])
            elif name in CHOICES:
                chosen.setdefault(name, []).append(value)
            elif stem in RANGES and end in {"least", "below"}:
                bounds[end][stem] = _number(name, value)
            elif name in _LINKS:
                query = replace(query, **{name: value})  # type: ignore[arg-type]  # both are texts
            else:
                query = replace(query, **_place(name, value))  # type: ignore[arg-type]  # as _place checks
        lists = {name: tuple(dict.fromkeys(values)) for name, values in chosen.items()}
        return replace(query, chosen=lists, least=bounds["least"], below=bounds["below"])

    @property
    def terms(self) -> list[str]:
        """The words and phrases to look for, in lower case."""
        return [(phrase or word).lower() for phrase, word in _WORDS.findall(self.words)]

    @property
    def filtered(self) -> bool:
        """Whether anything is left out."""
        return bool(self.words or self.chosen or self.least or self.below or self.document or self.segment)

    def address(self, **changes: object) -> str:
        """The query part of the address of this query, or of one with other values; page 1 unless that is changed."""
        asked = replace(self, **{"page": 1, **changes})  # type: ignore[arg-type]  # fields of this class
        pairs: list[tuple[str, object]] = [("q", asked.words)] if asked.words else []
        pairs += [(name, value) for name, values in asked.chosen.items() for value in values]
        pairs += [(f"{name}_least", f"{value:g}") for name, value in asked.least.items()]
        pairs += [(f"{name}_below", f"{value:g}") for name, value in asked.below.items()]
        pairs += [(name, getattr(asked, name)) for name in (*_LINKS, "sort") if getattr(asked, name)]
        pairs += [("order", "descending")] if asked.descending else []
        pairs += [("page", asked.page)] if asked.page > 1 else []
        pairs += [("size", asked.size)] if asked.size != PairQuery.size else []
        return "?" + urlencode(pairs)

    def toggled(self, column: str, value: str) -> str:
        """The address with a value of a column chosen in addition, or no more."""
        before = self.chosen.get(column, ())
        now = tuple(one for one in before if one != value) if value in before else (*before, value)
        return self.address(
            chosen={**{k: v for k, v in self.chosen.items() if k != column}, **({column: now} if now else {})}
        )

    def within(self, column: str, least: float | None, below: float | None) -> str:
        """The address with other bounds of a column of numbers; None: no bound."""
        return self.address(
            least=_with(self.least, column, least),
            below=_with(self.below, column, below),
        )

    def sorted_by(self, column: str) -> str:
        """The address sorted by a column, the other way round where it is sorted by it already."""
        return self.address(sort=column, descending=self.sort == column and not self.descending)


def _with(bounds: Mapping[str, float], column: str, value: float | None) -> dict[str, float]:
    others = {name: bound for name, bound in bounds.items() if name != column}
    return others if value is None else {**others, column: value}


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise QueryError(f"{name} is {value[:40]!r}, expected a number")
    return number


def is_page(value: str) -> bool:
    """Whether a text is the number of a page, from 1 to nine digits."""
    return _PAGE.fullmatch(value) is not None


def _place(name: str, value: str) -> dict[str, object]:
    """Order and page."""
    if name == "sort" and value in SORTS:
        return {"sort": value}
    if name == "order" and value in {"ascending", "descending"}:
        return {"descending": value == "descending"}
    if name == "page" and is_page(value):
        return {"page": int(value)}
    if name == "size" and value in _listed(PAGE_SIZES):
        return {"size": int(value)}
    known = {"sort": SORTS, "order": ("ascending", "descending"), "size": _listed(PAGE_SIZES), "page": ("1 and more",)}
    if name in known:
        raise QueryError(f"{name} is {value[:40]!r}, expected one of {', '.join(known[name])}")
    raise QueryError(f"there is no filter {name[:40]!r}; there are {', '.join((*CHOICES, *RANGES, *_LINKS))}")


def _listed(values: Sequence[int]) -> tuple[str, ...]:
    return tuple(map(str, values))
